// Compiled once per instruction set (KERNELS_ISA). Only intrinsics and file-local functions here: an inline function shared
// through a header could be linked in its AVX512 form for every machine.
#include "mxfp4_codec.h"
#include "per_isa.h"
#include "mxfp4_nibbles.h"
#include "mxfp4.h"

#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace {

// ---- repack -------------------------------------------------------------------------------------------------------

#if defined(__AVX512BW__)
// The nibbles of four blocks in GGML's order.
inline __m512i hf_quad_order(const uint8_t* b) {
    const __m512i v = _mm512_loadu_si512(b), low = _mm512_set1_epi8(15);
    const __m512i even = _mm512_and_si512(v, low), odd = _mm512_and_si512(_mm512_srli_epi16(v, 4), low);
    return _mm512_or_si512(_mm512_unpacklo_epi8(even, odd), _mm512_slli_epi16(_mm512_unpackhi_epi8(even, odd), 4));
}

inline void hf_quad_to_ggml(const uint8_t* b, const uint8_t* s, uint8_t* ggml) {
    const __m512i o = hf_quad_order(b);
    store16(ggml + 1, _mm512_castsi512_si128(o));
    store16(ggml + 18, _mm512_extracti32x4_epi32(o, 1));
    store16(ggml + 35, _mm512_extracti32x4_epi32(o, 2));
    store16(ggml + 52, _mm512_extracti32x4_epi32(o, 3));
    for (int k = 0; k < 4; ++k) ggml[k * GGML_BLOCK] = s[k];
}
#else
inline void hf_quad_to_ggml(const uint8_t* b, const uint8_t* s, uint8_t* ggml) {
    for (int k = 0; k < 4; ++k) {
        ggml[k * GGML_BLOCK] = s[k];
        store16(ggml + k * GGML_BLOCK + 1, hf_order_to_ggml(load16(b + k * HF_BLOCK)));
    }
}
#endif

#if defined(__AVX512VBMI__)
constexpr int RUN = 64;            // blocks whose 17 bytes each fill whole lines of 64 bytes: 17 of them
constexpr int64_t AHEAD = 1024;    // bytes of input prefetched ahead, where no next row is known

// Output line l of a run takes its bytes from quads quad[l] and quad[l] + 1, or at the bits of `scale` from the scales.
struct RunTable { alignas(64) uint8_t from[GGML_BLOCK][64]; uint64_t scale[GGML_BLOCK]; int quad[GGML_BLOCK]; };

constexpr RunTable make_run_table() {
    RunTable t{};
    for (int l = 0; l < GGML_BLOCK; ++l) {
        t.quad[l] = -1;
        for (int i = 0; i < 64; ++i) {
            const int block = (64 * l + i) / GGML_BLOCK, byte = (64 * l + i) % GGML_BLOCK;
            const int nibbles = block * HF_BLOCK + byte - 1;
            if (byte == 0) {
                t.scale[l] |= uint64_t(1) << i;
                t.from[l][i] = uint8_t(block);
                continue;
            }
            if (t.quad[l] < 0) t.quad[l] = nibbles / 64;
            t.from[l][i] = uint8_t(nibbles - 64 * t.quad[l]);
        }
    }
    return t;
}
constexpr RunTable RUN_TABLE = make_run_table();

// RUN blocks as whole lines; `past_caches` needs an aligned output.
template <bool past_caches>
inline void hf_run_to_ggml(const uint8_t* b, const uint8_t* s, int64_t ahead, uint8_t* ggml) {
    const __m512i scales = _mm512_loadu_si512(s);
    __m512i quad = hf_quad_order(b), next = hf_quad_order(b + 64);
    int at = 0;
#pragma GCC unroll 17
    for (int l = 0; l < GGML_BLOCK; ++l) {
        if (RUN_TABLE.quad[l] != at) {
            at = RUN_TABLE.quad[l], quad = next;
            if (at + 1 < RUN / 4) next = hf_quad_order(b + 64 * (at + 1));
        }
        __builtin_prefetch(b + 64 * l + ahead);
        const __m512i from = _mm512_load_si512(RUN_TABLE.from[l]);
        const __m512i nibbles = _mm512_permutex2var_epi8(quad, from, next);
        const __m512i line = _mm512_mask_permutexvar_epi8(nibbles, RUN_TABLE.scale[l], from, scales);
        if (past_caches) _mm512_stream_si512(reinterpret_cast<__m512i*>(ggml + 64 * l), line);
        else _mm512_storeu_si512(ggml + 64 * l, line);
    }
}
#endif

inline void row_to_ggml(const uint8_t* b, const uint8_t* s, int64_t groups, int64_t stride, uint8_t* ggml) {
    int64_t g = 0;
#if defined(__AVX512VBMI__)
    for (; g + RUN <= groups; g += RUN, ggml += RUN * GGML_BLOCK) hf_run_to_ggml<false>(b + g * HF_BLOCK, s + g, stride, ggml);
#endif
    for (; g + 4 <= groups; g += 4, ggml += 4 * GGML_BLOCK) {
        __builtin_prefetch(b + g * HF_BLOCK + stride);  // the same column of the next row taken; past the end it is harmless
        hf_quad_to_ggml(b + g * HF_BLOCK, s + g, ggml);
    }
    for (; g < groups; ++g, ggml += GGML_BLOCK) {
        ggml[0] = s[g];
        store16(ggml + 1, hf_order_to_ggml(load16(b + g * HF_BLOCK)));
    }
}

// An output that no cache holds is written past them, as memcpy does it: reading its lines first would cost as much as the input.
#if defined(__AVX2__)
constexpr int64_t PAST_CACHES = 8 << 20, LINE = 64;
#endif

#if defined(__AVX512VBMI__)
// Rows without gaps between them are one run of `n` blocks.
void rows_in_one_to_ggml(const uint8_t* b, const uint8_t* s, int64_t n, uint8_t* ggml) {
    if (n * GGML_BLOCK < PAST_CACHES) return row_to_ggml(b, s, n, AHEAD, ggml);
    int64_t g = int64_t(-reinterpret_cast<uintptr_t>(ggml) * 49 % LINE);  // 17 * 49 % 64 is 1: so many blocks end on a line
    row_to_ggml(b, s, g, AHEAD, ggml);
    for (; g + RUN <= n; g += RUN) hf_run_to_ggml<true>(b + g * HF_BLOCK, s + g, AHEAD, ggml + g * GGML_BLOCK);
    _mm_sfence();
    row_to_ggml(b + g * HF_BLOCK, s + g, n - g, AHEAD, ggml + g * GGML_BLOCK);
}
#elif defined(__AVX2__)
// Rows gather in the L1 cache until whole lines of 64 bytes can leave.
constexpr int64_t STAGE = 4096;

inline void lines_out(uint8_t* to, const uint8_t* from, int64_t n) {
    for (int64_t i = 0; i < n; i += 32)
        _mm256_stream_si256(reinterpret_cast<__m256i*>(to + i), _mm256_load_si256(reinterpret_cast<const __m256i*>(from + i)));
}

void hf_to_ggml_past_caches(const uint8_t* blocks, const uint8_t* scales, int64_t rows, int64_t groups, int64_t row_step, uint8_t* ggml) {
    const int64_t stride = row_step * groups * HF_BLOCK, row_out = groups * GGML_BLOCK;
    alignas(64) uint8_t stage[2 * STAGE];
    int64_t held = reinterpret_cast<uintptr_t>(ggml) % LINE, skip = held;  // the stage is aligned as the output is
    uint8_t* out = ggml - held;
    for (int64_t r = 0; r < rows; ++r) {
        row_to_ggml(blocks + r * stride, scales + r * row_step * groups, groups, stride, stage + held);
        held += row_out;
        if (held < STAGE && r + 1 < rows) continue;
        const int64_t first = skip ? LINE : 0, whole = held - held % LINE;  // a line that begins before the output is not ours alone
        if (skip) memcpy(out + skip, stage + skip, size_t((held < LINE ? held : LINE) - skip));
        if (whole > first) lines_out(out + first, stage + first, whole - first);
        if (r + 1 == rows && whole >= first) memcpy(out + whole, stage + whole, size_t(held - whole));
        memmove(stage, stage + whole, size_t(held - whole));
        out += whole, held -= whole, skip = 0;
    }
    _mm_sfence();
}
#endif

void hf_to_ggml(const uint8_t* blocks, const uint8_t* scales, int64_t rows, int64_t groups, int64_t row_step, uint8_t* ggml) {
#if defined(__AVX512VBMI__)
    if (row_step == 1) return rows_in_one_to_ggml(blocks, scales, rows * groups, ggml);
#elif defined(__AVX2__)
    if (rows * groups * GGML_BLOCK >= PAST_CACHES && groups * GGML_BLOCK <= STAGE)
        return hf_to_ggml_past_caches(blocks, scales, rows, groups, row_step, ggml);
#endif
    const int64_t stride = row_step * groups * HF_BLOCK;
    for (int64_t r = 0; r < rows; ++r, ggml += groups * GGML_BLOCK)
        row_to_ggml(blocks + r * stride, scales + r * row_step * groups, groups, stride, ggml);
}

void ggml_to_hf(const uint8_t* ggml, int64_t rows, int64_t groups, int64_t row_step, uint8_t* blocks, uint8_t* scales) {
    for (int64_t r = 0; r < rows; ++r) {
        uint8_t* b = blocks + r * row_step * groups * HF_BLOCK;
        uint8_t* s = scales + r * row_step * groups;
        for (int64_t g = 0; g < groups; ++g, ggml += GGML_BLOCK) {
            s[g] = ggml[0];
            store16(b + g * HF_BLOCK, ggml_order_to_hf(load16(ggml + 1)));
        }
    }
}

int64_t compare_ggml(const uint8_t* blocks, const uint8_t* scales, int64_t rows, int64_t groups, int64_t row_step, const uint8_t* ggml) {
    for (int64_t r = 0; r < rows; ++r) {
        const uint8_t* b = blocks + r * row_step * groups * HF_BLOCK;
        const uint8_t* s = scales + r * row_step * groups;
        for (int64_t g = 0; g < groups; ++g, ggml += GGML_BLOCK)
            if (ggml[0] != s[g] || !same(load16(ggml + 1), hf_order_to_ggml(load16(b + g * HF_BLOCK)))) return r * groups + g;
    }
    return -1;
}

// ---- decode -------------------------------------------------------------------------------------------------------

struct DecodeTable { uint8_t low[256][16], high[256][16]; };

constexpr DecodeTable make_table() {
    DecodeTable t{};
    for (int s = 0; s < 256; ++s)
        for (int c = 0; c < 16; ++c) {
            t.low[s][c] = bf16_value(s, c) & 255;
            t.high[s][c] = bf16_value(s, c) >> 8;
        }
    return t;
}
constexpr DecodeTable TABLE = make_table();

#if defined(__AVX2__)
inline void decode_block(const uint8_t* b, uint8_t scale, uint16_t* out) {
    const __m128i low4 = _mm_set1_epi8(15), v = load16(b);
    const __m128i tl = load16(TABLE.low[scale]), th = load16(TABLE.high[scale]);
    const __m128i even = _mm_and_si128(v, low4), odd = _mm_and_si128(_mm_srli_epi16(v, 4), low4);
    for (int h = 0; h < 2; ++h) {
        const __m128i codes = h ? _mm_unpackhi_epi8(even, odd) : _mm_unpacklo_epi8(even, odd);
        const __m128i lo = _mm_shuffle_epi8(tl, codes), hi = _mm_shuffle_epi8(th, codes);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 16 * h), _mm_unpacklo_epi8(lo, hi));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 16 * h + 8), _mm_unpackhi_epi8(lo, hi));
    }
}
#else
inline void decode_block(const uint8_t* b, uint8_t scale, uint16_t* out) {
    const uint8_t *lo = TABLE.low[scale], *hi = TABLE.high[scale];
    for (int j = 0; j < HF_BLOCK; ++j) {
        out[2 * j] = lo[b[j] & 15] | hi[b[j] & 15] << 8;
        out[2 * j + 1] = lo[b[j] >> 4] | hi[b[j] >> 4] << 8;
    }
}
#endif

void to_f32(const uint16_t* bf16, int64_t n, float* out) {
    for (int64_t i = 0; i < n; ++i) {
        const uint32_t bits = uint32_t(bf16[i]) << 16;
        memcpy(out + i, &bits, 4);
    }
}

void decode(const uint8_t* blocks, const uint8_t* scales, int64_t rows, int64_t groups, int64_t row_step, void* out, int32_t target) {
    for (int64_t r = 0; r < rows; ++r) {
        const uint8_t* b = blocks + r * row_step * groups * HF_BLOCK;
        const uint8_t* s = scales + r * row_step * groups;
        for (int64_t g = 0; g < groups; ++g) {
            const int64_t at = (r * groups + g) * QK;
            if (target == SOURCE_BF16) {
                decode_block(b + g * HF_BLOCK, s[g], static_cast<uint16_t*>(out) + at);
            } else {
                uint16_t values[QK];
                decode_block(b + g * HF_BLOCK, s[g], values);
                to_f32(values, QK, static_cast<float*>(out) + at);
            }
        }
    }
}

// ---- dense types --------------------------------------------------------------------------------------------------

inline void load_block(const void* x, int32_t source, int64_t block, float* v) {
    if (source == SOURCE_BF16) to_f32(static_cast<const uint16_t*>(x) + block * QK, QK, v);
    else memcpy(v, static_cast<const float*>(x) + block * QK, QK * sizeof(float));
}

inline int32_t max_magnitude(const int32_t* bits) {
    int32_t amax = 0;
    for (int j = 0; j < QK; ++j) {
        const int32_t a = bits[j] & 0x7fffffff;
        amax = a > amax ? a : amax;
    }
    return amax;
}

inline uint16_t half_bits(float f) {  // round to nearest even, overflow to Inf, NaN to a quiet NaN
#if defined(__F16C__)
    return uint16_t(_mm_extract_epi16(_mm_cvtps_ph(_mm_set_ss(f), _MM_FROUND_TO_NEAREST_INT), 0));
#else
    uint32_t x;
    memcpy(&x, &f, 4);
    const uint16_t sign = (x >> 16) & 0x8000;
    x &= 0x7fffffff;
    if (x > 0x7f800000) return sign | 0x7e00 | ((x >> 13) & 0x3ff);
    if (x >= 0x477ff000) return sign | 0x7c00;
    if (x >= 0x38800000) return sign | uint16_t((x - 0x38000000 + 0xfff + ((x >> 13) & 1)) >> 13);
    const int shift = 126 - int(x >> 23);  // subnormal half: units of 2^-24
    if (shift > 24) return sign;
    const uint32_t m = (x & 0x7fffff) | 0x800000;
    const uint32_t kept = m >> shift, rest = m & ((1u << shift) - 1), middle = 1u << (shift - 1);
    return sign | uint16_t(kept + (rest > middle || (rest == middle && (kept & 1))));
#endif
}

void to_f16(const void* x, int32_t source, int64_t n, uint16_t* out) {
    int64_t i = 0;
#if defined(__F16C__)
    for (; i + 8 <= n; i += 8) {
        __m256 v;
        if (source == SOURCE_BF16) {
            const __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(static_cast<const uint16_t*>(x) + i));
            v = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
        } else {
            v = _mm256_loadu_ps(static_cast<const float*>(x) + i);
        }
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
    }
#endif
    for (; i < n; ++i) {
        float f;
        if (source == SOURCE_BF16) to_f32(static_cast<const uint16_t*>(x) + i, 1, &f);
        else f = static_cast<const float*>(x)[i];
        out[i] = half_bits(f);
    }
}

// GGML's Q8_0: d = amax / 127 (stored as half), q = x / d rounded half away from zero, d not yet rounded.
void to_q8_0(const void* x, int32_t source, int64_t n_blocks, uint8_t* out) {
    for (int64_t i = 0; i < n_blocks; ++i, out += Q8_0_BLOCK) {
        float v[QK], amax;
        int32_t bits[QK];
        load_block(x, source, i, v);
        memcpy(bits, v, sizeof bits);
        const int32_t top = max_magnitude(bits);
        memcpy(&amax, &top, 4);
        const float d = amax / 127.0f, inverse = d != 0 ? 1.0f / d : 0.0f;
        const uint16_t h = half_bits(d);
        memcpy(out, &h, 2);
        for (int j = 0; j < QK; ++j) {
            const float q = v[j] * inverse;
            // 0.49999997 is the float below 0.5: adding 0.5 would round 0.49999997 up to 1.
            out[2 + j] = uint8_t(int8_t(int32_t(q + (q < 0 ? -0.49999997f : 0.49999997f))));
        }
    }
}

}  // namespace

extern "C" const CodecKernels OF_THIS_ISA(codec) = {hf_to_ggml, ggml_to_hf, compare_ggml, decode, to_f32, to_f16, to_q8_0};
