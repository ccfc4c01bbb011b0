"""`delivery intake`: the parts of the service, put together."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from functools import partial

from fastapi import FastAPI
from prometheus_client import Gauge
from starlette.concurrency import run_in_threadpool
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response

from delivery.database import open_database
from delivery.people import api as people
from delivery.people.accounts import Accounts
from delivery.people.logins import Logins
from delivery.people.rights import NoLicence, OverQuota
from delivery.people.tokens import TokenFile
from delivery.upload.along import Along
from delivery.upload.appending import Tails
from delivery.upload.bodies import Room
from delivery.upload.intake import Intake, Refused, Terms
from delivery.upload.ledger import Ledger, State
from delivery.upload.routes import OwnDoor
from delivery.upload.settings import IntakeSettings
from delivery.upload.stores import Gone, NoRoom, open_store
from delivery.upload.taking import Taking
from delivery.upload.token import add_token_route
from delivery.upload.tus import EXPOSED, TusDoor
from delivery.web.app import LATER, create_app, serve
from ministream.base.errors import UserError
from ministream.base.log import get_logger

LOOK = 30.0
"""Seconds between two looks for what has expired."""

_LATER = 503
_STATUS = {NoLicence: 402, OverQuota: 429, NoRoom: 507, Gone: 410}


def main(settings: IntakeSettings) -> int:
    """Take uploads in until asked to stop."""
    if settings.old_clients_key:
        get_logger().warning("old clients are let in: what they send is proved by a key that is no secret")
    return serve(make_app(settings), settings.host, settings.port)


def make_app(settings: IntakeSettings) -> FastAPI:
    """Put the service together.

    Raises
    ------
    UserError
        If a folder, the database, the store or the target is not as it must be.
    """
    engine = open_database(settings.database)
    ledger, store = Ledger(engine, settings.expire), open_store(settings.store, settings.spare)
    key = settings.old_clients_key.encode()
    along = Along(ledger, store, key)
    terms = Terms(settings.space, settings.unknown_size, settings.memory)
    errands, tails = _Errands(settings), Tails(settings.spool)
    forward = errands.forward if settings.forward else None
    intake = Intake(ledger, store, along, terms, key, forward, tails.forget, settings.spool)
    taking = Taking(intake, settings.root_folders, settings.settle, errands.take)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        with ExitStack() as open_:
            open_.callback(engine.dispose)
            open_.callback(along.close)
            await run_in_threadpool(errands.begin, open_, intake, taking)
            expiring = asyncio.create_task(_expire(intake))
            try:
                yield
            finally:
                expiring.cancel()
                with suppress(asyncio.CancelledError):
                    await expiring

    app = create_app(
        "Intake", description="Files that come in verified chunks.", lifespan=lifespan, stall=settings.stall
    )
    accounts, logins = Accounts(engine), Logins(engine, settings.session)
    door = people.Door(accounts, logins, _operators(settings), is_open=settings.insecure_no_auth)
    account_terms = people.Terms(settings.licence, settings.quota) if settings.registration else None
    people.add_routes(app, accounts, logins, door, account_terms)
    add_token_route(app, accounts, logins, ledger)
    room = Room(settings.memory, settings.stall)
    OwnDoor(intake, door, room, taking, settings.stall, old=bool(key)).add_to(app)
    TusDoor(intake, door, room, tails, settings.stall).add_to(app)
    if settings.allow_origin:
        _let_browsers_in(app, settings.allow_origin)
    _tell_faults(app)
    _measure(app, ledger)
    return app


class _Errands:
    """What the service does by itself; loaded only if it is asked to, since its durable jobs take 30 MB."""

    def __init__(self, settings: IntakeSettings) -> None:
        self._settings = settings
        self._needed = bool(settings.forward or settings.roots)

    def forward(self, upload: str) -> None:
        """Send an upload on."""
        from delivery.upload import errands

        errands.forward(upload)

    def take(self, upload: str) -> None:
        """Take a file that lies here."""
        from delivery.upload import errands

        errands.take(upload)

    def begin(self, open_: ExitStack, intake: Intake, taking: Taking) -> None:
        """Begin, with what a kill has interrupted."""
        if not self._needed:
            intake.recover()
            return
        from delivery.upload import errands
        from delivery.upload.forward import Forwarding, open_target

        settings, send = self._settings, lambda _upload, _attempt: ""
        if settings.forward:
            target = open_target(settings.forward, settings.forward_token_file)
            send = Forwarding(intake.ledger, intake.store, target, settings.forward_attempts).forward
        open_.enter_context(errands.at_work(settings.database, errands.Work(taking.take, send)))
        intake.recover()
        for upload in intake.ledger.to_take():
            errands.take(upload)
        for upload in intake.ledger.to_forward() if settings.forward else ():
            errands.forward(upload)


async def _expire(intake: Intake) -> None:
    while True:
        try:
            await run_in_threadpool(intake.expire)
            await run_in_threadpool(intake.ledger.forget_refused_logins)
        except Exception as error:  # the disk or the database may be back at the next look
            get_logger().error("can't let uploads expire", reason=str(error))
        await asyncio.sleep(LOOK)


def _operators(settings: IntakeSettings) -> Callable[[str], str | None]:
    if settings.insecure_no_auth:
        get_logger().warning("everybody may send: this intake asks for no login")
    if settings.tokens is None:
        return lambda _token: None
    if not settings.tokens.exists():
        raise UserError(f"token file {settings.tokens} is not there; make it by `delivery token add`")
    return TokenFile(settings.tokens).bearer


def _let_browsers_in(app: FastAPI, origins: str) -> None:
    allowed = [origin.strip() for origin in origins.split(",")]
    app.add_middleware(
        CORSMiddleware, allow_origins=allowed, allow_methods=["*"], allow_headers=["*"], expose_headers=EXPOSED
    )


def _tell_faults(app: FastAPI) -> None:
    app.add_exception_handler(Refused, lambda _request, error: _told(getattr(error, "status"), error))  # noqa: B009
    for fault, status in _STATUS.items():
        app.add_exception_handler(fault, lambda _request, error, status=status: _told(status, error))


def _told(status: int, error: Exception) -> Response:
    return JSONResponse({"detail": str(error)}, status, LATER if status == _LATER else None)


def _measure(app: FastAPI, ledger: Ledger) -> None:
    gauge = Gauge("delivery_uploads", "Uploads, by state.", ("state",), registry=app.state.registry)
    for state in State:
        gauge.labels(state).set_function(partial(ledger.count, state))
