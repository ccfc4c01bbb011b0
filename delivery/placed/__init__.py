"""Placed storage: two sites, and a rule that says at which of them a file lives.

A site takes any file, judges it while it comes in, keeps it if it belongs here, and offers it to the other site if it
belongs there. States of a file in a site's register:

=========  =============================================================================================
here       it belongs here and lies here; these are listed and counted
leaving    it lies here but belongs to the other site alone, which has been offered it
sent       it was here, and the other site has it: only its record is left
arriving   the other site has offered it; its bytes are being fetched
=========  =============================================================================================

Messages only hint: *offer* ("fetch this from me"), *have* ("I hold this") and *hello* ("I am back: offer again"); a
*probe* is for the site itself ("does what is sent to me arrive?").
An offer is written with the record of its file, in one transaction, and repeated until the other site holds the file;
nothing is deleted before that site has read its own copy, and said itself over HTTP that it is whole; if it is not,
that site is asked to fetch the file in its place. So a broker may lose, repeat, reorder, or be down, and no message,
forged or late, costs a byte.

A file's id is made from its name, project and content: what is uploaded twice, to whichever site, is one file, and
versions of one name are files of their own. Every step can be done again, so that a process may be killed anywhere:

==============================================  ==========================================================
killed after …                                  then, at the next start
==============================================  ==========================================================
bytes of an upload are aside, no record         they are deleted; the client got no answer, and uploads again
the record is written, the file is still aside  it is moved to its place (until then it is read where it lies)
an offer was sent, that is not on record        it is sent again; whoever knows the file answers *have*
part of a file is fetched                       the fetch goes on where it stopped; all is digested again
a fetched file is moved, that is not on record  it is digested where it lies, and put on record
*have* was sent, or lost                        the offer is repeated, and answered again
*have* was heard, and is on record              the other site is asked whether its copy is whole
the bytes of a file that was sent are deleted   the offer is repeated, answered, and the record becomes *sent*
==============================================  ==========================================================
"""
