"""The manners of what owns sockets, connections or programs: made for `with`, and closing twice does no harm."""

from types import TracebackType
from typing import Self


class Owner:
    """A context manager that closes on the way out."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give back what is held."""
        raise NotImplementedError
