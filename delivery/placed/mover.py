"""What a site does by itself: sends its messages, acts on those that come, fetches what it was offered, lets go.

Nothing that goes wrong ends it: what could not be done now is done later, and its reason is on record.
"""

import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy.exc import DBAPIError

from delivery.placed.disk import is_whole
from delivery.placed.keeping import Keeper
from delivery.placed.messages import File, Have, Hello, Offer, Poison, Probe, decode, encode
from delivery.placed.peer import Peer
from delivery.placed.post import Post, Undelivered
from delivery.placed.register import Entry, State
from ministream.base.errors import UserError
from ministream.base.log import get_logger

LOOK = 0.5
"""Seconds between two looks for what has become due."""

LONGEST_PAUSE = 5.0
"""Seconds between two tries of a broker that is down."""

POSTS = 100
"""Messages taken from the outbox at a time."""


class Mover:
    """The tasks of a site.

    Parameters
    ----------
    keeper
        What it keeps.
    peer
        The other site.
    post
        Takes messages there.
    rule
        In words: where files belong.
    fetches
        Files fetched, or let go, at a time.
    """

    def __init__(self, keeper: Keeper, peer: Peer, post: Post, rule: str, fetches: int) -> None:
        self._keeper, self._register, self._rule = keeper, keeper.register, rule[:200]
        self._peer, self._post, self._fetches = peer, post, fetches
        self._tasks: list[asyncio.Task[None]] = []
        self._to_send, self._to_move = asyncio.Event(), asyncio.Event()
        self._threads = ThreadPoolExecutor(fetches, thread_name_prefix="mover")
        self._moving: dict[str, asyncio.Future[None]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Begin, in the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._tasks = [asyncio.create_task(self._send_all()), asyncio.create_task(self._move_all())]

    async def stop(self) -> None:
        """End; what is under way is gone on with at the next start."""
        under_way = [*self._tasks, *self._moving.values()]
        for each in under_way:
            each.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        self._threads.shutdown(wait=False, cancel_futures=True)
        await self._post.close()

    def wake(self) -> None:
        """Have a look at once; from any thread."""
        if self._loop:
            self._loop.call_soon_threadsafe(self._to_send.set)
            self._loop.call_soon_threadsafe(self._to_move.set)

    # Messages

    async def hear(self, body: bytes) -> None:
        """Act on a message; one that can't be meant is set aside."""
        try:
            await asyncio.to_thread(self.act, body)
        except Poison as error:
            get_logger().error("a message was set aside", reason=str(error))
            await asyncio.to_thread(self._register.set_aside, body, str(error))

    def act(self, body: bytes) -> None:
        """Act on a message.

        Raises
        ------
        Poison
            If no site can have meant it.
        """
        message = decode(body)
        if isinstance(message, Probe):  # of a subscription that has been given up
            return
        if message.sender is self._register.site:
            raise Poison("this site sent it itself; do both sites have one name?")
        if isinstance(message, Offer):
            self._register.offered(message.file)
        elif isinstance(message, Have):
            self._register.answered(message.id)
        else:
            if message.rule != self._rule:
                get_logger().error("the sites' rules differ: give both the same", here=self._rule, there=message.rule)
            self._register.hurry()
        self.wake()

    async def _send_all(self) -> None:
        """Send what is due, for ever; a broker that is down is tried ever more rarely, up to `LONGEST_PAUSE`."""
        is_open, failures = False, 0
        while True:
            try:
                if not is_open:
                    await self._post.open(self.hear)
                    await self._post.send(encode(Hello(sender=self._register.site, rule=self._rule)))
                    await asyncio.to_thread(self._register.hurry)
                    is_open, failures = True, 0
                    get_logger().info("messages go to the other site")
                await self._send_due()
                await self._post.check()
            except Undelivered as error:
                if is_open or not failures:
                    get_logger().warning("messages wait", reason=str(error))
                is_open, failures = False, failures + 1
                await asyncio.sleep(min(LOOK * 2.0 ** min(failures, 20), LONGEST_PAUSE))
            except Exception:
                get_logger().exception("messages wait")
                await asyncio.sleep(LOOK)
            await _set_or_late(self._to_send)

    async def _send_due(self) -> None:
        while posts := await asyncio.to_thread(self._register.due_posts, POSTS):
            for post in posts:
                await self._post.send(post.body)
            await asyncio.to_thread(self._register.posted, [post.number for post in posts])

    # Moves

    async def _move_all(self) -> None:
        """Fetch and let go what is due, for ever, some files at a time."""
        while True:
            try:
                for entry in await asyncio.to_thread(self._register.due_moves, 2 * self._fetches):
                    if entry.file.id not in self._moving and len(self._moving) < self._fetches:
                        self._begin(entry)
            except Exception:
                get_logger().exception("moves wait")
            await _set_or_late(self._to_move)

    def _begin(self, entry: Entry) -> None:
        def forget(_move: "asyncio.Future[None]") -> None:
            self._moving.pop(entry.file.id, None)
            self.wake()

        move = asyncio.get_running_loop().run_in_executor(self._threads, self._move, entry)
        self._moving[entry.file.id] = move
        move.add_done_callback(forget)

    def _move(self, entry: Entry) -> None:
        try:
            if entry.state is State.ARRIVING:
                self._fetch(entry)
            else:
                self._let_go(entry.file)
        except Exception as error:
            reason = str(error) or type(error).__name__
            if not isinstance(error, (UserError, OSError)):
                get_logger().exception("internal fault: please report this")
            get_logger().warning("not placed yet", id=entry.file.id, name=entry.file.name, reason=reason)
            with contextlib.suppress(DBAPIError):  # it stays due
                self._register.put_off(entry.file.id, reason)

    def _fetch(self, entry: Entry) -> None:
        """Bring a file here that the other site has offered."""
        file, disk = entry.file, self._keeper.disk
        found = disk.find(file.id)
        if found and is_whole(found, file.size, file.blake3):
            self._keeper.keep_found(file.id)
            return
        there = self._peer.copy(file.id)
        if there is None or there.file != file:
            self._register.drop(entry, "the other site has no such file, or another one under this id")
            return
        part = disk.part(file.id)
        disk.make_room(file.size, part)
        if self._peer.fetch(file, part) != file.blake3:
            part.unlink()
            raise UserError("what came is not what was offered; it is fetched anew")
        self._keeper.keep_fetched(file.id)
        get_logger().info("placed here", id=file.id, name=file.name, bytes=file.size)

    def _let_go(self, file: File) -> None:
        """Let a file go once the other site has read its own copy and found it whole; have a bad one replaced."""
        there = self._peer.copy(file.id, read=True)
        if there is None or there.state is not State.HERE:
            raise UserError("the other site does not hold it yet")
        if there.bytes != "good":
            self._peer.mend(file, "fetch")
            raise UserError(f"the other site's copy is {there.bytes}; that site was asked to fetch it anew")
        self._keeper.let_go(file.id)
        get_logger().info("placed at the other site", id=file.id, name=file.name)


async def _set_or_late(event: asyncio.Event) -> None:
    """Wait until `event` is set, `LOOK` seconds at most; clear it."""
    try:
        await asyncio.wait_for(event.wait(), LOOK)
    except TimeoutError:
        return
    event.clear()
