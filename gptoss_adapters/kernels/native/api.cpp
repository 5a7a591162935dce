// The exported C functions.
#include "isas.h"
#include "pool.h"
#include "stream.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {
const Isa* chosen = nullptr;
}

// Selects by name, or the fastest usable for "". Returns its name, or null when it is unknown or this machine lacks it.
EXPORT const char* gptoss_select(const char* name) {
    const Isa* isa = find_isa(name);
    if (isa) chosen = isa;
    return isa ? isa->name : nullptr;
}

EXPORT void gptoss_hf_to_ggml(const uint8_t* blocks, const uint8_t* scales, int64_t rows, int64_t groups, int64_t row_step, uint8_t* ggml) {
    chosen->codec->hf_to_ggml(blocks, scales, rows, groups, row_step, ggml);
}
EXPORT void gptoss_ggml_to_hf(const uint8_t* ggml, int64_t rows, int64_t groups, int64_t row_step, uint8_t* blocks, uint8_t* scales) {
    chosen->codec->ggml_to_hf(ggml, rows, groups, row_step, blocks, scales);
}
EXPORT int64_t gptoss_compare_ggml(const uint8_t* blocks, const uint8_t* scales, int64_t rows, int64_t groups, int64_t row_step,
                                  const uint8_t* ggml) {
    return chosen->codec->compare_ggml(blocks, scales, rows, groups, row_step, ggml);
}
EXPORT void gptoss_decode(const uint8_t* blocks, const uint8_t* scales, int64_t rows, int64_t groups, int64_t row_step, void* out, int32_t target) {
    chosen->codec->decode(blocks, scales, rows, groups, row_step, out, target);
}
EXPORT int64_t gptoss_encode(const void* x, int32_t source, int64_t n_blocks, const EncodeRule* rule, const uint8_t* given, uint8_t* blocks,
                            uint8_t* scales) {
    return chosen->encode->encode(x, source, n_blocks, rule, given, blocks, scales);
}
EXPORT void gptoss_measure(const void* x, int32_t source, int64_t n_blocks, const uint8_t* blocks, const uint8_t* scales, const uint8_t* base_blocks,
                          const uint8_t* base_scales, EncodeStats* stats) {
    chosen->encode->measure(x, source, n_blocks, blocks, scales, base_blocks, base_scales, stats);
}
EXPORT void gptoss_to_f32(const uint16_t* bf16, int64_t n, float* out) { chosen->codec->to_f32(bf16, n, out); }
EXPORT void gptoss_to_f16(const void* x, int32_t source, int64_t n, uint16_t* out) { chosen->codec->to_f16(x, source, n, out); }
EXPORT void gptoss_to_q8_0(const void* x, int32_t source, int64_t n_blocks, uint8_t* out) { chosen->codec->to_q8_0(x, source, n_blocks, out); }

// 0, and nothing done, when an expert id is out of range.
EXPORT int32_t gptoss_moe(const MoeArguments* a) {
    for (int64_t p = 0; p < a->tokens * a->top_k; ++p)
        if (a->ids[p] < 0 || a->ids[p] >= a->experts) return 0;
    hold(a->threads, [&] { run_moe(chosen->products, *a); });
    return 1;
}
EXPORT void gptoss_matmul(const uint8_t* blocks, const uint8_t* scales, const float* bias, int64_t rows, int64_t groups, int64_t tokens,
                         const float* x, int32_t precision, int32_t threads, float* y) {
    hold(threads, [&] { run_matmul(chosen->products, {blocks, scales, bias, groups, rows}, tokens, x, precision, threads, y); });
}
EXPORT void gptoss_linear_bf16(const uint16_t* w, const float* bias, int64_t rows, int64_t k, int64_t tokens, const float* x, int32_t threads,
                              float* y) {
    run_linear_bf16(chosen->products, w, bias, rows, k, tokens, x, threads, y);
}

EXPORT void gptoss_attend(const AttendArguments* a) {
    parallel(a->threads, a->batch * a->queries * a->kv_heads, [&](int64_t item) { chosen->layer->attend(*a, item); });
}
EXPORT void gptoss_rms_norm(const float* x, const float* scale, int64_t rows, int64_t n, float eps, float* out) {
    for (int64_t r = 0; r < rows; ++r) chosen->layer->rms_norm(x + r * n, scale, n, eps, out + r * n);
}

EXPORT void gptoss_rotate(const float* x, const float* cos, const float* sin, int64_t rows, int64_t heads, int64_t half, float* out) {
    for (int64_t i = 0; i < rows * heads; ++i)
        chosen->layer->rotate(x + i * 2 * half, cos + i / heads * half, sin + i / heads * half, half, out + i * 2 * half);
}

EXPORT void gptoss_pack_count(const uint16_t* w, int64_t n, int64_t* histogram) { pack_count(w, n, histogram); }
EXPORT void gptoss_pack_rows(const uint16_t* w, const PackedMatrix* m) { pack_rows(w, *m); }
EXPORT void gptoss_pack_listed(const uint16_t* w, const PackedMatrix* m) { pack_listed(w, *m); }
EXPORT void gptoss_unpack_rows(const PackedMatrix* m, int64_t begin, int64_t end, uint16_t* out) { unpack_rows(*chosen->packed, *m, begin, end, out); }
EXPORT void gptoss_linear_packed(const PackedMatrix* m, const float* bias, int64_t tokens, const float* x, float* y) {
    run_linear_packed(*chosen->packed, *m, bias, tokens, x, y);
}

EXPORT void gptoss_use_openmp(void* gomp_parallel) { pool_use_openmp(reinterpret_cast<GompParallel>(gomp_parallel)); }

EXPORT int32_t gptoss_stream(StreamArguments* a) { return run_stream(*chosen->codec, *a); }
