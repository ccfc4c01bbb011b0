"""The distributor without sockets: nothing leaves uncorrected, in the wrong order, or not at all."""

import numpy as np
import pytest

from aps_mini_apps.daq.phantom import PhantomSource
from aps_mini_apps.daq.stream import frames
from aps_mini_apps.dist.correction import Correction
from aps_mini_apps.dist.distributor import Distributor
from aps_mini_apps.dist.stripes import StripeFilter
from aps_mini_apps.frames import Frame, FrameKind
from ministream.base.errors import UserError

RNG = np.random.default_rng(3)
FLAT, DARK = 1000.0, 100.0


def frame(kind: FrameKind, value: float, number: int = 0, *, resets: bool = False) -> Frame:
    return Frame(kind=kind, pixels=np.full((2, 6), value, np.uint16), number=number, resets=resets)


def flat(value: float = FLAT, *, resets: bool = False) -> Frame:
    return frame(FrameKind.FLAT, value, resets=resets)


def dark(value: float = DARK) -> Frame:
    return frame(FrameKind.DARK, value)


def projection(number: int, value: float = 550.0) -> Frame:
    return frame(FrameKind.PROJECTION, value, number)


def leave(distributor: Distributor, *arrivals: Frame) -> list[Frame]:
    return [left for arrival in arrivals for left in distributor.accept(arrival)]


def test_projections_leave_as_line_integrals_with_their_values_kept() -> None:
    distributor = Distributor(Correction())
    (left,) = leave(
        distributor,
        flat(),
        dark(),
        Frame(
            kind=FrameKind.PROJECTION,
            pixels=np.full((2, 6), 550, np.uint16),
            number=7,
            angle=0.5,
            center=3.25,
            scan="s",
        ),
    )
    np.testing.assert_allclose(left.pixels, np.log(2.0), rtol=1e-6)
    assert left.pixels.dtype == np.float32
    assert (left.number, left.angle, left.center, left.scan) == (7, 0.5, 3.25, "s")
    assert list(distributor.finish()) == []


def test_projections_before_flats_and_darks_are_held_and_leave_in_order() -> None:
    distributor = Distributor(Correction())
    assert leave(distributor, projection(0), flat(), projection(1)) == []
    assert [f.number for f in leave(distributor, dark())] == [0, 1]
    assert [f.number for f in leave(distributor, projection(2))] == [2]


def test_held_projections_are_bounded() -> None:
    distributor = Distributor(Correction(), hold_limit=3)
    leave(distributor, *(projection(i) for i in range(3)))
    with pytest.raises(UserError, match="3 projections came before flats and darks, and no more are held"):
        leave(distributor, projection(3))


def test_early_projections_are_refused_by_option() -> None:
    with pytest.raises(UserError, match="projection 4 came before flats and darks"):
        leave(Distributor(Correction(), early="refuse"), projection(4))


def test_a_scan_without_darks_is_an_error_that_counts_what_was_held() -> None:
    distributor = Distributor(Correction())
    leave(distributor, flat(), projection(0), projection(1))
    with pytest.raises(UserError, match="without flats and darks: 2 projections were not passed on"):
        list(distributor.finish())


def test_flats_that_reset_replace_the_set() -> None:
    distributor = Distributor(Correction())
    leave(distributor, flat(), dark())
    (before,) = leave(distributor, projection(0))
    (after,) = leave(distributor, flat(2 * FLAT - DARK, resets=True), projection(1))
    np.testing.assert_allclose(after.pixels - before.pixels, np.log(2.0), rtol=1e-5)


def test_without_normalisation_nothing_waits_for_flats() -> None:
    distributor = Distributor(Correction(normalize=False))
    pixels = np.full((1, 4), 0.25, np.float32)
    (left,) = leave(distributor, Frame(kind=FrameKind.PROJECTION, pixels=pixels))
    np.testing.assert_allclose(left.pixels, np.log(4.0), rtol=1e-6)


def test_stripe_removal_holds_its_first_projections_and_loses_none() -> None:
    source = PhantomSource(columns=64, rows=4, projections=30)
    distributor = Distributor(Correction(), stripes=StripeFilter(warm_up=12))
    left, waits = [], []
    for arrival in frames(source, scan="s"):
        now = list(distributor.accept(arrival))
        left += now
        if arrival.kind is FrameKind.PROJECTION:
            waits.append(len(now))
    left += distributor.finish()
    assert waits == [0] * 11 + [12] + [1] * 18
    assert [f.number for f in left] == sorted(f.number for f in left)
    assert len(left) == 30


def test_a_scan_shorter_than_the_warm_up_still_leaves() -> None:
    distributor = Distributor(Correction(), stripes=StripeFilter(warm_up=12))
    assert leave(distributor, flat(), dark(), projection(0), projection(1)) == []
    assert [f.number for f in distributor.finish()] == [0, 1]
