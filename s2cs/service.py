"""The gRPC services of a control server: messages in, messages out, and each refusal under its status code.

SciStream's `Control` and our `Gateway` share one shape: find out who calls, do what is asked, and answer. What the
caller can mend is told in one sentence; a fault of ours is logged, and told as one.
"""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc

from ministream.base import log
from ministream.base.errors import UserError
from s2cs.auth import Authenticator, Identity, Refused, Unreachable, read_token
from s2cs.gateway import Gateway
from s2cs.policy import Denied
from s2cs.ports import PortsExhausted
from s2cs.proto import scistream_pb2 as pb
from s2cs.proto import scistream_pb2_grpc as rpc
from s2cs.sessions import IllegalTransition, UnknownSession
from s2cs.terms import AlreadyKnown, Answer, Draining, Interrupted, NotYours, TimedOut, Unmet, View, Wish

MAX_SENTENCE = 1000
"""Characters of a refusal: it travels in a header, which must stay small."""

CODES: tuple[tuple[type[UserError], grpc.StatusCode], ...] = (
    (Unreachable, grpc.StatusCode.UNAVAILABLE),
    (Refused, grpc.StatusCode.UNAUTHENTICATED),
    (Denied, grpc.StatusCode.PERMISSION_DENIED),
    (NotYours, grpc.StatusCode.PERMISSION_DENIED),
    (AlreadyKnown, grpc.StatusCode.ALREADY_EXISTS),
    (PortsExhausted, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (IllegalTransition, grpc.StatusCode.FAILED_PRECONDITION),
    (Unmet, grpc.StatusCode.FAILED_PRECONDITION),
    (UnknownSession, grpc.StatusCode.NOT_FOUND),
    (TimedOut, grpc.StatusCode.DEADLINE_EXCEEDED),
    (Interrupted, grpc.StatusCode.ABORTED),
    (Draining, grpc.StatusCode.UNAVAILABLE),
    (UserError, grpc.StatusCode.INVALID_ARGUMENT),
)
"""The code of each refusal: the first that fits."""

T = TypeVar("T")
Context = grpc.aio.ServicerContext[Any, Any]


class _Desk:
    """Lets in who is known, and turns refusals into status codes."""

    def __init__(self, gateway: Gateway, authenticator: Authenticator) -> None:
        self._gateway, self._authenticator = gateway, authenticator

    async def _serve(self, context: Context, call: str, work: Callable[[Identity], Awaitable[T]]) -> T:
        try:
            identity = await self._authenticator.identify(read_token(context.invocation_metadata() or ()))
            return await work(identity)
        except UserError as error:
            sentence = " ".join(str(error).split())[:MAX_SENTENCE]
            code = next(code for kind, code in CODES if isinstance(error, kind))
            log.get_logger().warning("refused", call=call, code=code.name, reason=sentence, peer=context.peer())
        except Exception:
            log.get_logger().exception("internal fault: please report this", call=call)
            code, sentence = grpc.StatusCode.INTERNAL, "a fault of the control server; its log tells the operator more"
        await context.abort(code, sentence)
        raise AssertionError("abort raises")  # which its types do not say


class ControlService(_Desk, rpc.ControlServicer):
    """SciStream's protocol."""

    async def req(self, request: pb.Request, context: Context) -> pb.Response:
        """Ask for a session's listeners; answers once it is greeted."""
        wish = Wish(
            uid=request.uid,
            role=request.role,
            num_conn=request.num_conn,
            rate=request.rate,
            encrypted=request.encrypted,
            greeted=request.greeted,
            targets=tuple(request.targets),
        )
        return await self._serve(context, "req", lambda who: _response(self._gateway.request(who, wish)))

    async def hello(self, request: pb.Hello, context: Context) -> pb.AppResponse:
        """Greet a session."""

        async def work(who: Identity) -> pb.AppResponse:
            listeners = self._gateway.hello(who, request.uid, request.role, tuple(request.prod_listeners))
            message = "greeted" if listeners else "the greeting is kept for the request that it belongs to"
            return pb.AppResponse(message=message, listeners=map(str, listeners))

        return await self._serve(context, "hello", work)

    async def update(self, request: pb.UpdateTargets, context: Context) -> pb.Response:
        """Name the targets, and open the proxy."""
        targets = tuple(request.remote_listeners)

        def work(who: Identity) -> Awaitable[pb.Response]:
            return _response(self._gateway.update(who, request.uid, request.role, targets, request.peer_certificate))

        return await self._serve(context, "update", work)

    async def release(self, request: pb.Release, context: Context) -> pb.Response:
        """End a session."""
        await self._serve(context, "release", lambda who: self._gateway.release(who, request.uid))
        return pb.Response()


class GatewayService(_Desk, rpc.GatewayServicer):
    """What is ours: see sessions, and keep them."""

    async def list(self, request: pb.ListRequest, context: Context) -> pb.ListReply:
        """Tell the caller's sessions, or one of them."""
        views = await self._serve(context, "list", lambda who: self._gateway.views(who, request.uid))
        return pb.ListReply(sessions=[_session_state(view) for view in views])

    async def renew(self, request: pb.RenewRequest, context: Context) -> pb.RenewReply:
        """Begin a session's lease anew."""

        async def work(who: Identity) -> pb.RenewReply:
            return pb.RenewReply(lease_seconds=self._gateway.renew(who, request.uid))

        return await self._serve(context, "renew", work)


async def _response(answered: Awaitable[Answer]) -> pb.Response:
    answer = await answered
    return pb.Response(
        listeners=map(str, answer.listeners),
        prod_listeners=map(str, answer.targets),
        certificate=answer.certificate,
        lease_seconds=answer.lease,
        warnings=answer.warnings,
        proxy=answer.proxy,
    )


def _session_state(view: View) -> pb.SessionState:
    session, traffic = view.session, view.traffic
    now = session.clock()
    return pb.SessionState(
        uid=session.uid,
        role=session.role.value,
        state=session.state.value,
        owner=session.owner,
        proxy=session.kind,
        listeners=map(str, view.listeners),
        targets=map(str, session.targets),
        encrypted=session.encrypted,
        age_seconds=now - session.created,
        lease_left_seconds=max(0.0, session.lease_until - now),
        connections=traffic.connections,
        bytes_in=traffic.bytes_in,
        bytes_out=traffic.bytes_out,
        restarts=session.restarts,
        reason=session.reason,
    )
