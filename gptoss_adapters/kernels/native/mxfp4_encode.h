// bfloat16 or float32 -> MXFP4 blocks in HF order, and what that did; one table of functions per instruction set.
#pragma once
#include <cstdint>

#include "mxfp4_codec.h"

struct EncodeRule {       // twin: kernels/structs.py; see RULES in oracle.py
    uint32_t round_up;    // added to the float bits of amax before its exponent is taken
    int32_t ties_to_even; // 0: ties go to the smaller magnitude
    int32_t keep_minus_zero;
    int32_t search;       // take the scale one above or below where the squared error is smaller
};

struct EncodeStats {      // twin: kernels/structs.py; sums over blocks
    double error, power;  // squares
    int64_t changed, zero_blocks, minus_zeros, max_codes[8];
};

struct EncodeKernels {
    // Index of the first block holding a NaN or Inf, or -1. `given`, or null: scales that a block keeps when it is exact under them.
    int64_t (*encode)(const void* x, int32_t source, int64_t n_blocks, const EncodeRule* rule, const uint8_t* given, uint8_t* blocks, uint8_t* scales);
    // `base_blocks` and `base_scales`, or null: what `changed` counts differences from.
    void (*measure)(const void* x, int32_t source, int64_t n_blocks, const uint8_t* blocks, const uint8_t* scales, const uint8_t* base_blocks,
                    const uint8_t* base_scales, EncodeStats* stats);
};
