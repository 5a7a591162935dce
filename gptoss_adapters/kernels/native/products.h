// What the exported products do, for any instruction set: share rows among threads, group tokens by expert.
#pragma once
#include "matmul.h"

struct MoeArguments {  // twin: kernels/structs.py
    const uint8_t *gate_up_blocks, *gate_up_scales;
    const float* gate_up_bias;  // [E, 2I]
    const uint8_t *down_blocks, *down_scales;
    const float* down_bias;  // [E, H]
    int64_t hidden, inter, experts, tokens, top_k;
    const float* x;         // [T, H]
    const int32_t* ids;     // [T, K]
    const float* weights;   // [T, K]
    float* y;               // [T, H]
    float alpha, limit;
    int32_t precision, threads;
};

struct ProductKernels {
    const MatmulKernels* matmul;
    const GemmKernels* gemm[2];  // for more and more tokens, or null

    const GemmKernels* gemm_for(int64_t tokens) const {
        for (int i = 1; i >= 0; --i)
            if (gemm[i] && tokens >= gemm[i]->min_tokens) return gemm[i];
        return nullptr;
    }
};

void run_moe(const ProductKernels& k, const MoeArguments& a);
void run_matmul(const ProductKernels& k, const Rows& w, int64_t tokens, const float* x, int32_t precision, int threads, float* y);
void run_linear_bf16(const ProductKernels& k, const uint16_t* w, const float* bias, int64_t rows, int64_t width, int64_t tokens, const float* x,
                     int threads, float* y);
