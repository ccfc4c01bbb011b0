"""Chunked upload to a remote archive: every chunk is verified before it counts, and the whole is never assembled.

An upload is a name, a size and a chunk size. Its chunks come in any order, at the same time, again and again; each is
held in memory until its digest is right and is written then, where it belongs in the file. What is in the ledger is in
the store; what is not verified touches neither. So a kill costs what was on its way, and nothing is hashed twice.

    open --last chunk, digest of the whole is right--> stored --forwarded, verified there--> (forward: done)
      |--nobody sent anything for `--expire`--> expired
      `--cancelled--> cancelled

`stored` is reached by one compare-and-swap in the database, which also gives the file its place. What the store does
then (a rename, the end of a multipart upload) may be done again, and is, if a kill came between.

Two doors lead to the same uploads: `routes` (the archive's own), and `tus` (tus 1.0). Three stores keep the bytes
(`stores`): files, S3, MongoDB. `forward` sends on what is stored, as a durable job.
"""
