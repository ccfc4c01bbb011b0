"""The loops of the compiled projector where a vector is one slice: lanes are neighbours instead.

With one slice a weight serves one number, and tables of weights would cost all the time. So 16 neighbouring rays walk
along together, and 16 pixels of a row gather together: their weights stay in registers, and what they lie next to comes
out of a window of the line (of pixels or bins) that they cross. Neighbouring rays cross the next line at most 1.42
pixels apart, which a window holds for 16. Layout, weights and results are those of `_kernels`.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
# (Numba types these functions, from the arrays that they are called with.)

import numpy as np
from numba import njit, prange

from aps_mini_apps.sirt.projectors._footprint import NEGLIGIBLE
from aps_mini_apps.sirt.projectors._rays import (
    ANGLES_PER_JOB,
    BINS_BEFORE,
    BORDER,
    FRACTION_BITS,
    LOOP,
    PARALLEL,
    POSITION_BITS,
    SMALL,
    bin_weights,
    clear,
    columns_of,
    on_detector,
    pixel_weights,
    row_weight,
    span,
    table_positions,
    unravel,
    weigh,
)
from aps_mini_apps.sirt.projectors._vectors import (
    TABLE_LANES,
    WINDOW,
    add_between,
    counting,
    inverse,
    item,
    keep,
    load,
    load_floats,
    pick,
    store,
    table_zeros,
    total,
    zeros,
)

STEPS = 16  # steps of a forward band: its rows of the volume stay in the second-level cache


@njit(**SMALL)
def _in_window(position, step, positions, below, above, low, high, room):
    """Return where a window begins on a line of `room` numbers, and where in it and with which weights 16 taps lie.

    Taps on numbers before `low` or after `high` weigh nothing. Most windows have none: both ends tell. One place is
    left before the lowest tap, which table positions may round down to.
    """
    start, end = position >> POSITION_BITS, (position + (TABLE_LANES - 1) * step) >> POSITION_BITS
    lowest, highest = min(start, end), max(start, end)
    begin = max(0, min(room - WINDOW, lowest - 1))
    places = (positions >> np.int32(FRACTION_BITS)) + np.int32(start - begin)
    if lowest < low or highest >= high:
        first, last = np.int32(low - begin), np.int32(high - begin)
        below, above = keep(below, places, first, last), keep(above, places + np.int32(1), first, last)
    return begin, places, below, above


@njit(**SMALL)
def _sum_taps(numbers, start, places, below, above, so_far):
    """Return `so_far` plus the numbers at `places` of a window, and those after them, times their weights."""
    so_far = so_far + below * pick(numbers, start, places)
    return so_far + above * pick(numbers, start, places + np.int32(1))


# -------------------------------------------------------------------------------------------------- forward


@njit(**SMALL)
def _walk(image, angle, inside, squared, ray, first, end, trace):
    """Return the sums of `image` along 16 rays from step `first` to `end`, and with `trace` those of their lengths."""
    side, sums, lengths = image.shape[1], table_zeros(), table_zeros()
    start = angle.origin + ray * angle.pitch + (BORDER << POSITION_BITS)
    for step in range(first, end):
        position = start + step * angle.slope
        _, positions = table_positions(position, angle.pitch)
        below, above = pixel_weights(angle, positions)
        low, high = BORDER + item(inside, step), BORDER + item(inside, inside.shape[1] + step)
        begin, places, below, above = _in_window(position, angle.pitch, positions, below, above, low, high, side)
        sums = _sum_taps(image, (step + BORDER) * side + begin, places, below, above, sums)
        if trace:
            lengths = lengths + (below * below + above * above if squared else below + above)
    return sums, lengths


@njit(**SMALL)
def _trace(angle, rays, radius, spans, weights):
    """Fill every 16th of `spans` with the steps at which any of its 16 rays runs over the image; clear the weights."""
    for group in range(rays[0], rays[1], TABLE_LANES):
        first, end = len(spans), 0
        for ray in range(group, min(rays[1], group + TABLE_LANES)):
            weights[ray] = np.float32(0.0)
            ray_first, ray_end = span(angle, ray, len(spans), radius)
            if ray_first < ray_end:
                first, end = min(first, ray_first), max(end, ray_end)
        spans[group, 0], spans[group, 1] = first, end


@njit(**SMALL)
def _walk_band(image, angle, inside, squared, spans, weights, trace, rays, step, sums):
    """Add one band of `image` (steps `step` and following) to the sums of `rays` at one angle.

    With `trace`, add the lengths within the pixels `inside` to `weights`, too.
    """
    for ray in range(rays[0], rays[1], TABLE_LANES):
        first, end = max(item(spans, 2 * ray), step), min(item(spans, 2 * ray + 1), step + STEPS)
        if first < end:
            lanes = np.int32(min(TABLE_LANES, rays[1] - ray))
            more, lengths = _walk(image, angle, inside, squared, ray, first, end, trace)
            add_between(sums, ray + BINS_BEFORE, np.int32(0), lanes, more)
            if trace:
                add_between(weights, ray, np.int32(0), lanes, lengths)


@njit(**LOOP)
def _residual_block(
    volume, turned, sinogram, angles, inside, radius, squared, spans, weights, trace, weighted, block, rays, out
):
    """Fill `out` for the angles of `block` and the rays of `rays`."""
    for index in range(block[0], block[1]):
        clear(out[index], rays)
        if trace:
            _trace(angles[index], rays, radius, spans[index], weights[index])
    for step in range(0, weights.shape[1], STEPS):
        for index in range(block[0], block[1]):
            image = volume if angles[index].by_rows else turned
            _walk_band(
                image, angles[index], inside, squared, spans[index], weights[index], trace, rays, step, out[index]
            )
    for index in range(block[0], block[1]):
        if trace:
            for ray in range(rays[0], rays[1]):
                weights[index, ray] = row_weight(weights[index, ray])
        if weighted:
            weigh(sinogram[index], weights[index], rays, out[index])


@njit(**PARALLEL)
def _turn(volume, turned):
    """Fill `turned` with the columns of `volume` as rows."""
    slabs, side, _ = volume.shape
    for job in prange(slabs * side):
        slab, row = unravel(job, side)
        for column in range(side):
            store(turned[slab, row], column, load(volume[slab], column * side + row))


@njit(**PARALLEL)
def fill_residual(
    volume, sinogram, angles, inside, radius, squared, spans, weights, trace, weighted, rays_per_job, out
):
    """Do what `_kernels.fill_residual` does; but of `spans` every 16th counts, for 16 rays that walk together."""
    count, size = weights.shape
    turned = volume
    if not angles.by_rows.all():  # lanes that lie in one column would have to be gathered one by one
        turned = np.empty_like(volume)
        _turn(volume, turned)
    angle_blocks = (count + ANGLES_PER_JOB - 1) // ANGLES_PER_JOB
    ray_blocks = (size + rays_per_job - 1) // rays_per_job
    for job in prange(angle_blocks * ray_blocks):
        angle_block, part = unravel(job, ray_blocks)
        block = angle_block * ANGLES_PER_JOB, min(count, (angle_block + 1) * ANGLES_PER_JOB)
        rays = part * rays_per_job, min(size, (part + 1) * rays_per_job)
        for slab in range(volume.shape[0]):
            first = trace and slab == 0
            _residual_block(
                volume[slab], turned[slab], sinogram[slab], angles, inside, radius, squared, spans, weights, first,
                weighted, block, rays, out[slab],
            )  # fmt: skip


# ----------------------------------------------------------------------------------------------------- back


@njit(**SMALL)
def _gather(residual, angles, row, column, size, lengths, sum_up):
    """Return what all angles give to 16 pixels of a row, and `lengths` plus those of the rays, if asked to `sum_up`."""
    bins, gathered = residual.shape[1], table_zeros()
    for index in range(len(angles)):
        angle = angles[index]
        position = on_detector(angle, row, column) + (BINS_BEFORE << POSITION_BITS)
        _, positions = table_positions(position, angle.cos)
        below, above = bin_weights(angle, positions)
        last = BINS_BEFORE + size - 1
        begin, places, below, above = _in_window(position, angle.cos, positions, below, above, BINS_BEFORE, last, bins)
        gathered = _sum_taps(residual, index * bins + begin, places, below, above, gathered)
        if sum_up:
            lengths = lengths + (below + above)
    return gathered, lengths


@njit(**SMALL)
def _change_pixels(volume, residual, angles, inside, weights, weigh, keeps, relaxation, row, left_edge, right_edge):
    """Update up to 16 pixels of a row; return their squared changes."""
    first, end = max(left_edge, inside[0, row]), min(right_edge, inside[1, row] + 1)
    if first >= end:
        return table_zeros()
    place = row * weights.shape[1] + left_edge
    lengths = table_zeros() if weigh else load_floats(weights, place)
    gathered, lengths = _gather(residual, angles, row, left_edge, columns_of(inside), lengths, weigh)
    first, end = np.int32(first - left_edge), np.int32(end - left_edge)
    if weigh:
        lengths = keep(inverse(lengths, np.float32(NEGLIGIBLE)), counting(), first, end - np.int32(1))
        if keeps:
            store(weights, place, lengths)
    change = relaxation * lengths * gathered
    add_between(volume, (row + BORDER) * volume.shape[1] + left_edge + BORDER, first, end, change)
    return change * change


@njit(**LOOP)
def _add_tile(volume, residual, angles, inside, weights, weigh, keeps, relaxation, tile, change):
    """Update one tile of `volume`; put the sum of its squared changes into `change`."""
    top, bottom, left_edge, right_edge = tile
    squares = table_zeros()
    for row in range(top, bottom):
        for column in range(left_edge, right_edge, TABLE_LANES):
            end = min(right_edge, column + TABLE_LANES)
            squares = squares + _change_pixels(
                volume, residual, angles, inside, weights, weigh, keeps, relaxation, row, column, end
            )
    store(change, 0, total(squares) + zeros(change))


@njit(**PARALLEL)
def add_back(volume, residual, angles, inside, weights, weigh, keeps, relaxation, tile_rows, tile_columns, changes):
    """Do what `_kernels.add_back` does, in one pass over the angles."""
    size = columns_of(inside)
    across = (size + tile_columns - 1) // tile_columns
    for tile in prange(changes.shape[1]):
        row, column = unravel(tile, across)
        row, column = row * tile_rows, column * tile_columns
        edges = row, min(size, row + tile_rows), column, min(size, column + tile_columns)
        for slab in range(changes.shape[0]):
            first = weigh and (slab == 0 or not keeps)
            part, bins, change = volume[slab], residual[slab], changes[slab, tile:]
            _add_tile(part, bins, angles, inside, weights, first, keeps, relaxation, edges, change)
