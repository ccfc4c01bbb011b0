"""Memory for bodies: it is waited for, but neither without end nor in vain."""

import asyncio

import pytest

from delivery.upload.bodies import Room
from delivery.upload.intake import Refused


def test_nobody_waits_for_more_than_there_is():
    async def ask() -> None:
        async with Room(10, patience=1e9).of(11):
            pass

    with pytest.raises(Refused, match="11 bytes of memory, of 10") as refused:
        asyncio.run(ask())
    assert refused.value.status == 400


def test_whoever_waits_for_too_long_is_told_to_come_again_and_takes_nothing():
    async def ask() -> None:
        room = Room(10, patience=0.01)
        async with room.of(6):
            with pytest.raises(Refused, match="try again") as refused:
                async with room.of(5):
                    pass
            assert refused.value.status == 503
        async with room.of(10):
            pass

    asyncio.run(ask())
