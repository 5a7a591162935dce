// Compiled once per instruction set (KERNELS_ISA); file-local functions and intrinsics only, see mxfp4_codec.cpp.
#include "layer_ops.h"
#include "per_isa.h"

#include "lanes.h"

namespace {

constexpr int64_t TILE = 32;  // keys whose scores are held at a time

// Sixteen lanes that the compiler keeps in registers, whatever their width (a GCC and Clang extension).
typedef float Lanes __attribute__((vector_size(LANES * 4)));
typedef float Half __attribute__((vector_size(LANES * 2)));
typedef float Quarter __attribute__((vector_size(LANES)));

INLINE Lanes load(const float* x) {
    Lanes v;
    memcpy(&v, x, sizeof v);
    return v;
}
INLINE float sum(Lanes v) {
    Half half[2];
    memcpy(half, &v, sizeof v);
    half[0] += half[1];
    Quarter quarter[2];
    memcpy(quarter, half, sizeof quarter);
    quarter[0] += quarter[1];
    return (quarter[0][0] + quarter[0][2]) + (quarter[0][1] + quarter[0][3]);
}

INLINE float dot(const float* a, const float* b, int64_t n) {
    Lanes lanes = {};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) lanes += load(a + i) * load(b + i);
    float total = sum(lanes);
    for (; i < n; ++i) total += a[i] * b[i];
    return total;
}

INLINE void fetch(const float* row, int64_t n) {
    for (int64_t i = 0; i < n; i += LANES) __builtin_prefetch(row + i);
}

// to[g] += sum of weight[g][j] * values[j], for N heads at once: their sums do not wait for each other.
template <int N> INLINE void add_weighted(const float* const* values, const float (*weight)[TILE], int64_t count, int64_t n, float* to) {
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        Lanes lanes[N];
        for (int g = 0; g < N; ++g) lanes[g] = load(to + g * n + i);
        for (int64_t j = 0; j < count; ++j) {
            const Lanes value = load(values[j] + i);
            for (int g = 0; g < N; ++g) lanes[g] += weight[g][j] * value;
        }
        for (int g = 0; g < N; ++g) memcpy(to + g * n + i, &lanes[g], sizeof lanes[g]);
    }
    for (; i < n; ++i)
        for (int g = 0; g < N; ++g)
            for (int64_t j = 0; j < count; ++j) to[g * n + i] += weight[g][j] * values[j][i];
}

// Softmax as the keys come by: with a higher maximum, what was summed is scaled down. The sink is the first score, without a value.
// Keys and values of one head lie far apart, so those of the next tile are fetched while one is worked on.
void attend(const AttendArguments& a, int64_t item) {
    const int64_t group = a.heads / a.kv_heads, hd = a.head_dim, row = item / a.kv_heads, kv_head = item % a.kv_heads, b = row / a.queries;
    const int64_t position = a.q_positions[row], step = a.kv_heads * hd, *positions = a.k_positions + b * a.k_positions_stride;
    const float *q = a.q + (row * a.heads + kv_head * group) * hd, *k = a.k + b * a.kv_stride + kv_head * hd, *v = a.v + b * a.kv_stride + kv_head * hd;
    const float scale = 1.0f / __builtin_sqrtf(float(hd));
    float* out = a.out + (row * a.heads + kv_head * group) * hd;
    float top[MAX_GROUP], total[MAX_GROUP];
    for (int64_t g = 0; g < group; ++g) {
        top[g] = a.sinks[kv_head * group + g];
        total[g] = 1.0f;
        for (int64_t i = 0; i < hd; ++i) out[g * hd + i] = 0.0f;
    }
    for (int64_t first = 0; first < a.keys; first += TILE) {
        const float *keys[TILE], *values[TILE];
        int64_t n = 0;
        for (int64_t s = first; s < a.keys && s < first + TILE; ++s) {
            const int64_t p = positions[s];
            if (s + TILE < a.keys) {
                fetch(k + (s + TILE) * step, hd);
                fetch(v + (s + TILE) * step, hd);
            }
            if (p < 0 || p > position || (a.window && position - p >= a.window)) continue;
            keys[n] = k + s * step;
            values[n++] = v + s * step;
        }
        if (!n) continue;
        float weight[MAX_GROUP][TILE];
        for (int64_t g = 0; g < group; ++g) {
            float highest = top[g], sum = 0.0f;
            for (int64_t j = 0; j < TILE; ++j) weight[g][j] = j < n ? dot(q + g * hd, keys[j], hd) * scale : -1e30f;
            for (int64_t j = 0; j < n; ++j) highest = weight[g][j] > highest ? weight[g][j] : highest;
            if (highest > top[g]) {
                const float shrink = exp_f32(top[g] - highest);
                total[g] *= shrink;
                for (int64_t i = 0; i < hd; ++i) out[g * hd + i] *= shrink;
                top[g] = highest;
            }
            for (int64_t j = 0; j < TILE; ++j) weight[g][j] = exp_f32(weight[g][j] - highest);
            for (int64_t j = 0; j < n; ++j) sum += weight[g][j];
            total[g] += sum;
        }
        int64_t g = 0;
        for (; g + 8 <= group; g += 8) add_weighted<8>(values, weight + g, n, hd, out + g * hd);
        for (; g < group; ++g) add_weighted<1>(values, weight + g, n, hd, out + g * hd);
    }
    for (int64_t g = 0; g < group; ++g)
        for (int64_t i = 0; i < hd; ++i) out[g * hd + i] /= total[g];
}

void rms_norm(const float* x, const float* scale, int64_t n, float eps, float* out) {
    const float factor = 1.0f / __builtin_sqrtf(dot(x, x, n) / float(n) + eps);
    for (int64_t i = 0; i < n; ++i) out[i] = x[i] * factor * scale[i];
}

void rotate(const float* x, const float* cos, const float* sin, int64_t half, float* out) {
    for (int64_t i = 0; i < half; ++i) {
        const float first = x[i], second = x[half + i];
        out[i] = first * cos[i] - second * sin[i];
        out[half + i] = second * cos[i] + first * sin[i];
    }
}

}  // namespace

extern "C" const LayerKernels OF_THIS_ISA(layer) = {attend, rms_norm, rotate};
