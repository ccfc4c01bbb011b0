"""How values become messages, and messages values. Bytes in, bytes out: no socket, no file.

`timage` carries frames and reconstructed volumes, `tmq` the talk between distributor and workers. A message
that is not exactly what it claims to be is refused with a `WireError`, and with no other exception.
"""


class WireError(ValueError):
    """A message was refused, or a value cannot be put into one; the text says why."""
