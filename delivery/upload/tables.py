"""The tables of uploads; all times are seconds since 1970."""

from sqlalchemy import JSON, BigInteger, Boolean, Column, Float, ForeignKey, Index, Integer, LargeBinary, String, Table

from delivery.database import metadata

uploads = Table(
    "uploads",
    metadata,
    Column("id", String, primary_key=True),
    Column("owner", String, nullable=False),
    Column("name", String, nullable=False),
    Column("size", BigInteger, nullable=False),  # that is reserved; the file's own, if exact
    Column("exact", Boolean, nullable=False),  # whether the size is known yet
    Column("chunk_size", BigInteger, nullable=False),
    Column("digest", String, nullable=False),  # kind of digest that the whole will be proved by
    Column("door", String, nullable=False),  # own, tus, tus-part, root
    Column("key", String, nullable=False),  # what the client knows the file by, to find its upload again
    Column("more", JSON, nullable=False),  # what the door has to remember
    Column("handle", String, nullable=False),  # the store's own name of it
    Column("state", String, nullable=False),
    Column("reason", String, nullable=False, default=""),
    Column("created", Float, nullable=False),
    Column("expires", Float, nullable=False),
    Column("place", String, unique=True),  # set once it is stored
    Column("finished", Boolean, nullable=False, default=False),  # the store has made it so
    Column("tree", String(64), nullable=False, default=""),
    Column("forward", String, nullable=False, default=""),  # waiting, done, failed; empty: it stays here
    Column("attempts", Integer, nullable=False, default=0),
    Index("uploads_by_state", "state", "expires"),
    Index("uploads_by_owner", "owner", "created"),
)

chunks = Table(
    "upload_chunks",
    metadata,
    Column("upload", String, ForeignKey("uploads.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("length", BigInteger, nullable=False),
    Column("blake3", LargeBinary(32), nullable=False),
    Index("upload_chunks_by_digest", "blake3"),
)

audit = Table(
    "upload_audit",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("at", Float, nullable=False),
    Column("who", String, nullable=False),
    Column("action", String, nullable=False),
    Column("upload", String, nullable=False),
    Column("detail", String, nullable=False),
    sqlite_autoincrement=True,  # a number is never given twice: a gap shows that a line was taken out
)
