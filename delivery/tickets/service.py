"""`delivery tickets`: the parts of the service, put together."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from fastapi import FastAPI
from prometheus_client import Gauge

from delivery.database import open_database
from delivery.files.catalogue import Catalogue
from delivery.files.roots import Root
from delivery.people.accounts import Accounts
from delivery.people.api import Door, Terms, add_routes
from delivery.people.logins import Logins
from delivery.people.secrets import secret_key
from delivery.people.tokens import TokenFile
from delivery.stores import Store
from delivery.tickets import pages
from delivery.tickets.api import Api
from delivery.tickets.book import Book
from delivery.tickets.desk import Desk
from delivery.tickets.dispatcher import Dispatcher
from delivery.tickets.events import Bell
from delivery.tickets.links import Links
from delivery.tickets.models import State
from delivery.tickets.settings import TicketSettings
from delivery.tickets.shelf import Shelf
from delivery.web.app import create_app, serve
from ministream.base.errors import UserError


def main(settings: TicketSettings) -> int:
    """Serve tickets until asked to stop."""
    return serve(make_app(settings), settings.host, settings.port)


def make_app(settings: TicketSettings) -> FastAPI:
    """Put the service together.

    Raises
    ------
    UserError
        If a folder, the database or the store is not as it must be.
    """
    engine = open_database(settings.database)
    root, catalogue = Root(settings.root, settle=settings.settle), Catalogue(engine)
    book, bell = Book(engine), Bell()
    book.listen(bell.ring)
    shelf = Shelf(root, catalogue, _store(settings, root), _attic(settings), space=settings.space, spare=settings.spare)
    dispatcher = Dispatcher(
        book,
        shelf,
        preparations=settings.preparations,
        deletions=settings.deletions,
        patience=settings.patience,
        memory=settings.memory,
        forget=lambda paths: catalogue.forget(root, paths),
    )

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        dispatcher.start()
        try:
            yield
        finally:
            dispatcher.stop()
            engine.dispose()

    app = create_app("Tickets", description="Downloads that are asked for, prepared, fetched.", lifespan=lifespan)
    accounts, logins = Accounts(engine), Logins(engine, settings.session)
    door = Door(accounts, logins, _operators(settings), is_open=settings.insecure_no_auth)
    terms = Terms(settings.licence, settings.quota) if settings.registration else None
    add_routes(app, accounts, logins, door, terms)
    desk = Desk(settings, book, shelf, dispatcher, accounts)
    Api(settings, desk, book, bell, door, Links(secret_key(engine, "links"))).add_to(app)
    pages.add_to(app)
    _measure(app, book)
    return app


def _store(settings: TicketSettings, root: Root) -> Store:
    store = Store(settings.store)
    if "://" not in settings.store and Path(settings.store).resolve().is_relative_to(root.folder):
        raise UserError(f"store {settings.store} lies in the folder that is offered; give another --store")
    return store


def _attic(settings: TicketSettings) -> Store | None:
    return Store(settings.attic) if settings.attic else None


def _operators(settings: TicketSettings) -> Callable[[str], str | None]:
    if settings.tokens is None:
        return lambda _token: None
    if not settings.tokens.exists():
        raise UserError(f"token file {settings.tokens} is not there; make it by `delivery token add`")
    return TokenFile(settings.tokens).bearer


def _measure(app: FastAPI, book: Book) -> None:
    gauge = Gauge("delivery_tickets", "Tickets, by state.", ("state",), registry=app.state.registry)
    for state in (State.WAITING, State.PREPARING, State.READY):
        gauge.labels(state).set_function(partial(book.count, state))
