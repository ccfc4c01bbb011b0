"""`delivery placed site`: the parts of one site, put together."""

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from fastapi import Depends, FastAPI
from prometheus_client import Gauge
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError

from delivery.database import open_database
from delivery.people.tokens import TokenFile
from delivery.placed.api import Api
from delivery.placed.disk import Disk
from delivery.placed.intake import Intake
from delivery.placed.keeping import Keeper
from delivery.placed.mover import Mover
from delivery.placed.peer import Peer
from delivery.placed.post import BROKERS, open_post
from delivery.placed.register import Register, State
from delivery.placed.rules import Site, find_rule
from delivery.placed.settings import SiteSettings
from delivery.web.app import bearer, create_app, serve
from ministream.base.errors import UserError
from ministream.base.log import get_logger


def main(settings: SiteSettings) -> int:
    """Serve one site until SIGINT or SIGTERM."""
    return serve(make_app(settings), settings.host, settings.listening_port)


def make_app(settings: SiteSettings) -> FastAPI:
    """Put a site together, and mend what a kill left.

    Raises
    ------
    UserError
        If a folder, the database, the rule or the tokens are not as they must be.
    """
    rule, tokens = find_rule(settings.rule), _tokens(settings)
    disk = Disk(settings.datadir, settings.spare)
    engine = open_database(settings.database or database_url(settings.site, settings.datadir, os.environ))
    register = Register(engine, settings.site)
    keeper = Keeper(register, disk)
    keeper.recover()
    peer = Peer(settings.peer_url, settings.peer_token)
    _warn_of_open_lines(settings)
    post = open_post(settings.broker_url, settings.site, peer)
    mover = Mover(keeper, peer, post, f"{settings.rule}; tie: {settings.tie}", settings.fetches)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        mover.start()
        try:
            yield
        finally:
            await mover.stop()
            peer.close()
            engine.dispose()
            disk.close()

    title = f"Placed storage: site {settings.site}"
    app = create_app(title, description=__doc__ or "", lifespan=lifespan, stall=settings.stall)
    intake = Intake(disk, rule, settings.tie, settings.largest, settings.stall, settings.uploads)
    who = bearer(tokens.bearer)
    client = Depends(lambda: "anybody") if settings.insecure_no_auth else who
    Api(keeper, intake, mover, client, who, settings.peer_external or settings.peer_url).add_to(app)
    _measure(app, register)
    return app


def database_url(site: Site, folder: Path, environment: Mapping[str, str]) -> str:
    """Return the URL that ZERO_DRIVER, …_USER, _PASSWORD, _HOST, _PORT and _DB_NAME (or ONE_…) make.

    Without a driver, it is that of a SQLite file in `folder`.

    Raises
    ------
    UserError
        If the variables make no URL.
    """
    prefix = f"{site.upper()}_"
    driver, port = environment.get(f"{prefix}DRIVER", ""), environment.get(f"{prefix}PORT", "")
    if not driver:
        return f"sqlite:///{folder.absolute()}/site.db"
    if port and not port.isdecimal():
        raise UserError(f"environment {prefix}PORT: {port!r} is no number")
    user, password, host, name = (environment.get(prefix + key) for key in ("USER", "PASSWORD", "HOST", "DB_NAME"))
    try:
        url = URL.create(driver, user, password, host, int(port) if port else None, name)
        return url.render_as_string(hide_password=False)
    except (ArgumentError, TypeError) as error:
        raise UserError(f"environment {prefix}DRIVER, …: {error}") from error


def _tokens(settings: SiteSettings) -> TokenFile:
    """Return who may ask; the other site must be among them even where everybody may."""
    if not settings.tokens.exists():
        raise UserError(f"token file {settings.tokens} is not there; make it by `delivery token add`")
    if settings.insecure_no_auth:
        get_logger().warning("everybody may upload and download: this site asks them for no tokens")
    return TokenFile(settings.tokens)


def _warn_of_open_lines(settings: SiteSettings) -> None:
    for url, what in {settings.peer_url: "this site's token and files", settings.broker_url: "names of files"}.items():
        parts = urlsplit(url)
        if parts.scheme in ("http", *BROKERS) and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
            get_logger().warning(f"{what} travel in the clear; put TLS before it", to=parts.hostname)


def _measure(app: FastAPI, register: Register) -> None:
    registry = app.state.registry
    files = Gauge("delivery_placed_files", "Files on record, by state.", ("state",), registry=registry)
    for state in State:
        files.labels(state).set_function(partial(register.count, state))
    size = Gauge("delivery_placed_bytes", "Bytes of the files that are here.", registry=registry)
    size.set_function(register.size)
    aside = Gauge("delivery_placed_set_aside", "Messages that were set aside.", registry=registry)
    aside.set_function(register.count_aside)
