"""The loops of the compiled projector.

Layout: a slab is as many slices as a vector has lanes. Volumes are [slab][row][column], sinograms
[slab][angle][column], and an element is one vector: the same pixel (or bin) of all slices of the slab. In
parallel beam the system matrix is the same for every slice, so one weight serves a whole vector, and every
access to memory is one whole vector. A border of one zero pixel (two zero bins) stands for tests at the edges.

Both projections gather: forward walks along rays, back runs over pixels, with the same weights (`_footprint`).
Nothing is added from two sides, so no result depends on the number of threads.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
# (Numba types these functions, from the arrays that they are called with.)

import numpy as np
from numba import njit, prange

from aps_mini_apps.sirt.projectors._footprint import NEGLIGIBLE
from aps_mini_apps.sirt.projectors._rays import (
    ANGLES_PER_JOB,
    BINS_AFTER,
    BINS_BEFORE,
    BORDER,
    FRACTION_BITS,
    LOOP,
    PARALLEL,
    POSITION_BITS,
    SMALL,
    at_hand,
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
    CACHE_LINE,
    TABLE_LANES,
    counting,
    fits_register,
    inverse,
    item,
    keep,
    load,
    load_floats,
    load_integers,
    maximum,
    minimum,
    prefetch,
    store,
    table_zeros,
    total,
    width,
    zeros,
)

STEPS = TABLE_LANES  # steps of a forward band: its rows of the volume stay in the second-level cache
RAYS = 8  # rays whose tables are made together: tables stay in the first-level cache

TILE_ROWS = 32
TILE_COLUMNS = TABLE_LANES
ROWS_AHEAD = 2  # rows of a tile whose bins are asked for before their turn
PIXELS = 4  # pixels of a row that gather together
ANGLES_PER_PASS = 16  # angles whose bins stay in the first-level cache while a row of a tile is filled


@njit(**LOOP)
def _new_tables(entries):
    """Return room for offsets, the weights below and above, and 16 more: each on lines of the cache of its own.

    A vector that straddles two lines is read back from the store's buffer at several times the price.
    """
    spare = CACHE_LINE // 4
    offsets, weights = np.empty(entries + spare, np.int32), np.empty(2 * entries + 2 * spare, np.float32)
    first, second = -offsets.ctypes.data % CACHE_LINE // 4, -weights.ctypes.data % CACHE_LINE // 4
    middle, last = second + entries, second + 2 * entries
    return offsets[first : first + entries], weights[second:middle], weights[middle:last], weights[last : last + spare]


# ---------------------------------------------------------------------------------------------- the two taps


@njit(**SMALL)
def _ray_taps(angle, position):
    """Return the pixels that a ray runs above or left of at 16 steps from `position`, and both taps' weights."""
    whole, positions = table_positions(position, angle.slope)
    below, above = pixel_weights(angle, positions)
    return (positions >> np.int32(FRACTION_BITS)) + whole, below, above


@njit(**SMALL)
def _pixel_taps(angle, row, column):
    """Return the bins that 16 pixels of a row lie right of on the detector, and both taps' weights."""
    whole, positions = table_positions(on_detector(angle, row, column), angle.cos)
    below, above = bin_weights(angle, positions)
    return (positions >> np.int32(FRACTION_BITS)) + whole, below, above


# ------------------------------------------------------------------------------------- the lengths of rays


@njit(**SMALL)
def _lies_inside(angle, position, inside, step):
    """Return whether all 32 pixels next to a ray at 16 steps are `inside`, as most are: what is inside is convex."""
    start, end = position >> POSITION_BITS, (position + (STEPS - 1) * angle.slope) >> POSITION_BITS
    low, high = item(inside, step), item(inside, inside.shape[1] + step)
    next_low, next_high = item(inside, step + STEPS - 1), item(inside, inside.shape[1] + step + STEPS - 1)
    return min(start, end) >= max(low, next_low) and max(start, end) < min(high, next_high)


@njit(**SMALL)
def _lengths_in_band(angle, position, pixel, below, above, inside, step, first, end, squared):
    """Return a ray's lengths, or their squares, in the pixels `inside` from entry `first` to `end`."""
    whole = end - first == STEPS and _lies_inside(angle, position, inside, step)
    if not whole:
        low, high = load_integers(inside, step), load_integers(inside, inside.shape[1] + step)
        below = keep(below, pixel, low, high)
        above = keep(above, pixel + np.int32(1), low, high)
    lengths = below * below + above * above if squared else below + above
    return lengths if whole else keep(lengths, counting(), np.int32(first), np.int32(end - 1))


@njit(**SMALL)
def _trace(angle, rays, radius, spans, lengths):
    """Fill `spans` with the steps of `rays`, and begin the sums of their lengths."""
    for ray in range(rays[0], rays[1]):
        spans[ray, 0], spans[ray, 1] = span(angle, ray, len(spans), radius)
        store(lengths, (ray - rays[0]) * TABLE_LANES, table_zeros())


# -------------------------------------------------------------------------------------------------- forward


@njit(**SMALL)
def _walk(volume, offsets, below, peak, first, count, across, ahead, ray_sum):
    """Add `volume` along one ray, `count` entries of the tables from `first` on, to `ray_sum`.

    At every step a ray runs through lengths b and a of the pixels v below and w above it that together are its `peak`,
    whatever the model; so b v + a w = b (v - w) + peak w, which reads one weight instead of two.

    What lies `ahead` (floats; or None) is asked for: rays across the rows are too short on each for the processor to
    foresee the next.
    """
    near, next_near, far, next_far = ray_sum, zeros(volume), zeros(volume), zeros(volume)
    for entry in range(first, first + (count & -2), 2):
        offset, next_offset = item(offsets, entry), item(offsets, entry + 1)
        if ahead is not None:
            prefetch(volume, offset + ahead)
            prefetch(volume, next_offset + ahead)
        pixel, next_pixel = load(volume, offset + across), load(volume, next_offset + across)
        near = near + item(below, entry) * (load(volume, offset) - pixel)
        next_near = next_near + item(below, entry + 1) * (load(volume, next_offset) - next_pixel)
        far, next_far = far + pixel, next_far + next_pixel
    if count & 1:
        offset = item(offsets, first + count - 1)
        pixel = load(volume, offset + across)
        near = near + item(below, first + count - 1) * (load(volume, offset) - pixel)
        far = far + pixel
    return (near + next_near) + peak * (far + next_far)


@njit(**SMALL)
def _walk_band(volume, angle, inside, squared, spans, lengths, trace, rays, step, tables, sums):
    """Add one band of `volume` (steps `step` and following) to the sums of `rays` at one angle.

    With `trace`, add what lies within the pixels `inside` to `lengths`, too: it is at hand.
    """
    vector, angle = width(volume), at_hand(angle)
    offsets, below = tables
    along, across = vector, volume.shape[1] * vector
    if angle.by_rows:
        along, across = across, along
    ahead = ((RAYS * angle.pitch) >> POSITION_BITS) * across
    steps = counting() * np.int32(along) + np.int32((step + BORDER) * along + BORDER * across)
    band_start = angle.origin + step * angle.slope
    for block in range(rays[0], rays[1], RAYS):
        block_end = min(rays[1], block + RAYS)
        for ray in range(block, block_end):
            first, end = max(item(spans, 2 * ray) - step, 0), min(item(spans, 2 * ray + 1) - step, STEPS)
            if first >= end:
                continue
            position = band_start + ray * angle.pitch
            pixel, near, far = _ray_taps(angle, position)
            if trace:
                spot = (ray - rays[0]) * TABLE_LANES
                more = _lengths_in_band(angle, position, pixel, near, far, inside, step, first, end, squared)
                store(lengths, spot, load_floats(lengths, spot) + more)
            entry = (ray - block) * TABLE_LANES
            store(offsets, entry, pixel * np.int32(across) + steps)
            store(below, entry, near)
        for ray in range(block, block_end):
            first, end = max(item(spans, 2 * ray) - step, 0), min(item(spans, 2 * ray + 1) - step, STEPS)
            if first < end:
                entry, place = (ray - block) * TABLE_LANES, (ray + BINS_BEFORE) * vector
                so_far = load(sums, place)
                if end - first < STEPS:
                    so_far = _walk(volume, offsets, below, angle.peak, entry + first, end - first, across, None, so_far)
                elif angle.by_rows:  # the compiler lays the steps of a known number out one after the other
                    so_far = _walk(volume, offsets, below, angle.peak, entry, STEPS, across, None, so_far)
                else:
                    so_far = _walk(volume, offsets, below, angle.peak, entry, STEPS, across, ahead, so_far)
                store(sums, place, so_far)


@njit(**SMALL)
def _invert(lengths, rays, weights):
    """Fill the `weights` of `rays` with 1 / the sum of their lengths, 0 where there are none."""
    for ray in range(rays[0], rays[1]):
        norm = total(load_floats(lengths, (ray - rays[0]) * TABLE_LANES))
        weights[ray] = row_weight(norm)


@njit(**LOOP)
def _residual_block(
    volume, sinogram, angles, inside, radius, squared, spans, weights, trace, weighted, block, rays, out
):
    """Fill `out` for the angles of `block` and the rays of `rays`."""
    offsets, below, _, _ = _new_tables(RAYS * TABLE_LANES)
    lengths = np.empty((block[1] - block[0], (rays[1] - rays[0]) * TABLE_LANES if trace else 0), np.float32)
    for index in range(block[0], block[1]):
        clear(out[index], rays)
        if trace:
            _trace(angles[index], rays, radius, spans[index], lengths[index - block[0]])
    for step in range(0, weights.shape[1], STEPS):
        for index in range(block[0], block[1]):
            _walk_band(
                volume, angles[index], inside, squared, spans[index], lengths[index - block[0]], trace, rays, step,
                (offsets, below), out[index],
            )  # fmt: skip
    for index in range(block[0], block[1]):
        if trace:
            _invert(lengths[index - block[0]], rays, weights[index])
        if weighted:
            weigh(sinogram[index], weights[index], rays, out[index])


@njit(**PARALLEL)
def fill_residual(
    volume, sinogram, angles, inside, radius, squared, spans, weights, trace, weighted, rays_per_job, out
):
    """Fill `out` [slab][angle][bin] with `weights` times (`sinogram` - the projections of `volume`).

    If not `weighted`, with the projections alone. `spans` (angles, columns, 2) are each ray's steps (first, one past
    the last), `weights` (angles, columns) 1 / the sum of its lengths, or their squares, over the pixels `inside`: both
    are filled here with `trace`. `inside` (2, columns and more) holds the first and the last pixel of each row that
    takes part, within `radius`.
    """
    count, size = weights.shape
    angle_blocks = (count + ANGLES_PER_JOB - 1) // ANGLES_PER_JOB
    ray_blocks = (size + rays_per_job - 1) // rays_per_job
    for job in prange(angle_blocks * ray_blocks):
        angle_block, part = unravel(job, ray_blocks)
        block = angle_block * ANGLES_PER_JOB, min(count, (angle_block + 1) * ANGLES_PER_JOB)
        rays = part * rays_per_job, min(size, (part + 1) * rays_per_job)
        for slab in range(volume.shape[0]):
            first = trace and slab == 0
            _residual_block(
                volume[slab], sinogram[slab], angles, inside, radius, squared, spans, weights, first, weighted, block,
                rays, out[slab],
            )  # fmt: skip


# ----------------------------------------------------------------------------------------------------- back


@njit(**SMALL)
def _ask_for_bins(residual, angle, index, row, column):
    """Ask for the bins at both ends of 16 pixels of a row: that is where a row has others than the one before.

    The bins of the next angle lie too far away for the processor to foresee them.
    """
    start = on_detector(angle, row, column)
    end = start + (TABLE_LANES - 1) * angle.cos
    first = index * residual.shape[1] + BINS_BEFORE
    prefetch(residual, (first + (start >> POSITION_BITS)) * width(residual))
    prefetch(residual, (first + (end >> POSITION_BITS)) * width(residual))


@njit(**SMALL)
def _tabulate_row(residual, angles, row, column, size, offsets, below, above, lengths, sum_up):
    """Fill the tables with the bins and weights of 16 pixels of one row, angle by angle.

    Return `lengths` plus those of the rays within the detector, if asked to `sum_up`.
    """
    vector = width(residual)
    first_bin, last_bin = np.int32(-BINS_BEFORE), np.int32(size + BINS_AFTER - 2)
    none, one, last_ray = np.int32(0), np.int32(1), np.int32(size - 1)
    for index in range(len(angles)):
        bins, near, far = _pixel_taps(angles[index], row, column)
        _ask_for_bins(residual, angles[index], index, row + ROWS_AHEAD, column)
        inside = maximum(first_bin, minimum(last_bin, bins))
        entry = index * TABLE_LANES
        store(offsets, entry, (inside + np.int32(index * residual.shape[1] + BINS_BEFORE)) * np.int32(vector))
        store(below, entry, near)
        store(above, entry, far)
        if sum_up:
            lengths = lengths + (keep(near, bins, none, last_ray) + keep(far, bins + one, none, last_ray))
    return lengths


@njit(**SMALL)
def _gather(residual, offsets, below, above, entry, near, far):
    """Return `near` and `far` plus what one entry of the tables gives to a pixel: the bins below and above it."""
    offset = item(offsets, entry)
    near = near + item(below, entry) * load(residual, offset)
    return near, far + item(above, entry) * load(residual, offset + width(residual))


@njit(**SMALL)
def _gather_pair(residual, offsets, below, above, lane, count, so_far, next_so_far):
    """Return what two pixels have so far plus what `count` angles give to them."""
    a, b, c, d = so_far, zeros(residual), next_so_far, zeros(residual)
    for entry in range(lane, lane + count * TABLE_LANES, TABLE_LANES):
        a, b = _gather(residual, offsets, below, above, entry, a, b)
        c, d = _gather(residual, offsets, below, above, entry + 1, c, d)
    return a + b, c + d


@njit(**SMALL)
def _gather_four(residual, offsets, below, above, lane, count, so_far):
    """Return what four pixels have so far plus what `count` angles give to them.

    Sums that do not wait for each other keep a processor busy, as long as its registers hold them: eight are enough.
    """
    first, second, third, fourth = so_far
    if not fits_register(residual):
        first, second = _gather_pair(residual, offsets, below, above, lane, count, first, second)
        third, fourth = _gather_pair(residual, offsets, below, above, lane + 2, count, third, fourth)
        return first, second, third, fourth
    a, b, c, d = first, zeros(residual), second, zeros(residual)
    e, f, g, h = third, zeros(residual), fourth, zeros(residual)
    for entry in range(lane, lane + count * TABLE_LANES, TABLE_LANES):
        a, b = _gather(residual, offsets, below, above, entry, a, b)
        c, d = _gather(residual, offsets, below, above, entry + 1, c, d)
        e, f = _gather(residual, offsets, below, above, entry + 2, e, f)
        g, h = _gather(residual, offsets, below, above, entry + 3, g, h)
    return a + b, c + d, e + f, g + h


@njit(**SMALL)
def _load_four(sums, spot, is_first):
    """Return what the passes before gathered for four pixels."""
    if is_first:
        return zeros(sums), zeros(sums), zeros(sums), zeros(sums)
    vector = width(sums)
    return (
        load(sums, spot), load(sums, spot + vector), load(sums, spot + 2 * vector), load(sums, spot + 3 * vector)
    )  # fmt: skip


@njit(**SMALL)
def _store_four(sums, spot, gathered):
    vector = width(sums)
    first, second, third, fourth = gathered
    store(sums, spot, first)
    store(sums, spot + vector, second)
    store(sums, spot + 2 * vector, third)
    store(sums, spot + 3 * vector, fourth)


@njit(**SMALL)
def _change_pixel(volume, place, gain, gathered):
    """Add `gain` * `gathered` to a pixel; return the squared change."""
    change = gain * gathered
    store(volume, place, load(volume, place) + change)
    return change * change


@njit(**SMALL)
def _change_four(volume, place, gains, lane, end, gathered):
    """Add to those of four pixels from `lane` on that lie before `end`; return the sum of the squared changes."""
    vector = width(volume)
    first, second, third, fourth = gathered
    squares = _change_pixel(volume, place, item(gains, lane), first)
    if lane + 1 < end:
        squares = squares + _change_pixel(volume, place + vector, item(gains, lane + 1), second)
    if lane + 2 < end:
        squares = squares + _change_pixel(volume, place + 2 * vector, item(gains, lane + 2), third)
    if lane + 3 < end:
        squares = squares + _change_pixel(volume, place + 3 * vector, item(gains, lane + 3), fourth)
    return squares


@njit(**SMALL)
def _pass_row(
    volume, residual, angles, inside, weights, weigh, keeps, relaxation, pixels, tables, sums, is_first, is_last
):
    """Gather what some of the angles give to 16 pixels of a row; the last pass updates them and returns the change."""
    vector = width(volume)
    offsets, below, above, gains = tables
    row, left_edge, right_edge, spot = pixels
    squares = zeros(volume)
    first, end = max(left_edge, inside[0, row]), min(right_edge, inside[1, row] + 1)
    if first >= end:
        return squares
    place = row * weights.shape[1] + left_edge
    lengths = table_zeros() if weigh and is_first else load_floats(weights, place)
    lengths = _tabulate_row(residual, angles, row, left_edge, columns_of(inside), offsets, below, above, lengths, weigh)
    if weigh:
        if is_last:
            lengths = inverse(lengths, np.float32(NEGLIGIBLE))
            lengths = keep(lengths, counting() + np.int32(left_edge), np.int32(first), np.int32(end - 1))
        if keeps:
            store(weights, place, lengths)
    store(gains, 0, relaxation * lengths)
    place = ((row + BORDER) * volume.shape[1] + left_edge + BORDER) * vector
    for lane in range((first - left_edge) & -PIXELS, end - left_edge, PIXELS):
        at, lane_spot = place + lane * vector, spot + lane * vector
        gathered = _load_four(sums, lane_spot, is_first)
        gathered = _gather_four(residual, offsets, below, above, lane, len(angles), gathered)
        if is_last:
            squares = squares + _change_four(volume, at, gains, lane, right_edge - left_edge, gathered)
        else:
            _store_four(sums, lane_spot, gathered)
    return squares


@njit(**LOOP)
def _add_tile(volume, residual, angles, inside, weights, weigh, keeps, relaxation, tile, change):
    """Update one tile of `volume`, in one pass; put the sum of its squared changes into `change`."""
    tables = _new_tables(ANGLES_PER_PASS * TABLE_LANES)
    top, bottom, left_edge, right_edge = tile
    squares = zeros(volume)
    for row in range(top, bottom):
        for column in range(left_edge, right_edge, TABLE_LANES):
            pixels = row, column, min(right_edge, column + TABLE_LANES), 0
            squares = squares + _pass_row(
                volume, residual, angles, inside, weights, weigh, keeps, relaxation, pixels, tables, volume, True, True
            )
    store(change, 0, squares)


@njit(**LOOP)
def _add_tile_in_passes(volume, residual, angles, inside, weights, weigh, relaxation, tile, change):
    """Update one tile of `volume`, some angles at a time, whose bins stay in the cache."""
    tables = _new_tables(ANGLES_PER_PASS * TABLE_LANES)
    top, bottom, left_edge, right_edge = tile
    count, squares = len(angles), zeros(volume)
    sums = np.empty(TILE_ROWS * TILE_COLUMNS, volume.dtype)
    for start in range(0, count, ANGLES_PER_PASS):
        end = min(count, start + ANGLES_PER_PASS)
        part, some = residual[start:end], angles[start:end]
        for row in range(top, bottom):
            pixels = row, left_edge, right_edge, (row - top) * TILE_COLUMNS * width(volume)
            squares = squares + _pass_row(
                volume, part, some, inside, weights, weigh, True, relaxation, pixels, tables, sums, start == 0,
                end == count,
            )  # fmt: skip
    store(change, 0, squares)


@njit(**PARALLEL)
def add_back(volume, residual, angles, inside, weights, weigh, keeps, relaxation, tile_rows, tile_columns, changes):
    """Add `relaxation` * `weights` * the back projection of `residual` to `volume`, tile by tile.

    `weights` (rows, columns and more) are 1 / the sum of the lengths of all rays in a pixel, 0 for pixels that are not
    `inside`. With `weigh` they are worked out here, since the lengths are at hand, and filled in if one `keeps` them,
    as more than one pass must. `changes` [slab][tile] takes the sum of the squared changes, one vector per tile.
    """
    size = columns_of(inside)
    across = (size + tile_columns - 1) // tile_columns
    tiles = changes.shape[1]
    for tile in prange(tiles):
        row, column = unravel(tile, across)
        row, column = row * tile_rows, column * tile_columns
        edges = row, min(size, row + tile_rows), column, min(size, column + tile_columns)
        for slab in range(changes.shape[0]):
            first = weigh and (slab == 0 or not keeps)
            part, bins, change = volume[slab], residual[slab], changes[slab, tile:]
            if len(angles) <= ANGLES_PER_PASS:
                _add_tile(part, bins, angles, inside, weights, first, keeps, relaxation, edges, change)
            else:
                _add_tile_in_passes(part, bins, angles, inside, weights, first, relaxation, edges, change)


# --------------------------------------------------------------------------------------------------- misfit


@njit(**LOOP)
def _square_row(residual, sinogram, weights, sums):
    """Put the squares of one angle's differences and of its measured values into `sums` (2 vectors)."""
    vector = width(sinogram)
    differences, measured = zeros(sinogram), zeros(sinogram)
    for ray in range(len(sinogram)):
        if weights[ray] > np.float32(0.0):
            difference = (np.float32(1.0) / weights[ray]) * load(residual, (ray + BINS_BEFORE) * vector)
            value = load(sinogram, ray * vector)
            differences = differences + difference * difference
            measured = measured + value * value
    store(sums, 0, differences)
    store(sums, vector, measured)


@njit(**PARALLEL)
def sum_squares(residual, sinogram, weights, sums):
    """Fill `sums` [slab][angle][2] with the sums of squares of b - A x and of b, over rays that cross pixels."""
    slabs, count, _ = sinogram.shape
    for job in prange(slabs * count):
        slab, index = unravel(job, count)
        _square_row(residual[slab, index], sinogram[slab, index], weights[index], sums[slab, index])
