"""What an account entitles to: a licence with an end, and a quota of bytes a day."""

from datetime import UTC, datetime

from delivery.people.accounts import Person

DAY = 86_400.0
"""Seconds over which a quota is counted."""


class NoLicence(Exception):  # noqa: N818 - says what is wrong
    """The licence has ended, or was never granted; the text says which."""


class OverQuota(Exception):  # noqa: N818 - says what is wrong
    """More was asked for than is left of the quota; the text says how much."""


def check_licence(person: Person, now: float) -> None:
    """Raise NoLicence unless the person's licence goes on at `now`, in seconds since 1970."""
    if person.licence_until is not None and person.licence_until <= now:
        day = datetime.fromtimestamp(person.licence_until, UTC).strftime("%Y-%m-%d %H:%M UTC")
        raise NoLicence(f"the licence of {person.name} ended on {day}; ask an operator of this service to renew it")


def check_quota(person: Person, asked: int, more: int) -> None:
    """Raise OverQuota if `more` bytes are too many after `asked` within the last day."""
    if person.quota is not None and asked + more > person.quota:
        left = max(person.quota - asked, 0)
        raise OverQuota(
            f"{more} bytes are more than the {left} left of today's quota of {person.quota} for {person.name}"
        )
