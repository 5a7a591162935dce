// Compiled once per instruction set (MXFP4_ISA); file-local functions and intrinsics only, see codec.cpp.
#include "attention.h"

#include "lanes.h"

#define CONCAT_(a, b) a##b
#define CONCAT(a, b) CONCAT_(a, b)

namespace {

constexpr int64_t TILE = 32;  // keys whose scores are held at a time

INLINE float dot(const float* a, const float* b, int64_t n) {
    float lane[LANES] = {};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; ++l) lane[l] += a[i + l] * b[i + l];
    float total = sum_lanes(lane);
    for (; i < n; ++i) total += a[i] * b[i];
    return total;
}

// Softmax as the keys come by: with a higher maximum, what was summed is scaled down. The sink is the first score, without a value.
void attend(const AttendArguments& a, int64_t item) {
    const int64_t group = a.heads / a.kv_heads, hd = a.head_dim, row = item / a.kv_heads, kv_head = item % a.kv_heads, b = row / a.queries;
    const int64_t position = a.q_positions[row], step = a.kv_heads * hd, *positions = a.k_positions + b * a.k_positions_stride;
    const float *q = a.q + (row * a.heads + kv_head * group) * hd, *k = a.k + b * a.kv_stride + kv_head * hd, *v = a.v + b * a.kv_stride + kv_head * hd;
    const float scale = 1.0f / __builtin_sqrtf(float(hd));
    float* out = a.out + (row * a.heads + kv_head * group) * hd;
    float top[MAX_GROUP], sum[MAX_GROUP];
    for (int64_t g = 0; g < group; ++g) {
        top[g] = a.sinks[kv_head * group + g];
        sum[g] = 1.0f;
        for (int64_t i = 0; i < hd; ++i) out[g * hd + i] = 0.0f;
    }
    for (int64_t first = 0; first < a.keys; first += TILE) {
        int64_t seen[TILE], n = 0;
        for (int64_t s = first; s < a.keys && s < first + TILE; ++s) {
            const int64_t p = positions[s];
            if (p >= 0 && p <= position && (!a.window || position - p < a.window)) seen[n++] = s;
        }
        if (!n) continue;
        for (int64_t g = 0; g < group; ++g) {
            float weight[TILE] = {}, highest = top[g], *to = out + g * hd;
            for (int64_t j = 0; j < n; ++j) {
                weight[j] = dot(q + g * hd, k + seen[j] * step, hd) * scale;
                highest = weight[j] > highest ? weight[j] : highest;
            }
            if (highest > top[g]) {
                const float shrink = exp_f32(top[g] - highest);
                sum[g] *= shrink;
                for (int64_t i = 0; i < hd; ++i) to[i] *= shrink;
                top[g] = highest;
            }
            for (int64_t j = 0; j < TILE; ++j) weight[j] = exp_f32(weight[j] - highest);
            for (int64_t j = 0; j < n; ++j) {
                const float *value = v + seen[j] * step, w = weight[j];
                sum[g] += w;
                for (int64_t i = 0; i < hd; ++i) to[i] += w * value[i];
            }
        }
    }
    for (int64_t g = 0; g < group; ++g)
        for (int64_t i = 0; i < hd; ++i) out[g * hd + i] /= sum[g];
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

extern "C" const AttentionKernels CONCAT(attention_, MXFP4_ISA) = {attend, rms_norm, rotate};
