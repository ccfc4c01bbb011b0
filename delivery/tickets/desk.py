"""The desk: what people may ask of tickets, whatever way their requests come in."""

from typing import Any, Literal, NamedTuple

from delivery.files.roots import Found
from delivery.people.accounts import Accounts, Person
from delivery.people.rights import DAY, check_licence, check_quota
from delivery.tickets.admission import turn
from delivery.tickets.book import Book, Ticket
from delivery.tickets.dispatcher import Dispatcher
from delivery.tickets.models import OVER, DeletionRequest, DownloadRequest, Kind, State, Status, Volume
from delivery.tickets.settings import TicketSettings
from delivery.tickets.shelf import Shelf
from delivery.tickets.sources import key_of, look_again, room_for, select_files
from delivery.web.ranges import Content


class Refused(Exception):  # noqa: N818 - an answer
    """A request is refused; `status` is HTTP's word for why, `more` goes into the answer's body."""

    def __init__(self, status: int, detail: str, **more: Any) -> None:
        super().__init__(detail)
        self.status, self.detail, self.more = status, detail, more


class Fetched(NamedTuple):
    """A volume that is ready to be sent."""

    content: Content
    name: str
    volume: dict[str, Any]
    source: str


class Desk:
    """Takes requests for tickets of people whose identity is known.

    Parameters
    ----------
    settings, book, shelf, dispatcher, accounts
        The service's parts.
    """

    def __init__(
        self, settings: TicketSettings, book: Book, shelf: Shelf, dispatcher: Dispatcher, accounts: Accounts
    ) -> None:
        self._settings, self._book, self._shelf = settings, book, shelf
        self._dispatcher, self._accounts = dispatcher, accounts

    def ask(self, person: Person, request: DownloadRequest) -> str:
        """Queue a download and return its ticket.

        Raises
        ------
        Refused
            If the person may not, or not so much, or it would never fit.
        Unavailable
            If a file can't be had.
        """
        check_licence(person, self._book.clock())
        keep = self._keep(request)
        files = select_files(self._shelf.root, request.paths)
        derived = self._derived(files, prepare=request.prepare, volume=request.volume, then=request.then)
        self._check_quota(person, files)
        lane = self._lane(person, request, Kind.DOWNLOAD)
        asked = {"keep": keep, "most_downloads": request.downloads}
        return self._book.add(files, **lane, **derived, **asked)

    def ask_deletion(self, person: Person, request: DeletionRequest) -> str:
        """Queue the deletion of stored files and return its ticket; for operators."""
        files = select_files(self._shelf.root, request.paths)
        derived = {"prepare": False, "volume": 0, "size": 0, "key": ""}
        rest = {"keep": 0.0, "then": "delete", "most_downloads": 0}
        return self._book.add(files, **self._lane(person, request, Kind.DELETION), **derived, **rest)

    def append(self, person: Person, name: str, paths: list[str]) -> None:
        """Add files to a ticket that has not started."""
        ticket = self.ticket(person, name)
        if ticket.kind != Kind.DOWNLOAD:
            raise Refused(409, "files are added to downloads only: ask for another deletion")
        check_licence(person, self._book.clock())
        more = select_files(self._shelf.root, paths)
        self._check_quota(person, more, tickets=0)

        def contents(before: list[Found]) -> tuple[list[Found], dict[str, Any]]:
            merged = {found.path: found for found in [*before, *more]}
            files = [merged[path] for path in sorted(merged)]
            return files, self._derived(files, prepare=ticket.prepare, volume=ticket.volume, then=ticket.then)

        if not self._book.edit_files(name, contents):
            raise Refused(409, "this ticket has started: ask for a new one, linked to it by `after` if need be")

    def ticket(self, person: Person, name: str) -> Ticket:
        """Return a ticket of this person's, or anybody's to an operator; all others seem not to exist."""
        ticket = self._book.get(name)
        if ticket is None or not (person.is_operator or ticket.owner == person.name):
            raise Refused(404, f"there is no ticket {name}")
        return ticket

    def cancel(self, person: Person, name: str) -> None:
        """End a ticket, whatever its state; what was prepared for it alone is dropped."""
        self.ticket(person, name)
        among = [state for state in State if state not in OVER]
        self._book.change(name, State.CANCELLED, among=among, reason=f"cancelled by {person.name}")

    def retry(self, person: Person, name: str) -> None:
        """Queue a ticket again that failed, was cancelled or expired; for the present versions of its files."""
        ticket = self.ticket(person, name)
        change = look_again(self._shelf.root, self._book.files(name))
        if change.missing:
            raise Refused(410, "files of this ticket have been deleted", files=change.missing)
        now, patience = self._book.clock(), self._settings.patience
        values: dict[str, Any] = {
            "attempts": 0,
            "not_before": 0.0,
            "expires": None,
            "missing": [],
            "wait_until": now + patience,
        }
        among = [State.FAILED, State.CANCELLED, State.EXPIRED, State.GONE]
        if ticket.kind == Kind.DOWNLOAD:
            values |= self._derived(change.files, prepare=ticket.prepare, volume=ticket.volume, then=ticket.then)
        reason = f"tried again by {person.name}"
        if not self._book.replace_files(name, change.files, among, reason=reason, **values):
            raise Refused(409, f"this ticket is {ticket.state}: there is nothing to try again")

    def fetch(self, ticket: Ticket, number: int) -> Fetched:
        """Open a volume of a ticket's result, once its source has been looked at again.

        Raises
        ------
        Refused
            With 409 if it is not ready, or prepared anew; 410 if it has expired or its files are gone.
        """
        owner = self._accounts.get(ticket.owner)
        if owner:
            check_licence(owner, self._book.clock())
        self._check_ready(ticket)
        artefact = self._book.artefact(ticket.key)
        if artefact is None:
            raise Refused(409, "this ticket is being prepared anew: look at its status")
        if not 1 <= number <= len(artefact.volumes):
            raise Refused(404, f"this ticket has volumes 1 to {len(artefact.volumes)}")
        files = self._book.files(ticket.id)
        source = self._check_source(ticket, files)
        volume = artefact.volumes[number - 1]
        try:
            content = self._shelf.open(ticket.key, number - 1, volume, files, ticket.volume)
        except FileNotFoundError:
            self._book.lose_artefact(ticket.key)
            raise Refused(409, "the store has lost this artefact; it is prepared anew: look at its status") from None
        return Fetched(content, self._name(ticket, number, len(artefact.volumes)), volume, source)

    def status(self, ticket: Ticket, base: str, *, look: bool = True) -> Status:
        """Tell all of a ticket; without `look` only what its row says, for lists."""
        artefact = self._book.artefact(ticket.key) if look and ticket.state == State.READY else None
        volumes = artefact.volumes if artefact else []
        change = look_again(self._shelf.root, self._book.files(ticket.id)) if artefact else None
        return Status(
            ticketId=ticket.id,
            owner=ticket.owner,
            kind=ticket.kind,
            state=ticket.state,
            reason=ticket.reason,
            source=change.word if change else "",
            missing=change.missing if change else ticket.missing,
            priority=ticket.priority,
            ahead=self._book.ahead(ticket) if look and ticket.state == State.WAITING else None,
            files=ticket.file_count,
            bytes=ticket.bytes,
            asked=ticket.asked,
            expires=ticket.expires,
            downloads=min(ticket.downloads, default=0),
            volumes=[
                Volume(
                    name=self._name(ticket, number, len(volumes)),
                    url=f"{base}/ticket/{ticket.id}/result?volume={number}",
                    **volume,
                )
                for number, volume in enumerate(volumes, 1)
            ],
        )

    def _keep(self, request: DownloadRequest) -> float:
        keep = self._settings.keep if request.keep is None else request.keep
        if not 0 < keep <= self._settings.longest_keep:
            raise Refused(400, f"keep: this service keeps results for {self._settings.longest_keep:g} s at most")
        if request.then == "move" and not self._shelf.attic:
            raise Refused(400, "then: this service has no attic to move results to; ask for delete")
        return keep

    def _lane(self, person: Person, request: DownloadRequest | DeletionRequest, kind: Kind) -> dict[str, Any]:
        now = self._book.clock()
        if request.after is not None:
            self.ticket(person, request.after)
        wait = min(self._settings.patience, request.wait or self._settings.patience)
        place = turn(now, request.priority, self._settings.ageing)
        lane = {"priority": request.priority, "turn": place, "wait_until": now + wait, "after": request.after}
        return {"owner": person.name, "kind": kind, **lane}

    def _derived(self, files: list[Found], *, prepare: bool, volume: int, then: str) -> dict[str, Any]:
        """Return what follows from a ticket's files."""
        size = room_for(files) if prepare else 0
        if size > self._settings.space:
            raise Refused(
                413,
                f"{size} bytes will never fit into the {self._settings.space} of the store: ask for fewer files, or "
                "for `prepare: false`, which streams them",
            )
        key = key_of(files, prepare=prepare, volume=volume, then=then)
        return {"prepare": prepare, "volume": volume, "then": then, "size": size, "key": key}

    def _check_quota(self, person: Person, files: list[Found], tickets: int = 1) -> None:
        waiting, asked = self._book.asked_for(person.name, self._book.clock() - DAY)
        if waiting + tickets > self._settings.most_waiting and not person.is_operator:
            raise Refused(429, f"{waiting} tickets of {person.name} are waiting: let some of them be served first")
        check_quota(person, asked, sum(found.stamp.size for found in files))

    def _check_ready(self, ticket: Ticket) -> None:
        if ticket.kind != Kind.DOWNLOAD:
            raise Refused(409, "a deletion has no result: look at its status")
        if ticket.state == State.GONE:
            raise Refused(410, ticket.reason, files=ticket.missing)
        if ticket.state in (State.EXPIRED, State.CANCELLED):
            raise Refused(410, f"this ticket is {ticket.state}: {ticket.reason}")
        if ticket.state != State.READY:
            raise Refused(409, f"this ticket is {ticket.state}, not ready: look at its status")

    def _check_source(self, ticket: Ticket, files: list[Found]) -> Literal["unchanged", "deleted"]:
        change = look_again(self._shelf.root, files)
        if change.missing and not ticket.prepare:
            reason = f"{len(change.missing)} of its files have been deleted"
            self._book.change(ticket.id, State.GONE, among=[State.READY], reason=reason, missing=change.missing)
            raise Refused(410, reason, files=change.missing)
        if change.missing:
            return "deleted"
        if change.changed:
            reason = "its files have changed since it was prepared; it is prepared anew"
            self._dispatcher.requeue(ticket, change.files, among=[State.READY], reason=reason)
            raise Refused(409, f"{reason}: look at its status", files=change.changed)
        return "unchanged"

    def _name(self, ticket: Ticket, number: int, volumes: int) -> str:
        part = f"_{number}of{volumes}" if volumes > 1 else ""
        return f"files_{ticket.key[:12]}{part}.zip"
