// The few vector operations that the product of one row needs, for each instruction set. A vector spans BLOCKS blocks of
// weights; lane l belongs to block l / 4 and holds 8 consecutive values of it (4 even ones, 4 odd ones).
//
// `Weights` holds the even and the odd values. `dot` returns, for each lane, the sum over its 8 values of w * v, where w is
// twice the e2m1 value (plus WEIGHT_BIAS where the byte products need unsigned weights) and v is the integer whose int8 planes
// lie at x: plane p has its even bytes at x + 128 p and its odd ones at x + 128 p + 64.
// `transposed` sums the four lanes of a block: from the dots of ROWS rows, lane 4 b + r is the whole of block b of row r.
// `accumulate` adds that times the scales: `units` of the rows in the same order, and at xs what `prepare` left for the vector,
// the corrections that take the bias back 64 bytes behind. `store_rows` sums over the blocks.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#include "mxfp4.h"

#define INLINE inline __attribute__((always_inline))

namespace {

constexpr int ROWS = 4;  // multiplied together, as many as a block has lanes

#if defined(__AVX512VNNI__)
constexpr int BLOCKS = 4, WEIGHT_BIAS = 12;
constexpr Bytes WEIGHT_TABLE = doubled_bytes(WEIGHT_BIAS);
using Float = __m512;
using Int = __m512i;
struct Weights { __m512i even, odd; };

INLINE Weights split(__m512i w) {
    const __m512i table = _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(WEIGHT_TABLE.of_code)));
#if defined(__AVX512VBMI__)  // looks at 6 bits of an index: the table is there four times, and no bit needs masking
    return {_mm512_permutexvar_epi8(w, table), _mm512_permutexvar_epi8(_mm512_srli_epi16(w, 4), table)};
#else
    const __m512i low = _mm512_set1_epi8(15);
    return {_mm512_shuffle_epi8(table, _mm512_and_si512(w, low)), _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(w, 4), low))};
#endif
}
INLINE Weights weights(const uint8_t* b) { return split(_mm512_loadu_si512(b)); }
INLINE Weights weights_part(const uint8_t* b, int blocks) { return split(_mm512_maskz_loadu_epi32((1u << 4 * blocks) - 1, b)); }

template <int PLANES> INLINE Int dot(const Weights& w, const uint8_t* x) {
    const __m512i* p = reinterpret_cast<const __m512i*>(x);
    __m512i a = _mm512_setzero_si512();
    for (int k = PLANES - 1; k >= 0; --k) {
        if (k < PLANES - 1) a = _mm512_slli_epi32(a, 8);
        a = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(a, w.even, _mm512_loadu_si512(p + 2 * k)), w.odd, _mm512_loadu_si512(p + 2 * k + 1));
    }
    return a;
}
INLINE Int transposed(const Int* d) {
    const __m512i a = _mm512_add_epi32(_mm512_unpacklo_epi32(d[0], d[1]), _mm512_unpackhi_epi32(d[0], d[1]));
    const __m512i b = _mm512_add_epi32(_mm512_unpacklo_epi32(d[2], d[3]), _mm512_unpackhi_epi32(d[2], d[3]));
    return _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
}
// max() turns the pattern of scale byte 0 into that of 2^-127, which is subnormal.
INLINE Float units(const uint8_t* const* s) {
    int32_t four[ROWS];
    for (int r = 0; r < ROWS; ++r) memcpy(&four[r], s[r], 4);
    const __m128i by_block = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m128i bytes = _mm_shuffle_epi8(_mm_setr_epi32(four[0], four[1], four[2], four[3]), by_block);
    return _mm512_castsi512_ps(_mm512_max_epi32(_mm512_slli_epi32(_mm512_cvtepu8_epi32(bytes), 23), _mm512_set1_epi32(0x00400000)));
}
INLINE Float zero() { return _mm512_setzero_ps(); }
// acc + a * xs * s, with the small product first: neither end of the scale range overflows or underflows before the sum does.
INLINE Float accumulate(Float acc, Int a, const uint8_t* xs, Float s) {
    a = _mm512_add_epi32(a, _mm512_loadu_si512(xs + 64));
    return _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(a), _mm512_loadu_ps(xs)), s, acc);
}
INLINE void store_rows(Float v, float* y) {
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    _mm_storeu_ps(y, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
}

#elif defined(__AVX2__)
constexpr int BLOCKS = 2, WEIGHT_BIAS = 12;
constexpr Bytes WEIGHT_TABLE = doubled_bytes(WEIGHT_BIAS);
using Float = __m256;
using Int = __m256i;
struct Weights { __m256i even, odd; };

INLINE Weights split(__m256i w) {
    const __m256i table = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(WEIGHT_TABLE.of_code)));
    const __m256i low = _mm256_set1_epi8(15);
    return {_mm256_shuffle_epi8(table, _mm256_and_si256(w, low)), _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(w, 4), low))};
}
INLINE __m256i load(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
INLINE Weights weights(const uint8_t* b) { return split(load(b)); }
INLINE Weights weights_part(const uint8_t* b, int) { return split(_mm256_zextsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(b)))); }

// int16 sums of 4 products are at most 4 * 24 * 128 = 12288: no saturation. The multiplier 256 places a plane for free.
template <int PLANES> INLINE Int dot(const Weights& w, const uint8_t* x) {
    Int a;
    for (int k = 0; k < PLANES; ++k) {
        const __m256i pairs = _mm256_add_epi16(_mm256_maddubs_epi16(w.even, load(x + 128 * k)), _mm256_maddubs_epi16(w.odd, load(x + 128 * k + 64)));
        const __m256i quads = _mm256_madd_epi16(pairs, _mm256_set1_epi16(k ? 256 : 1));
        a = k == 0 ? quads : _mm256_add_epi32(a, k == 2 ? _mm256_slli_epi32(quads, 8) : quads);
    }
    return a;
}
INLINE Int transposed(const Int* d) {
    const __m256i a = _mm256_add_epi32(_mm256_unpacklo_epi32(d[0], d[1]), _mm256_unpackhi_epi32(d[0], d[1]));
    const __m256i b = _mm256_add_epi32(_mm256_unpacklo_epi32(d[2], d[3]), _mm256_unpackhi_epi32(d[2], d[3]));
    return _mm256_add_epi32(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
}
INLINE Float units(const uint8_t* const* s) {
    uint16_t two[ROWS];
    for (int r = 0; r < ROWS; ++r) memcpy(&two[r], s[r], 2);
    const __m128i rows = _mm_insert_epi16(_mm_insert_epi16(_mm_insert_epi16(_mm_cvtsi32_si128(two[0]), two[1], 1), two[2], 2), two[3], 3);
    const __m128i bytes = _mm_shuffle_epi8(rows, _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, -1, -1, -1, -1, -1, -1, -1, -1));
    return _mm256_castsi256_ps(_mm256_max_epi32(_mm256_slli_epi32(_mm256_cvtepu8_epi32(bytes), 23), _mm256_set1_epi32(0x00400000)));
}
INLINE Float zero() { return _mm256_setzero_ps(); }
INLINE Float accumulate(Float acc, Int a, const uint8_t* xs, Float s) {
    a = _mm256_add_epi32(a, load(xs + 64));
    return _mm256_fmadd_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(a), _mm256_loadu_ps(reinterpret_cast<const float*>(xs))), s, acc);
}
INLINE void store_rows(Float v, float* y) { _mm_storeu_ps(y, _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1))); }

#elif defined(__ARM_FEATURE_DOTPROD)
constexpr int BLOCKS = 1, WEIGHT_BIAS = 0;
constexpr Bytes WEIGHT_TABLE = doubled_bytes(WEIGHT_BIAS);
using Float = float32x4_t;
using Int = int32x4_t;
struct Weights { int8x16_t even, odd; };

INLINE Weights weights(const uint8_t* b) {
    const int8x16_t table = vld1q_s8(WEIGHT_TABLE.of_code);
    const uint8x16_t w = vld1q_u8(b);
    return {vqtbl1q_s8(table, vandq_u8(w, vdupq_n_u8(15))), vqtbl1q_s8(table, vshrq_n_u8(w, 4))};
}
INLINE Weights weights_part(const uint8_t* b, int) { return weights(b); }
template <int PLANES> INLINE Int dot(const Weights& w, const uint8_t* x) {
    Int a = vdupq_n_s32(0);
    for (int k = PLANES - 1; k >= 0; --k) {
        const int8_t* p = reinterpret_cast<const int8_t*>(x) + 128 * k;
        if (k < PLANES - 1) a = vshlq_n_s32(a, 8);
        a = vdotq_s32(vdotq_s32(a, w.even, vld1q_s8(p)), w.odd, vld1q_s8(p + 64));
    }
    return a;
}
INLINE Int transposed(const Int* d) { return vpaddq_s32(vpaddq_s32(d[0], d[1]), vpaddq_s32(d[2], d[3])); }
INLINE Float units(const uint8_t* const* s) {
    const uint32_t bytes[ROWS] = {*s[0], *s[1], *s[2], *s[3]};
    return vreinterpretq_f32_u32(vmaxq_u32(vshlq_n_u32(vld1q_u32(bytes), 23), vdupq_n_u32(0x00400000)));
}
INLINE Float zero() { return vdupq_n_f32(0); }
INLINE Float accumulate(Float acc, Int a, const uint8_t* xs, Float s) {
    return vfmaq_f32(acc, vmulq_f32(vcvtq_f32_s32(a), vld1q_f32(reinterpret_cast<const float*>(xs))), s);
}
INLINE void store_rows(Float v, float* y) { vst1q_f32(y, v); }

#else  // portable: one block, four lanes, plain C

constexpr int BLOCKS = 1, WEIGHT_BIAS = 0;
constexpr Bytes WEIGHT_TABLE = doubled_bytes(WEIGHT_BIAS);
struct Float { float lane[4]; };
struct Int { int32_t lane[4]; };
struct Weights { int8_t even[16], odd[16]; };

INLINE Weights weights(const uint8_t* b) {
    Weights w;
    for (int i = 0; i < 16; ++i) {
        w.even[i] = WEIGHT_TABLE.of_code[b[i] & 15];
        w.odd[i] = WEIGHT_TABLE.of_code[b[i] >> 4];
    }
    return w;
}
INLINE Weights weights_part(const uint8_t* b, int) { return weights(b); }
template <int PLANES> INLINE Int dot(const Weights& w, const uint8_t* x) {
    Int a = {};
    for (int k = 0; k < PLANES; ++k) {
        int8_t even[16], odd[16];
        memcpy(even, x + 128 * k, 16);
        memcpy(odd, x + 128 * k + 64, 16);
        for (int l = 0; l < 4; ++l) {
            int32_t h = 0;
            for (int i = 4 * l; i < 4 * l + 4; ++i) h += w.even[i] * even[i] + w.odd[i] * odd[i];
            a.lane[l] += h * (1 << 8 * k);
        }
    }
    return a;
}
INLINE Int transposed(const Int* d) {
    Int out;
    for (int r = 0; r < ROWS; ++r) out.lane[r] = (d[r].lane[0] + d[r].lane[2]) + (d[r].lane[1] + d[r].lane[3]);
    return out;
}
INLINE Float units(const uint8_t* const* s) {
    Float out;
    for (int r = 0; r < ROWS; ++r) {
        const uint32_t bits = *s[r] ? uint32_t(*s[r]) << 23 : 0x00400000;
        memcpy(&out.lane[r], &bits, 4);
    }
    return out;
}
INLINE Float zero() { return {{0, 0, 0, 0}}; }
INLINE Float accumulate(Float acc, Int a, const uint8_t* xs, Float s) {
    float f[4];
    memcpy(f, xs, sizeof f);
    for (int l = 0; l < 4; ++l) acc.lane[l] += float(a.lane[l]) * f[l] * s.lane[l];
    return acc;
}
INLINE void store_rows(Float v, float* y) { memcpy(y, v.lane, sizeof v.lane); }
#endif

}  // namespace
