"""What a control server refuses, and what it survives."""

import asyncio
import contextlib
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from s2cs.auth import Identity
from s2cs.auth.tokens import TokenFile
from s2cs.proto import scistream_pb2 as pb
from s2cs.server import ControlServer
from s2cs.site import init_site
from tests.integration.gateways import (
    PROD_HOST,
    Code,
    Side,
    fresh,
    options,
    proxies,
    refusal,
    request,
    run,
    serving,
    some_ports,
    until,
)

pytestmark = pytest.mark.needs("haproxy")


def test_refusals_each_with_code_and_sentence(tmp_path: Path) -> None:
    async def work() -> None:
        async with serving(tmp_path, port_range=some_ports(4), allow="127.0.0.1/32:5000-6000") as side:
            good = {"greeted": True, "targets": ["127.0.0.1:5560"]}
            uid = fresh()
            certificate = (await side.req(request(uid, **good))).certificate
            update = pb.UpdateTargets(uid=uid, role="PROD", remote_listeners=["127.0.0.1:5560"])
            refused: list[tuple[Any, Code, str]] = [
                (side.req(request(uid, **good)), Code.ALREADY_EXISTS, "known already"),
                (side.req(request(fresh(), encrypted=False, **good)), Code.FAILED_PRECONDITION, "--plaintext"),
                (side.req(request(fresh(), rate=10000, **good)), Code.FAILED_PRECONDITION, "--accept-any-rate"),
                (side.req(request(fresh(), num_conn=4, **good)), Code.RESOURCE_EXHAUSTED, "sessions leave 3 of 4"),
                (side.req(request(fresh(), num_conn=0, **good)), Code.INVALID_ARGUMENT, "num_conn"),
                (side.req(request(fresh(), num_conn=-(2**31), **good)), Code.INVALID_ARGUMENT, "num_conn"),
                (side.req(request(fresh(), rate=-1, **good)), Code.INVALID_ARGUMENT, "rate"),
                (side.req(request("../../etc", **good)), Code.INVALID_ARGUMENT, "uid"),
                (side.req(request("", **good)), Code.INVALID_ARGUMENT, "uid"),
                (side.req(request("u" * 65, **good)), Code.INVALID_ARGUMENT, "uid"),
                (side.req(request(fresh(), "BOTH", **good)), Code.INVALID_ARGUMENT, "role"),
                (side.req(request(fresh(), greeted=True)), Code.INVALID_ARGUMENT, "addresses"),
                (side.req(request(fresh(), greeted=True, targets=["x"])), Code.INVALID_ARGUMENT, "HOST:PORT"),
                (side.update(pb.UpdateTargets(uid=fresh(), role="PROD")), Code.NOT_FOUND, "no session"),
                (side.update(pb.UpdateTargets(uid=uid, role="CONS")), Code.INVALID_ARGUMENT, "PROD"),
                (side.update(pb.UpdateTargets(uid=uid)), Code.INVALID_ARGUMENT, "addresses"),
                (side.update(update), Code.FAILED_PRECONDITION, "no certificate"),
                (side.release(pb.Release(uid=fresh())), Code.NOT_FOUND, "no session"),
                (side.renew(pb.RenewRequest(uid=fresh())), Code.NOT_FOUND, "no session"),
                (side.list(pb.ListRequest(uid=fresh())), Code.NOT_FOUND, "no session"),
                (side.hello(pb.Hello(uid="a b", role="PROD")), Code.INVALID_ARGUMENT, "uid"),
                (side.hello(pb.Hello(uid=fresh(), role="")), Code.INVALID_ARGUMENT, "role"),
            ]
            for address in ("10.1.2.3:5560", "127.0.0.1:22", "0.0.0.0:5560", "169.254.169.254:5560", "[::1]:5560"):
                wrong = pb.UpdateTargets(uid=uid, remote_listeners=[address], peer_certificate=certificate)
                refused.append((side.update(wrong), Code.PERMISSION_DENIED, address))
            for call, code, words in refused:
                found, text = await refusal(call)
                assert (found, words in text) == (code, True), text
            update.peer_certificate = "-----BEGIN CERTIFICATE-----\nrubbish\n-----END CERTIFICATE-----\n"
            assert (await refusal(side.update(update)))[0] is Code.INVALID_ARGUMENT
            update.peer_certificate = certificate
            await side.update(update)  # none of the refusals did any harm
            assert await refusal(side.update(update)) == (
                Code.FAILED_PRECONDITION,
                f"session {uid} is streaming and cannot become streaming again; release it and request a new session",
            )
            await side.release(pb.Release(uid=uid))
            code, text = await refusal(side.req(request(uid, **good)))
            assert (code, "released" in text) == (Code.ALREADY_EXISTS, True)
            assert side.server.gateway.free_ports == 4

    run(work())


def test_who_is_not_known_or_not_the_owner_gets_nothing(tmp_path: Path) -> None:
    now = time.time()
    site, first = init_site(tmp_path / "site", ["localhost"])
    tokens = TokenFile(site.tokens)
    second = tokens.add("berta", 60)
    late = TokenFile(site.tokens, clock=lambda: now - 100).add("carl", 50)
    secured = {
        "insecure_no_auth": False,
        "ssl": True,
        "server_crt": str(site.certificate),
        "server_key": str(site.key),
        "tokens": str(site.tokens),
    }

    async def work() -> None:
        async with ControlServer(options(tmp_path, **secured)) as server:
            trust = grpc.ssl_channel_credentials(site.ca.read_bytes())
            override = (("grpc.ssl_target_name_override", "localhost"),)
            async with grpc.aio.secure_channel(f"{PROD_HOST}:{server.port}", trust, override) as channel:
                side, uid = Side(server, channel), fresh()
                calls: dict[str, tuple[Any, Any]] = {
                    "req": (side.req, request(uid, greeted=True, targets=["127.0.0.1:9"])),
                    "hello": (side.hello, pb.Hello(uid=uid, role="PROD", prod_listeners=["127.0.0.1:9"])),
                    "update": (side.update, pb.UpdateTargets(uid=uid, remote_listeners=["127.0.0.1:9"])),
                    "renew": (side.renew, pb.RenewRequest(uid=uid)),
                    "list": (side.list, pb.ListRequest(uid=uid)),
                    "release": (side.release, pb.Release(uid=uid)),
                }
                unknown = {"": "no token", "INVALID_TOKEN": "not logged in", late: "expired", "s2cs_x": "unknown"}
                for token, words in unknown.items():
                    for method, message in calls.values():
                        code, text = await refusal(method(message, metadata=[("authorization", token)]))
                        assert (code, words in text) == (Code.UNAUTHENTICATED, True), text
                        assert not token or token == "INVALID_TOKEN" or token not in text
                mine, other = [("authorization", first)], [("authorization", f"Bearer {second}")]
                await side.req(calls["req"][1], metadata=mine)
                for name in ("hello", "update", "renew", "list", "release"):
                    method, message = calls[name]
                    code, text = await refusal(method(message, metadata=other))
                    assert (code, text) == (Code.PERMISSION_DENIED, f"session {uid} belongs to somebody else")
                assert (await refusal(side.req(calls["req"][1], metadata=other)))[0] is Code.ALREADY_EXISTS
                assert len((await side.list(pb.ListRequest(), metadata=other)).sessions) == 0
                assert len((await side.list(pb.ListRequest(), metadata=mine)).sessions) == 1
                await side.release(calls["release"][1], metadata=mine)

    run(work())


def test_a_stranger_cannot_greet_for_somebody_else(tmp_path: Path) -> None:
    """A greeting that comes first counts only for the request of the same person."""

    async def work() -> None:
        async with serving(tmp_path) as side:
            uid = fresh()
            gateway = side.server.gateway
            gateway.hello(Identity("berta", "local"), uid, "PROD", ("10.0.0.1:1",))
            waiting = asyncio.ensure_future(side.req(request(uid)))
            await until(lambda: gateway.counts()["requested"] == 1)
            await side.hello(pb.Hello(uid=uid, role="PROD", prod_listeners=["127.0.0.1:9"]))
            assert list((await waiting).prod_listeners) == ["127.0.0.1:9"]

    run(work())


TEXT = st.text(max_size=80)

UIDS = st.one_of(TEXT, st.sampled_from(["known", "other"]))

ROLES = st.one_of(TEXT, st.sampled_from(["PROD", "CONS"]))

ADDRESSES = st.lists(st.one_of(TEXT, st.sampled_from(["127.0.0.1:9", "0.0.0.0:1", "[::1]:22"])), max_size=5)

INT32 = st.one_of(st.integers(-(2**31), 2**31 - 1), st.integers(0, 3))

MESSAGES: dict[str, st.SearchStrategy[bytes]] = {
    "Control/req": st.builds(
        pb.Request,
        uid=UIDS,
        role=ROLES,
        num_conn=INT32,
        rate=INT32,
        encrypted=st.booleans(),
        greeted=st.just(True),
        targets=ADDRESSES,
    ).map(lambda message: message.SerializeToString()),
    "Control/hello": st.builds(pb.Hello, uid=UIDS, role=ROLES, prod_listeners=ADDRESSES).map(
        lambda message: message.SerializeToString()
    ),
    "Control/update": st.builds(
        pb.UpdateTargets, uid=UIDS, role=ROLES, remote_listeners=ADDRESSES, peer_certificate=TEXT
    ).map(lambda message: message.SerializeToString()),
    "Control/release": st.builds(pb.Release, uid=TEXT).map(lambda message: message.SerializeToString()),
    "Gateway/list": st.builds(pb.ListRequest, uid=UIDS).map(lambda message: message.SerializeToString()),
    "Gateway/renew": st.builds(pb.RenewRequest, uid=UIDS).map(lambda message: message.SerializeToString()),
}

CALLS = st.sampled_from(sorted(MESSAGES)).flatmap(
    lambda name: st.tuples(st.just(name), st.one_of(MESSAGES[name], st.binary(max_size=300)))
)

MENDABLE = set(Code) - {Code.INTERNAL, Code.UNKNOWN, Code.UNIMPLEMENTED, Code.UNAVAILABLE}


def test_whatever_is_sent_the_next_good_request_is_served(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Messages of the right shape and nonsense inside, and bytes that are no message at all."""

    async def send(side: Side, calls: list[tuple[str, bytes]]) -> None:
        answers: list[tuple[Code, str]] = []
        for name, body in calls:
            method = side.channel.unary_unary(f"/scistream.{name}")
            try:
                patience = 5 if name == "Control/req" else 60
                await asyncio.wait_for(method(body, metadata=[("authorization", "x")]), patience)
            except grpc.aio.AioRpcError as error:
                answers.append((error.code(), error.details() or ""))
            except TimeoutError:
                assert name == "Control/req"  # bytes that happen to be a good request wait for their hello
        assert all(code in MENDABLE or "DecodeError" in text for code, text in answers), (calls, answers)
        uid = fresh()
        await side.req(request(uid, greeted=True, targets=["127.0.0.1:9"]))
        await side.release(pb.Release(uid=uid))

    with asyncio.Runner() as runner:
        stack = contextlib.AsyncExitStack()
        side = runner.run(stack.enter_async_context(serving(tmp_path, request_timeout=10)))

        @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
        @given(st.lists(CALLS, min_size=1, max_size=6))
        def check(calls: list[tuple[str, bytes]]) -> None:
            runner.run(send(side, calls))

        check()
        huge = request(fresh(), greeted=True, targets=["127.0.0.1:9"] * 100_000)
        assert runner.run(refusal(side.req(huge)))[0] is Code.RESOURCE_EXHAUSTED
        runner.run(send(side, []))
        runner.run(stack.aclose())
    assert "internal fault" not in capfd.readouterr().out
    assert proxies(tmp_path) == []
