// Products of MXFP4 rows (HF layout) with activations, one table of functions per instruction set.
#pragma once
#include <cstdint>

// How activations are held. Q8, Q16 and Q24: per block of 32 a scale and integers of that many bits, in 1, 2 or 3 int8 planes.
enum Precision : int32_t { F32 = 0, Q8 = 1, Q16 = 2, Q24 = 3 };

struct Rows {  // consecutive output rows of one expert
    const uint8_t* blocks;
    const uint8_t* scales;
    const float* bias;  // of these rows, or null
    int64_t groups;     // blocks per row
    int64_t rows;
};

struct MatmulKernels {
    // False when the vector needs rows_f32: a NaN, an Inf, or a block whose largest magnitude is neither 0 nor in 2^-100..2^100.
    bool (*fits)(const float* x, int64_t groups);
    int64_t (*prepared_bytes)(int32_t precision, int64_t groups);
    void (*prepare)(int32_t precision, const float* x, int64_t groups, uint8_t* out);
    // y[t][r] = bias[r] + sum over k of W[r][k] * x_t[k], for `tokens` prepared vectors.
    void (*rows)(int32_t precision, const Rows& w, int64_t tokens, const uint8_t* const* x, float* const* y);
    // The same for one vector in plain float32: slow, and right for every input.
    void (*rows_f32)(const Rows& w, const float* x, float* y);
    // out[i] = g * sigmoid(alpha * g) * (u + 1), g = min(h[2i], limit), u = clip(h[2i + 1], -limit, limit)
    void (*swiglu)(const float* h, int64_t n, float alpha, float limit, float* out);
    // y[t][r] = bias[r] + sum over k of w[r][k] * x[t][k]; w bfloat16 [rows, k], row stride k.
    void (*rows_bf16)(const uint16_t* w, const float* bias, int64_t rows, int64_t k, int64_t tokens, const float* const* x, float* const* y);
};

// Products with many vectors at once, for which weights are decoded once. On AMX activations are sums of 1, 2 or 3 bfloat16
// (Q8, Q16, Q24), weights exact bfloat16, sums float32; on AVX512-VNNI the integers are those of MatmulKernels.
struct GemmKernels {
    int64_t min_tokens;  // from how many on it is faster than `rows`
    int64_t panel;       // vectors packed together
    int64_t row_tile;    // rows are taken in multiples of this
    int64_t (*packed_bytes)(int32_t precision, int64_t groups);
    void (*pack)(int32_t precision, const float* const* x, int64_t count, int64_t groups, uint8_t* out);
    // As MatmulKernels::rows, for vectors packed `panel` at a time, panels packed_bytes apart. w.rows is a multiple of row_tile.
    // False, and nothing done, when a weight is subnormal or overflows bfloat16, which AMX would change.
    bool (*rows)(int32_t precision, const Rows& w, int64_t tokens, const uint8_t* packed, float* const* y);
    // As MatmulKernels::rows_bf16, for vectors packed as Q24; w is [n][groups * 32]. Subnormal weights count as zero. Or null.
    void (*rows_bf16)(const uint16_t* w, const float* bias, int64_t n, int64_t groups, int64_t tokens, const uint8_t* packed, float* const* y);
};
