"""How messages get to the other site: by HTTP, or through a broker by FastStream.

Nothing here needs to be sure: who sends repeats what is not answered, who receives may receive twice. So each site
reads its subject from now on, keeps no offsets and belongs to no group, and a broker that forgets everything forgets
nothing of worth. But a client may go on waiting, without a word, at a place that such a broker has not reached again:
so each site sends itself a message now and then, and subscribes anew if that does not come.
"""

import asyncio
import importlib
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, Protocol, cast
from urllib.parse import urlsplit

from delivery.placed.messages import Probe, encode
from delivery.placed.peer import Peer
from delivery.placed.rules import Site
from ministream.base.errors import UserError
from ministream.base.log import get_logger

ANSWER = 10.0
"""Seconds that a broker may take to accept a message, or a connection."""

PROBE = 5.0
"""Seconds between two messages that a site sends itself, and those that one may take."""

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

    async def check(self) -> None:
        """Look, now and then, whether messages come; raises Undelivered if they do not."""
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
    if kind not in _LINES:
        raise UserError(f"no broker of the kind {kind!r} is known; give kafka://…, nats://… or redis://…")
    try:
        importlib.import_module(f"faststream.{kind}")
    except ImportError as error:
        raise UserError(f"{kind} needs more packages: pip install 'mini-stream[delivery,delivery-brokers]'") from error
    return BrokerPost(_LINES[kind], broker, site)


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

    async def check(self) -> None:
        """Do nothing: a line that is cut is seen where it is used."""

    async def close(self) -> None:
        """Do nothing."""


class BrokerPost:
    """Posts through a broker, a subject for each site; `line` knows what kind of broker it is."""

    def __init__(self, line: "_Line", url: str, site: Site) -> None:
        self._line, self._url, self._site = line, url, site
        self._broker: Any = None
        self._probe, self._probed = b"", 0.0
        for name in ("aiokafka", "nats", "redis", "faststream"):  # we tell ourselves what fails
            logging.getLogger(name).setLevel(logging.CRITICAL)

    async def open(self, hear: Hear) -> None:
        """Connect and subscribe."""
        await self.close()
        self._probe, self._probed = b"", time.monotonic()

        async def listen(body: bytes) -> None:
            if body == self._probe:
                self._probe = b""
            else:
                await hear(body)

        self._broker = self._line.connect(self._url, f"placed.{self._site}", listen)
        try:
            await asyncio.wait_for(self._broker.start(), ANSWER)
        except Exception as error:
            await self.close()
            raise Undelivered(f"broker {_hidden(self._url)}: {_words(error)}; is it up?") from error

    async def send(self, body: bytes) -> None:
        """Publish a message."""
        await self._publish(body, self._site.other)

    async def check(self) -> None:
        """Send oneself a message, and see that it comes."""
        if time.monotonic() - self._probed < PROBE:
            return
        if self._probe:
            raise Undelivered(f"broker {_hidden(self._url)}: what is sent to this site does not come; subscribing anew")
        self._probe, self._probed = encode(Probe(sender=self._site, id=secrets.token_hex(16))), time.monotonic()
        await self._publish(self._probe, self._site)

    async def _publish(self, body: bytes, site: Site) -> None:
        sent = self._broker.publish(body, f"placed.{site}", **self._line.options)
        try:
            await asyncio.wait_for(sent, ANSWER)
        except Exception as error:
            raise Undelivered(f"broker {_hidden(self._url)}: {_words(error)}; is it up?") from error

    async def close(self) -> None:
        """Disconnect, whatever state the connection is in."""
        broker, self._broker = self._broker, None
        if broker:
            try:
                await asyncio.wait_for(broker.stop(), ANSWER)
            except Exception as error:
                get_logger().debug("the broker was not left in peace", reason=_words(error))


class _Line(NamedTuple):
    """A kind of broker: how one is connected to and subscribed at, and the options of what is published."""

    connect: Callable[[str, str, Hear], Any]
    options: dict[str, Any]


async def _raw(message: Any) -> bytes:
    """Leave a body as it is: what is in it is judged by `messages.decode` alone."""
    return bytes(message.body)


def _kafka(url: str, subject: str, hear: Hear) -> Any:
    from faststream.kafka import KafkaBroker, TopicPartition

    servers = urlsplit(url).netloc.split(",")
    broker = KafkaBroker(servers, apply_types=False, logger=None, request_timeout_ms=int(ANSWER * 500))
    broker.subscriber(partitions=[TopicPartition(subject, 0)], auto_offset_reset="latest", decoder=_raw)(hear)
    return broker


def _nats(url: str, subject: str, hear: Hear) -> Any:
    from faststream.nats import NatsBroker

    broker = NatsBroker(url, apply_types=False, logger=None, max_reconnect_attempts=-1, connect_timeout=2)
    broker.subscriber(subject, decoder=_raw)(hear)
    return broker


def _redis(url: str, subject: str, hear: Hear) -> Any:
    from faststream.redis import RedisBroker

    broker = RedisBroker(url, apply_types=False, logger=cast("Any", None))  # as the others take it
    broker.subscriber(subject, decoder=_raw)(hear)
    return broker


_LINES = {
    "kafka": _Line(_kafka, {"partition": 0}),  # a broker may make topics of several; one is read
    "nats": _Line(_nats, {}),
    "redis": _Line(_redis, {}),
}


BROKERS = tuple(_LINES)


def _hidden(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _words(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
