"""Keys that only this service knows: made once, kept in its database."""

import secrets

from sqlalchemy import Column, Engine, LargeBinary, String, Table, select

from delivery.database import metadata, upsert, writing

_keys = Table(
    "keys", metadata, Column("name", String, primary_key=True), Column("key", LargeBinary(32), nullable=False)
)


def secret_key(engine: Engine, name: str) -> bytes:
    """Return the key of that name: 32 random bytes, the same ones each time."""
    with writing(engine) as connection:
        key: bytes | None = connection.scalar(select(_keys.c.key).where(_keys.c.name == name))
        if key is None:
            key = secrets.token_bytes(32)
            upsert(connection, _keys, [{"name": name, "key": key}])
        return key
