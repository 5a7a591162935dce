// Format conversions, one table of functions per instruction set.
// Layouts: an HF block is 16 bytes (byte j = value 2j low nibble, 2j+1 high) with its e8m0 scale in a separate array;
// a GGML block is 17 bytes: the scale, then byte j = value j low nibble, value 16+j high.
#pragma once
#include <cstdint>

enum SourceType : int32_t { SOURCE_F32 = 0, SOURCE_BF16 = 1 };

// `rows` rows of `groups` blocks; consecutive input (HF side) rows are `row_step` rows apart, GGML and decoded rows are dense.
struct CodecKernels {
    void (*hf_to_ggml)(const uint8_t* blocks, const uint8_t* scales, int64_t rows, int64_t groups, int64_t row_step, uint8_t* ggml);
    void (*ggml_to_hf)(const uint8_t* ggml, int64_t rows, int64_t groups, int64_t row_step, uint8_t* blocks, uint8_t* scales);
    // Index row * groups + group of the first differing block, or -1.
    int64_t (*compare_ggml)(const uint8_t* blocks, const uint8_t* scales, int64_t rows, int64_t groups, int64_t row_step, const uint8_t* ggml);
    void (*decode)(const uint8_t* blocks, const uint8_t* scales, int64_t rows, int64_t groups, int64_t row_step, void* out, int32_t target);
    void (*to_f32)(const uint16_t* bf16, int64_t n, float* out);
    void (*to_f16)(const void* x, int32_t source, int64_t n, uint16_t* out);
    void (*to_q8_0)(const void* x, int32_t source, int64_t n_blocks, uint8_t* out);
};
