// The loops of the projector on a GPU, with the weights of `_footprint.py`.
//
// Volumes are [row][column][slice], sinograms [angle][column][slice]: neighbouring threads have neighbouring slices (of
// the same ray or pixel, then of the next), so that they read and write whole lines of memory and share their weights.
// Both projections gather, each thread for itself: the result depends on no order.
//
// Volumes and measured sinograms are stored in 32 bits, or with HALF in 16; sums and residuals have 32.
// Positions are integers, units of 2**-40 column: exact to 1e-8 column on any detector.

#ifdef HALF
#include <cuda_fp16.h>
typedef __half Stored;
__device__ inline float number(Stored kept) { return __half2float(kept); }
__device__ inline Stored keep(float value) { return __float2half(value); }
#else
typedef float Stored;
__device__ inline float number(Stored kept) { return kept; }
__device__ inline Stored keep(float value) { return value; }
#endif

typedef long long Position;

const int POSITION_BITS = 40;
const int FRACTION_BITS = 24;              // all that a float holds
const float UNIT = 5.9604644775390625e-8f; // 2**-FRACTION_BITS
const float NEGLIGIBLE = 1e-6f;            // lengths up to this are rounding, as in `_footprint.py`

// `cuda.ANGLE` lays it out.
struct Angle {
    Position cos, sin, first;     // a pixel lies before bin first + column * cos - row * sin
    Position origin, pitch, slope; // ray r crosses column (or row) origin + r * pitch + step * slope
    int by_rows;
    float peak, top, pixel_fall, bin_fall; // weight: min(peak, max(0, top - fall * distance))
};

// The neighbours `below` and `below + 1` of a position, and their weights.
struct Taps {
    int below;
    float near, far;
};

__device__ inline float weight(const Angle &angle, float drop) {
    return fminf(angle.peak, fmaxf(0.0f, angle.top - drop));
}

__device__ inline Taps taps(const Angle &angle, Position position, float fall) {
    Position units = (position >> (POSITION_BITS - FRACTION_BITS)) & ((1 << FRACTION_BITS) - 1);
    float fraction = (float)units * UNIT;
    Taps found = {(int)(position >> POSITION_BITS), weight(angle, fall * fraction),
                  weight(angle, fall * (1.0f - fraction))};
    return found;
}

__device__ inline bool within(int index, int size) { return 0 <= index && index < size; }

__device__ inline bool in_circle(int row, int column, int size, double radius) {
    double y = row - (size - 1) / 2.0, x = column - (size - 1) / 2.0;
    return y * y + x * x <= radius * radius;
}

// Number of this thread in its row of the grid.
__device__ inline long long lane() { return (long long)blockIdx.x * blockDim.x + threadIdx.x; }

// Fill `spans` [angle][ray][2] with each ray's first and one past its last step, `weights` with 1 / row norm.
extern "C" __global__ void trace_rays(const Angle *angles, int size, double radius, int squared, int *spans,
                                      float *weights) {
    if (lane() >= size) return;
    int ray = (int)lane(), first = size, end = 0;
    Angle angle = angles[blockIdx.y];
    Position position = angle.origin + ray * angle.pitch;
    float norm = 0.0f;
    for (int step = 0; step < size; ++step, position += angle.slope) {
        Taps tap = taps(angle, position, angle.pixel_fall);
        for (int side = 0; side < 2; ++side) {
            int across = tap.below + side;
            float length = side ? tap.far : tap.near;
            int row = angle.by_rows ? step : across, column = angle.by_rows ? across : step;
            if (!within(across, size) || !in_circle(row, column, size, radius)) continue;
            norm += squared ? length * length : length;
            first = min(first, step);
            end = step + 1;
        }
    }
    long long line = (long long)blockIdx.y * size + ray;
    spans[2 * line] = first;
    spans[2 * line + 1] = end;
    weights[line] = norm > NEGLIGIBLE ? 1.0f / norm : 0.0f;
}

// Fill `out` with `weights` * (`measured` - the projections of `volume`): a thread for each ray and slice.
extern "C" __global__ void fill_residual(const Stored *volume, const Stored *measured, const Angle *angles,
                                         const int *spans, const float *weights, int size, int slices, float *out) {
    if (lane() >= (long long)size * slices) return;
    int ray = (int)(lane() / slices), slice = (int)(lane() % slices);
    Angle angle = angles[blockIdx.y];
    long long line = (long long)blockIdx.y * size + ray;
    int first = spans[2 * line], end = spans[2 * line + 1];
    long long row = (long long)size * slices;
    long long along = angle.by_rows ? row : slices, across = angle.by_rows ? slices : row;
    Position position = angle.origin + ray * angle.pitch + first * angle.slope;
    const Stored *image = volume + slice + first * along;
    float sum = 0.0f;
    for (int step = first; step < end; ++step, position += angle.slope, image += along) {
        Taps tap = taps(angle, position, angle.pixel_fall);
        if (within(tap.below, size)) sum += tap.near * number(image[tap.below * across]);
        if (within(tap.below + 1, size)) sum += tap.far * number(image[(tap.below + 1) * across]);
    }
    long long place = line * slices + slice;
    out[place] = weights[line] * (number(measured[place]) - sum);
}

// Add `relaxation` * the back projection of `residual` to `volume`, with `weigh` over the sum of each pixel's lengths.
// A thread has `rows` pixels of a column in one slice, and puts the sum of their squared changes into `changes`.
extern "C" __global__ void add_back(Stored *volume, const float *residual, const Angle *angles, int count, int size,
                                    int slices, double radius, int weigh, float relaxation, int rows,
                                    float *changes) {
    if (lane() >= (long long)size * slices) return;
    int column = (int)(lane() / slices), slice = (int)(lane() % slices);
    int top = blockIdx.y * rows, bottom = min(size, top + rows);
    float squares = 0.0f;
    for (int row = top; row < bottom; ++row) {
        if (!in_circle(row, column, size, radius)) continue;
        float sum = 0.0f, lengths = 0.0f;
        for (int index = 0; index < count; ++index) {
            Angle angle = angles[index];
            Taps tap = taps(angle, angle.first + column * angle.cos - row * angle.sin, angle.bin_fall);
            const float *bins = residual + (long long)index * size * slices + slice;
            if (within(tap.below, size)) {
                sum += tap.near * bins[(long long)tap.below * slices];
                lengths += tap.near;
            }
            if (within(tap.below + 1, size)) {
                sum += tap.far * bins[(long long)(tap.below + 1) * slices];
                lengths += tap.far;
            }
        }
        float share = !weigh ? 1.0f : lengths > NEGLIGIBLE ? 1.0f / lengths : 0.0f;
        float change = relaxation * share * sum;
        long long place = ((long long)row * size + column) * slices + slice;
        volume[place] = keep(number(volume[place]) + change);
        squares += change * change;
    }
    changes[(long long)blockIdx.y * size * slices + lane()] = squares;
}
