"""How many slices share a vector: the layout of the compiled projector's slabs."""

LANES = (1, 2, 4, 8, 16, 32)
_NARROWER = 16


def choose_lanes(slices: int) -> int:
    """Return the widest vector that leaves no more lanes empty than a narrower one would."""
    fitting = next((lanes for lanes in LANES if lanes >= slices), LANES[-1])
    return _NARROWER if slices > _NARROWER and -slices % _NARROWER < -slices % fitting else fitting
