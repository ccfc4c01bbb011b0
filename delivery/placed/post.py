"""How messages get to the other site: by HTTP, or through a broker by FastStream.

Nothing here needs to be sure: who sends repeats what is not answered, who receives may receive twice. So each site
reads its subject from now on, keeps no offsets and belongs to no group, and a broker that forgets everything forgets
nothing of worth.
"""

import asyncio
import importlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Protocol
from urllib.parse import urlsplit

from delivery.placed.peer import Peer
from delivery.placed.rules import Site
from ministream.base.errors import UserError

ANSWER = 10.0
"""Seconds that a broker may take to accept a message, or a connection."""

Hear = Callable[[bytes], Awaitable[None]]


class Undelivered(UserError):  # noqa: N818
    """A message has not left; it is to be sent again later."""


class Post(Protocol):
    """Takes messages to the other site, and brings those of the other site."""

    async def open(self, hear: Hear) -> None:
        """Connect, and from now on call `hear` with each message that comes; raises Undelivered if that fails."""
        ...

    async def send(self, body: bytes) -> None:
        """Hand over a message; raises Undelivered if nobody has taken it."""
        ...

    async def close(self) -> None:
        """Disconnect."""
        ...


def open_post(broker: str, site: Site, peer: Peer) -> Post:
    """Return the post that a setting names.

    Parameters
    ----------
    broker
        ``kafka://host:9092``, ``nats://host:4222``, ``redis://host:6379``; empty: by HTTP.
    site, peer
        Whose post it is, and the other site.

    Raises
    ------
    UserError
        If there is no such broker, or its library is not installed.
    """
    if not broker:
        return DirectPost(peer)
    kind = urlsplit(broker).scheme
    if kind not in _BROKERS:
        raise UserError(f"no broker of the kind {kind!r} is known; give kafka://…, nats://… or redis://…")
    try:
        module = importlib.import_module(f"faststream.{kind}")
    except ImportError as error:
        raise UserError(f"{kind} needs more packages: pip install 'mini-stream[delivery,delivery-brokers]'") from error
    return BrokerPost(_BROKERS[kind], module, broker, site)


class DirectPost:
    """Posts to the other site itself; the outbox is the queue, and there is nothing else to run."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    async def open(self, hear: Hear) -> None:
        """Do nothing: what comes comes by the route ``/messages``."""

    async def send(self, body: bytes) -> None:
        """Post a message."""
        try:
            await asyncio.to_thread(self._peer.send, body)
        except UserError as error:
            raise Undelivered(str(error)) from error

    async def close(self) -> None:
        """Do nothing."""


class BrokerPost:
    """Posts through a broker, a subject for each site."""

    def __init__(self, connect: "_Connect", module: Any, url: str, site: Site) -> None:
        self._connect, self._module, self._url, self._site = connect, module, url, site
        self._broker: Any = None
        for name in ("aiokafka", "nats", "redis", "faststream"):  # we tell ourselves what fails
            logging.getLogger(name).setLevel(logging.CRITICAL)

    async def open(self, hear: Hear) -> None:
        """Connect and subscribe."""
        await self.close()
        self._broker = self._connect(self._module, self._url, _subject(self._site), hear)
        try:
            await asyncio.wait_for(self._broker.start(), ANSWER)
        except Exception as error:
            await self.close()
            raise Undelivered(f"broker {_hidden(self._url)}: {_words(error)}; is it up?") from error

    async def send(self, body: bytes) -> None:
        """Publish a message."""
        subject = _subject(self._site.other)
        try:
            await asyncio.wait_for(self._broker.publish(body, subject), ANSWER)
        except Exception as error:
            raise Undelivered(f"broker {_hidden(self._url)}: {_words(error)}; is it up?") from error

    async def close(self) -> None:
        """Disconnect, whatever state the connection is in."""
        broker, self._broker = self._broker, None
        if broker:
            try:
                await asyncio.wait_for(broker.stop(), ANSWER)
            except Exception as error:
                logging.getLogger(__name__).debug("broker did not part in peace: %r", error)


_Connect = Callable[[Any, str, str, Hear], Any]


async def _raw(message: Any) -> bytes:
    """Leave a body as it is: what is in it is judged by `messages.decode` alone."""
    return bytes(message.body)


def _kafka(kafka: Any, url: str, subject: str, hear: Hear) -> Any:
    servers = [f"{part}" for part in urlsplit(url).netloc.split(",")]
    broker = kafka.KafkaBroker(servers, apply_types=False, logger=None, request_timeout_ms=int(ANSWER * 500))
    mine = [kafka.TopicPartition(subject, 0)]
    broker.subscriber(partitions=mine, auto_offset_reset="latest", decoder=_raw)(hear)
    return broker


def _nats(nats: Any, url: str, subject: str, hear: Hear) -> Any:
    broker = nats.NatsBroker(url, apply_types=False, logger=None, max_reconnect_attempts=-1, connect_timeout=2)
    broker.subscriber(subject, decoder=_raw)(hear)
    return broker


def _redis(redis: Any, url: str, subject: str, hear: Hear) -> Any:
    broker = redis.RedisBroker(url, apply_types=False, logger=None)
    broker.subscriber(subject, decoder=_raw)(hear)
    return broker


_BROKERS: dict[str, _Connect] = {"kafka": _kafka, "nats": _nats, "redis": _redis}


def _subject(site: Site) -> str:
    return f"placed.{site}"


def _hidden(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _words(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
