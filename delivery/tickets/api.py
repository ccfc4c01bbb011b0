"""The routes of tickets."""

import time
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from delivery.database import LARGEST
from delivery.files.version import SourceChanged
from delivery.people.accounts import Person
from delivery.people.api import Door, Given
from delivery.people.rights import NoLicence, OverQuota
from delivery.stores import StoreFailed
from delivery.tickets.book import Book, Ticket
from delivery.tickets.desk import Desk, Refused
from delivery.tickets.events import Bell, stream
from delivery.tickets.links import Links
from delivery.tickets.models import OVER, Accepted, DeletionRequest, DownloadRequest, Files, State, Status
from delivery.tickets.settings import TicketSettings
from delivery.tickets.shelf import digest_header
from delivery.tickets.sources import Unavailable
from delivery.web.bodies import documented, large_json
from delivery.web.ranges import RangeResponse

LATEST = 200
"""Tickets that are over which a list has at most."""

RETRY_AFTER = {"Retry-After": "2"}
"""Header of answers that say: later."""


class Signature:
    """What a signed link says of itself, if the request came by one."""

    def __init__(
        self, until: Annotated[int, Query(ge=0)] = 0, signature: Annotated[str, Query(max_length=64)] = ""
    ) -> None:
        self.until, self.signature = until, signature


class Api:
    """The routes, and what they share.

    Parameters
    ----------
    settings, desk, book, bell, door, links
        The service's parts.
    clock
        Returns the seconds since 1970.
    """

    def __init__(
        self,
        settings: TicketSettings,
        desk: Desk,
        book: Book,
        bell: Bell,
        door: Door,
        links: Links,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings, self._desk, self._book, self._bell = settings, desk, book, bell
        self._door, self._links, self._clock = door, links, clock

    def base(self, request: Request) -> str:
        """Return the address that links begin with: the configured one, or the one that was asked."""
        return (self._settings.external or str(request.base_url)).rstrip("/")

    def accepted(self, request: Request, name: str) -> Accepted:
        """Say where to look for a new ticket."""
        place = f"{self.base(request)}/ticket/{name}"
        return Accepted(ticketId=name, status=f"{place}/status", result=f"{place}/result")

    def add_to(self, app: FastAPI) -> None:
        """Add the routes, and the answers to what goes wrong."""
        routes = APIRouter(tags=["tickets"])
        self._add_requests(routes)
        self._add_ticket(routes)
        self._add_result(routes)
        app.include_router(routes)
        app.add_exception_handler(Refused, _on_refused)
        app.add_exception_handler(Unavailable, _on_unavailable)
        app.add_exception_handler(SourceChanged, lambda _request, error: _told(409, str(error)))
        app.add_exception_handler(StoreFailed, lambda _request, error: _told(503, str(error)))
        app.add_exception_handler(NoLicence, lambda _request, error: _told(402, str(error)))
        app.add_exception_handler(OverQuota, lambda _request, error: _told(429, str(error)))

    def _add_requests(self, routes: APIRouter) -> None:
        person, operator = Depends(self._door.person), Depends(self._door.operator)

        @routes.post("/download", status_code=202, openapi_extra=documented(DownloadRequest))
        def download(
            request: Request,
            who: Annotated[Person, person],
            wanted: Annotated[DownloadRequest, large_json(DownloadRequest)],
        ) -> Accepted:
            """Ask for files; they are packed when it is the ticket's turn."""
            return self.accepted(request, self._desk.ask(who, wanted))

        @routes.post("/deletion", status_code=202, openapi_extra=documented(DeletionRequest))
        def deletion(
            request: Request,
            who: Annotated[Person, operator],
            unwanted: Annotated[DeletionRequest, large_json(DeletionRequest)],
        ) -> Accepted:
            """Have stored files deleted: those of the present versions only."""
            return self.accepted(request, self._desk.ask_deletion(who, unwanted))

        @routes.get("/tickets")
        def tickets(request: Request, who: Annotated[Person, person]) -> list[Status]:
            """List one's tickets, or everybody's to an operator: in order of their turn, then the last ones over."""
            owner = None if who.is_operator else who.name
            current = self._book.in_state(State.PREPARING, State.WAITING, State.READY, owner=owner)
            over = self._book.in_state(*OVER, owner=owner, latest=LATEST)
            return [self._desk.status(ticket, self.base(request), look=False) for ticket in [*current, *over]]

    def _add_ticket(self, routes: APIRouter) -> None:
        person = Depends(self._door.person)

        @routes.get("/ticket/{name}/status", response_model=Status)
        def status(
            request: Request,
            name: str,
            who: Annotated[Person, person],
            accept: Annotated[str, Header()] = "",
            last_event_id: Annotated[int, Header(ge=0, le=LARGEST)] = 0,
        ) -> Response:
            """Follow a ticket as server-sent events; or see it once, as JSON, if that is what is accepted."""
            ticket = self._desk.ticket(who, name)
            if "application/json" in accept:
                return JSONResponse(self._desk.status(ticket, self.base(request)).model_dump())
            if ticket.state in OVER and not self._book.events_after(name, last_event_id):
                return Response(status_code=204)
            lines = stream(self._book, self._bell, name, last_event_id, self._settings.heartbeat)
            headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
            return StreamingResponse(lines, media_type="text/event-stream", headers=headers)

        @routes.post("/ticket/{name}/files", openapi_extra=documented(Files))
        def append(
            request: Request,
            name: str,
            who: Annotated[Person, person],
            more: Annotated[Files, large_json(Files)],
        ) -> Status:
            """Add files to a ticket that has not started."""
            self._desk.append(who, name, more.paths)
            return self._desk.status(self._desk.ticket(who, name), self.base(request))

        @routes.post("/ticket/{name}/retry")
        def retry(request: Request, name: str, who: Annotated[Person, person]) -> Status:
            """Try again what failed, was cancelled or expired."""
            self._desk.retry(who, name)
            return self._desk.status(self._desk.ticket(who, name), self.base(request))

        @routes.delete("/ticket/{name}", status_code=204)
        def cancel(name: str, who: Annotated[Person, person]) -> Response:
            """Cancel a ticket; what was prepared for it alone is deleted."""
            self._desk.cancel(who, name)
            return Response(status_code=204)

    def _add_result(self, routes: APIRouter) -> None:
        @routes.post("/ticket/{name}/link")
        def link(request: Request, name: str, who: Annotated[Person, Depends(self._door.person)]) -> dict[str, Any]:
            """Make a link to the result that needs no login; good as long as the result."""
            ticket = self._desk.ticket(who, name)
            if ticket.state != State.READY:
                raise Refused(409, f"this ticket is {ticket.state}, not ready: look at its status")
            return {"url": self._links.make(self.base(request), name, ticket.expires), "until": ticket.expires}

        @routes.api_route("/ticket/{name}/result", methods=["GET", "HEAD"], response_class=Response)
        def result(
            name: str, given: Given, signed: Annotated[Signature, Depends()], volume: Annotated[int, Query(ge=1)] = 1
        ) -> Response:
            """Fetch what was prepared, whole or in ranges."""
            fetched = self._desk.fetch(self._fetchable(name, given, signed), volume)

            def count(_start: int, stop: int) -> None:
                if stop == fetched.content.length:
                    self._book.count_download(name, volume - 1)

            headers = {**digest_header(fetched.volume), "X-Source": fetched.source}
            return RangeResponse(fetched.content, filename=fetched.name, headers=headers, on_sent=count)

    def _fetchable(self, name: str, given: Given, signed: Signature) -> Ticket:
        """Return the ticket whose result a request may have: by a good link, or by its bearer."""
        if not signed.signature:
            return self._desk.ticket(self._door.person(given), name)
        ticket = self._book.get(name)
        if ticket is None or not self._links.is_good(name, signed.until, signed.signature, self._clock()):
            raise HTTPException(403, "this link is not one of ours, or no longer good: ask for another")
        return ticket


def _told(status: int, detail: str, **more: Any) -> Response:
    return JSONResponse({"detail": detail, **more}, status, RETRY_AFTER if status in (409, 429, 503) else None)


def _on_refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)  # noqa: S101 - registered for it
    return _told(error.status, error.detail, **error.more)


def _on_unavailable(_request: Request, error: Exception) -> Response:
    assert isinstance(error, Unavailable)  # noqa: S101 - registered for it
    return _told(404, str(error), files=[item._asdict() for item in error.refused])
