"""From detector frames to corrected projections: no sockets, so that it can be tested as it is.

A projection that comes before there are both flats and darks is held, in order and bounded, or refused; it
never leaves uncorrected. With stripe removal the first projections are held as well, until there are enough
angles to tell a stripe from the sample.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from aps_mini_apps.dist.correction import Correction
from aps_mini_apps.frames import Frame, FrameKind
from ministream.base.errors import UserError

if TYPE_CHECKING:  # loads Numba, which takes a second that most scans need not spend
    from aps_mini_apps.dist.stripes import StripeFilter


class Distributor:
    """Corrects the frames of one scan.

    Parameters
    ----------
    correction
        Flats, darks and what follows from them.
    stripes
        Removes stripes from the line integrals; None leaves them.
    early
        What becomes of a projection that comes before flats and darks: held, or refused with UserError.
    hold_limit
        How many projections are held at most; one more is refused.
    """

    def __init__(
        self,
        correction: Correction,
        *,
        stripes: "StripeFilter | None" = None,
        early: Literal["hold", "refuse"] = "hold",
        hold_limit: int = 256,
    ) -> None:
        self.correction, self.stripes = correction, stripes
        self.early, self.hold_limit = early, hold_limit
        self._uncorrected: deque[Frame] = deque()
        self._striped: deque[Frame] = deque()

    def accept(self, frame: Frame) -> Iterator[Frame]:
        """Take one frame; yield the corrected projections (float32 line integrals) that can leave now."""
        if frame.kind is FrameKind.FLAT:
            self.correction.add_flat(frame.pixels, resets=frame.resets)
        elif frame.kind is FrameKind.DARK:
            self.correction.add_dark(frame.pixels, resets=frame.resets)
        else:
            self._hold(frame)
        while self._uncorrected and self.correction.ready:
            yield from self._correct(self._uncorrected.popleft())

    def finish(self) -> Iterator[Frame]:
        """Yield what is still held at the end of the scan.

        Raises
        ------
        UserError
            If projections were held for flats or darks that never came.
        """
        while self._striped:
            yield self._without_stripes(self._striped.popleft())
        if self._uncorrected:
            raise UserError(
                f"the scan ended without flats and darks: {len(self._uncorrected)} projections were not passed on;"
                " send flats and darks, or use --no-normalize for data that is transmission already"
            )

    def _hold(self, frame: Frame) -> None:
        if not self.correction.ready:
            if self.early == "refuse":
                raise UserError(
                    f"projection {frame.number} came before flats and darks; send them first, or --early hold"
                )
            if len(self._uncorrected) >= self.hold_limit:
                raise UserError(
                    f"{self.hold_limit} projections came before flats and darks, and no more are held;"
                    " send flats and darks first, or raise --hold-limit"
                )
        self._uncorrected.append(frame)

    def _correct(self, frame: Frame) -> Iterator[Frame]:
        corrected = replace(frame, pixels=self.correction.line_integrals(frame.pixels))
        if self.stripes is None:
            yield corrected
            return
        self.stripes.observe(_pixels(corrected))
        self._striped.append(corrected)
        while self._striped and self.stripes.warm:
            yield self._without_stripes(self._striped.popleft())

    def _without_stripes(self, frame: Frame) -> Frame:
        if self.stripes is not None:
            self.stripes.subtract(_pixels(frame))
        return frame


def _pixels(frame: Frame) -> "np.ndarray[tuple[int, int], np.dtype[np.float32]]":
    return np.asarray(frame.pixels, np.float32)
