"""A uid that was used before the control server was restarted opens nothing after it."""

import signal
from pathlib import Path

import pytest

from s2cs.proto import scistream_pb2 as pb
from tests.integration.gateways import (
    Code,
    converse,
    echo,
    open_plainly,
    process,
    proxies,
    refusal,
    request,
    run,
    some_ports,
)

pytestmark = pytest.mark.needs("haproxy")


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_replayed_request_is_refused_after_a_restart(tmp_path: Path, end: signal.Signals) -> None:
    async def work() -> None:
        words = ("--port", "0", "--port-range", some_ports(50))
        async with echo() as service:
            async with process(tmp_path, *words) as (first, side):
                used, listener = await open_plainly(side, service)
                assert await converse(listener, b"hello\n") == b"hello\n"
                await side.release(pb.Release(uid=used))
                await first.end(end)
            async with process(tmp_path, *words) as (second, side):
                replayed = request(used, encrypted=False, greeted=True, targets=[service])
                said = f"uid {used} is known already (its session is released); request with a fresh uid"
                assert await refusal(side.req(replayed)) == (Code.ALREADY_EXISTS, said)
                code, text = await refusal(side.renew(pb.RenewRequest(uid=used)))
                assert (code, "is over: released, released by the user" in text) == (Code.NOT_FOUND, True)
                uid, listener = await open_plainly(side, service)
                assert await converse(listener, b"again\n") == b"again\n"
                await side.release(pb.Release(uid=uid))
                assert await second.end(signal.SIGTERM) == 0
        assert proxies(tmp_path) == []
        assert list((tmp_path / "state" / "sessions").iterdir()) == []

    run(work())
