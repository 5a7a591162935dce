// What a step of a few tokens needs beside its products, one table of functions per instruction set.
#pragma once
#include <cstdint>

struct AttendArguments {  // twin: kernels/structs.py
    const float* q;        // [B, T, n, hd]
    const float *k, *v;    // [B, S, n_kv, hd], rows of a batch kv_stride floats apart
    const float* sinks;    // [n]
    const int64_t *q_positions, *k_positions;  // [B, T]; [B, S], rows k_positions_stride apart
    float* out;            // [B, T, n, hd]
    int64_t kv_stride, k_positions_stride, batch, queries, keys, heads, kv_heads, head_dim, window;  // window 0: none
    int32_t threads;
};

constexpr int64_t MAX_GROUP = 64;  // query heads of a key head

struct LayerKernels {
    // The query heads of one key head at one position: item (b * T + t) * n_kv + head.
    void (*attend)(const AttendArguments& a, int64_t item);
    // out[i] = x[i] / rms(x) * scale[i]
    void (*rms_norm)(const float* x, const float* scale, int64_t n, float eps, float* out);
    // One head, [2 * half], its halves rotated against each other.
    void (*rotate)(const float* x, const float* cos, const float* sin, int64_t half, float* out);
};
