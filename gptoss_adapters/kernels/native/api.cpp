// The exported C functions and the choice of instruction set.
#include <cstring>
#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

#include "attention.h"
#include "codec.h"
#include "drivers.h"
#include "encode.h"
#include "packed.h"
#include "pool.h"
#include "stream.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

struct Isa {
    const char* name;
    bool (*usable)();
    const CodecKernels* codec;
    const EncodeKernels* encode;
    const AttentionKernels* attention;
    const PackedKernels* packed;
    Kernels kernels;
};

bool always() { return true; }
#if defined(__x86_64__)
bool has_avx2() {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
bool has_avx512vnni() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}
bool has_avx512vbmi() { return has_avx512vnni() && __builtin_cpu_supports("avx512vbmi"); }
// The tile registers must also be asked for, once for the process.
bool has_amx() {
    unsigned a, b, c, d;
    if (!has_avx512vbmi() || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    constexpr unsigned AMX_BF16 = 1u << 22, AMX_TILE = 1u << 24;
    constexpr long ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18;
    return (d & AMX_BF16) && (d & AMX_TILE) && syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}
#endif
#if defined(MXFP4_HAS_neon)
bool has_dotprod() { return getauxval(AT_HWCAP) & (1 << 20); }  // HWCAP_ASIMDDP
#endif

const Isa ISAS[] = {  // fastest first
#if defined(MXFP4_HAS_amx)
    {"amx", has_amx, &codec_amx, &encode_amx, &attention_amx, &packed_amx, {&matmul_amx, {&gemm_vnni, &gemm_amx}}},
#endif
#if defined(MXFP4_HAS_avx512vnni)
    {"avx512vbmi", has_avx512vbmi, &codec_avx512vbmi, &encode_avx512vnni, &attention_avx512vnni, &packed_avx512vbmi, {&matmul_avx512vbmi, {&gemm_vnni, nullptr}}},
    {"avx512vnni", has_avx512vnni, &codec_avx512vnni, &encode_avx512vnni, &attention_avx512vnni, &packed_avx512vnni, {&matmul_avx512vnni, {&gemm_vnni, nullptr}}},
#endif
#if defined(MXFP4_HAS_avx2)
    {"avx2", has_avx2, &codec_avx2, &encode_avx2, &attention_avx2, &packed_avx2, {&matmul_avx2, {nullptr, nullptr}}},
#endif
#if defined(MXFP4_HAS_neon)
    {"neon", has_dotprod, &codec_neon, &encode_neon, &attention_neon, &packed_neon, {&matmul_neon, {nullptr, nullptr}}},
#endif
    {"portable", always, &codec_portable, &encode_portable, &attention_portable, &packed_portable, {&matmul_portable, {nullptr, nullptr}}},
};

const Isa* chosen = nullptr;

}  // namespace

// Selects by name, or the fastest usable for "". Returns its name, or null when it is unknown or this machine lacks it.
EXPORT const char* mxfp4_select(const char* name) {
    for (const Isa& isa : ISAS)
        if ((!*name || strcmp(name, isa.name) == 0) && isa.usable()) {
            chosen = &isa;
            return isa.name;
        }
    return nullptr;
}

EXPORT void mxfp4_hf_to_ggml(const uint8_t* blocks, const uint8_t* scales, int64_t rows, int64_t groups, int64_t row_step, uint8_t* ggml) {
    chosen->codec->hf_to_ggml(blocks, scales, rows, groups, row_step, ggml);
}
EXPORT void mxfp4_ggml_to_hf(const uint8_t* ggml, int64_t rows, int64_t groups, int64_t row_step, uint8_t* blocks, uint8_t* scales) {
    chosen->codec->ggml_to_hf(ggml, rows, groups, row_step, blocks, scales);
}
EXPORT int64_t mxfp4_compare_ggml(const uint8_t* blocks, const uint8_t* scales, int64_t rows, int64_t groups, int64_t row_step,
                                  const uint8_t* ggml) {
    return chosen->codec->compare_ggml(blocks, scales, rows, groups, row_step, ggml);
}
EXPORT void mxfp4_decode(const uint8_t* blocks, const uint8_t* scales, int64_t rows, int64_t groups, int64_t row_step, void* out, int32_t target) {
    chosen->codec->decode(blocks, scales, rows, groups, row_step, out, target);
}
EXPORT int64_t mxfp4_encode(const void* x, int32_t source, int64_t n_blocks, const EncodeRule* rule, const uint8_t* given, uint8_t* blocks,
                            uint8_t* scales) {
    return chosen->encode->encode(x, source, n_blocks, rule, given, blocks, scales);
}
EXPORT void mxfp4_measure(const void* x, int32_t source, int64_t n_blocks, const uint8_t* blocks, const uint8_t* scales, const uint8_t* base_blocks,
                          const uint8_t* base_scales, EncodeStats* stats) {
    chosen->encode->measure(x, source, n_blocks, blocks, scales, base_blocks, base_scales, stats);
}
EXPORT void mxfp4_to_f32(const uint16_t* bf16, int64_t n, float* out) { chosen->codec->to_f32(bf16, n, out); }
EXPORT void mxfp4_to_f16(const void* x, int32_t source, int64_t n, uint16_t* out) { chosen->codec->to_f16(x, source, n, out); }
EXPORT void mxfp4_to_q8_0(const void* x, int32_t source, int64_t n_blocks, uint8_t* out) { chosen->codec->to_q8_0(x, source, n_blocks, out); }

// 0, and nothing done, when an expert id is out of range.
EXPORT int32_t mxfp4_moe(const MoeArguments* a) {
    for (int64_t p = 0; p < a->tokens * a->top_k; ++p)
        if (a->ids[p] < 0 || a->ids[p] >= a->experts) return 0;
    hold(a->threads, [&] { run_moe(chosen->kernels, *a); });
    return 1;
}
EXPORT void mxfp4_matmul(const uint8_t* blocks, const uint8_t* scales, const float* bias, int64_t rows, int64_t groups, int64_t tokens,
                         const float* x, int32_t precision, int32_t threads, float* y) {
    hold(threads, [&] { run_matmul(chosen->kernels, {blocks, scales, bias, groups, rows}, tokens, x, precision, threads, y); });
}
EXPORT void mxfp4_linear_bf16(const uint16_t* w, const float* bias, int64_t rows, int64_t k, int64_t tokens, const float* x, int32_t threads,
                              float* y) {
    run_linear_bf16(chosen->kernels, w, bias, rows, k, tokens, x, threads, y);
}

EXPORT void mxfp4_attend(const AttendArguments* a) {
    parallel(a->threads, a->batch * a->queries * a->kv_heads, [&](int64_t item) { chosen->attention->attend(*a, item); });
}
EXPORT void mxfp4_rms_norm(const float* x, const float* scale, int64_t rows, int64_t n, float eps, float* out) {
    for (int64_t r = 0; r < rows; ++r) chosen->attention->rms_norm(x + r * n, scale, n, eps, out + r * n);
}

EXPORT void mxfp4_rotate(const float* x, const float* cos, const float* sin, int64_t rows, int64_t heads, int64_t half, float* out) {
    for (int64_t i = 0; i < rows * heads; ++i)
        chosen->attention->rotate(x + i * 2 * half, cos + i / heads * half, sin + i / heads * half, half, out + i * 2 * half);
}

EXPORT void mxfp4_pack_count(const uint16_t* w, int64_t n, int64_t* histogram) { pack_count(w, n, histogram); }
EXPORT void mxfp4_pack_rows(const uint16_t* w, const PackedMatrix* m) { pack_rows(w, *m); }
EXPORT void mxfp4_pack_listed(const uint16_t* w, const PackedMatrix* m) { pack_listed(w, *m); }
EXPORT void mxfp4_unpack_rows(const PackedMatrix* m, int64_t begin, int64_t end, uint16_t* out) { unpack_rows(*chosen->packed, *m, begin, end, out); }
EXPORT void mxfp4_linear_packed(const PackedMatrix* m, const float* bias, int64_t tokens, const float* x, float* y) {
    run_linear_packed(*chosen->packed, *m, bias, tokens, x, y);
}

EXPORT void mxfp4_use_openmp(void* gomp_parallel) { pool_use_openmp(reinterpret_cast<GompParallel>(gomp_parallel)); }

EXPORT int32_t mxfp4_stream(StreamArguments* a) { return run_stream(*chosen->codec, *a); }
