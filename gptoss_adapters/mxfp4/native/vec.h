// The few vector operations that the product of one row needs, for each instruction set. A vector spans BLOCKS blocks of
// weights; lane l belongs to block l / 4 and holds 8 consecutive values of it (4 even ones, 4 odd ones).
//
// `Weights` holds the even and the odd values. `dot` returns, for each lane, xc + sum over its 8 values of w * v, where w is
// twice the e2m1 value (plus WEIGHT_BIAS where the byte products need unsigned weights: xc takes that back) and v is the
// integer whose int8 planes lie at x: plane p has its even bytes at x + 128 p and its odd ones at x + 128 p + 64.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#define INLINE inline __attribute__((always_inline))

namespace {

#if defined(__AVX512VNNI__)
constexpr int BLOCKS = 4, WEIGHT_BIAS = 12, TILE_ROWS[5] = {0, 4, 4, 4, 4};
using Float = __m512;
struct Weights { __m512i even, odd; };

INLINE Weights split(__m512i w) {
    const __m512i table = _mm512_broadcast_i32x4(_mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
#if defined(__AVX512VBMI__)  // looks at 6 bits of an index: the table is there four times, and no bit needs masking
    return {_mm512_permutexvar_epi8(w, table), _mm512_permutexvar_epi8(_mm512_srli_epi16(w, 4), table)};
#else
    const __m512i low = _mm512_set1_epi8(15);
    return {_mm512_shuffle_epi8(table, _mm512_and_si512(w, low)), _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(w, 4), low))};
#endif
}
INLINE Weights weights(const uint8_t* b) { return split(_mm512_loadu_si512(b)); }
INLINE Weights weights_part(const uint8_t* b, int blocks) { return split(_mm512_maskz_loadu_epi32((1u << 4 * blocks) - 1, b)); }

template <int PLANES> INLINE __m512i dot(const Weights& w, const uint8_t* x, const uint8_t* xc) {
    const __m512i* p = reinterpret_cast<const __m512i*>(x);
    __m512i a = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(_mm512_loadu_si512(xc), w.even, _mm512_loadu_si512(p)), w.odd, _mm512_loadu_si512(p + 1));
    for (int k = 1; k < PLANES; ++k) {
        const __m512i zero = _mm512_setzero_si512();
        const __m512i h = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(zero, w.even, _mm512_loadu_si512(p + 2 * k)), w.odd, _mm512_loadu_si512(p + 2 * k + 1));
        a = _mm512_add_epi32(a, _mm512_slli_epi32(h, 8 * k));
    }
    return a;
}
// max() turns the pattern of scale byte 0 into that of 2^-127, which is subnormal.
INLINE Float scale(const uint8_t* s) {
    int32_t four;
    memcpy(&four, s, 4);
    const __m512i spread = _mm512_shuffle_epi8(_mm512_set1_epi32(four), _mm512_set_epi32(-253, -253, -253, -253, -254, -254, -254, -254, -255, -255, -255, -255, -256, -256, -256, -256));
    return _mm512_castsi512_ps(_mm512_max_epi32(_mm512_slli_epi32(spread, 23), _mm512_set1_epi32(0x00400000)));
}
INLINE Float zero() { return _mm512_setzero_ps(); }
// acc + a * xs * s, with the small product first: neither end of the scale range overflows or underflows before the sum does.
INLINE Float accumulate(Float acc, __m512i a, const uint8_t* xs, Float s) {
    return _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(a), _mm512_loadu_ps(xs)), s, acc);
}
INLINE float sum(Float v) { return _mm512_reduce_add_ps(v); }

#elif defined(__AVX2__)
constexpr int BLOCKS = 2, WEIGHT_BIAS = 12, TILE_ROWS[5] = {0, 4, 2, 2, 2};
using Float = __m256;
struct Weights { __m256i even, odd; };

INLINE Weights split(__m256i w) {
    const __m256i table = _mm256_broadcastsi128_si256(_mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
    const __m256i low = _mm256_set1_epi8(15);
    return {_mm256_shuffle_epi8(table, _mm256_and_si256(w, low)), _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(w, 4), low))};
}
INLINE __m256i load(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
INLINE Weights weights(const uint8_t* b) { return split(load(b)); }
INLINE Weights weights_part(const uint8_t* b, int) { return split(_mm256_zextsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(b)))); }

// int16 sums of 4 products are at most 4 * 24 * 128 = 12288: no saturation. The multiplier 256 places a plane for free.
template <int PLANES> INLINE __m256i dot(const Weights& w, const uint8_t* x, const uint8_t* xc) {
    __m256i a = load(xc);
    for (int k = 0; k < PLANES; ++k) {
        const __m256i pairs = _mm256_add_epi16(_mm256_maddubs_epi16(w.even, load(x + 128 * k)), _mm256_maddubs_epi16(w.odd, load(x + 128 * k + 64)));
        const __m256i quads = _mm256_madd_epi16(pairs, _mm256_set1_epi16(k ? 256 : 1));
        a = _mm256_add_epi32(a, k == 2 ? _mm256_slli_epi32(quads, 8) : quads);
    }
    return a;
}
INLINE Float scale(const uint8_t* s) {
    uint16_t two;
    memcpy(&two, s, 2);
    const __m256i spread = _mm256_shuffle_epi8(_mm256_set1_epi32(two), _mm256_set_epi32(-255, -255, -255, -255, -256, -256, -256, -256));
    return _mm256_castsi256_ps(_mm256_max_epi32(_mm256_slli_epi32(spread, 23), _mm256_set1_epi32(0x00400000)));
}
INLINE Float zero() { return _mm256_setzero_ps(); }
INLINE Float accumulate(Float acc, __m256i a, const uint8_t* xs, Float s) {
    return _mm256_fmadd_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(a), _mm256_loadu_ps(reinterpret_cast<const float*>(xs))), s, acc);
}
INLINE float sum(Float v) {
    __m128 h = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    h = _mm_add_ps(h, _mm_movehl_ps(h, h));
    return _mm_cvtss_f32(_mm_add_ss(h, _mm_movehdup_ps(h)));
}

#elif defined(__ARM_FEATURE_DOTPROD)
constexpr int BLOCKS = 1, WEIGHT_BIAS = 0, TILE_ROWS[5] = {0, 4, 4, 4, 4};
using Float = float32x4_t;
struct Weights { int8x16_t even, odd; };

INLINE Weights weights(const uint8_t* b) {
    static const int8_t doubled[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
    const int8x16_t table = vld1q_s8(doubled);
    const uint8x16_t w = vld1q_u8(b);
    return {vqtbl1q_s8(table, vandq_u8(w, vdupq_n_u8(15))), vqtbl1q_s8(table, vshrq_n_u8(w, 4))};
}
INLINE Weights weights_part(const uint8_t* b, int) { return weights(b); }
template <int PLANES> INLINE int32x4_t dot(const Weights& w, const uint8_t* x, const uint8_t* xc) {
    int32x4_t a = vld1q_s32(reinterpret_cast<const int32_t*>(xc));
    for (int k = 0; k < PLANES; ++k) {
        const int8_t* p = reinterpret_cast<const int8_t*>(x) + 128 * k;
        const int32x4_t h = vdotq_s32(vdotq_s32(vdupq_n_s32(0), w.even, vld1q_s8(p)), w.odd, vld1q_s8(p + 64));
        a = vaddq_s32(a, vshlq_s32(h, vdupq_n_s32(8 * k)));
    }
    return a;
}
INLINE Float scale(const uint8_t* s) {
    return vreinterpretq_f32_s32(vdupq_n_s32(*s ? int32_t(uint32_t(*s) << 23) : 0x00400000));
}
INLINE Float zero() { return vdupq_n_f32(0); }
INLINE Float accumulate(Float acc, int32x4_t a, const uint8_t* xs, Float s) {
    return vfmaq_f32(acc, vmulq_f32(vcvtq_f32_s32(a), vld1q_f32(reinterpret_cast<const float*>(xs))), s);
}
INLINE float sum(Float v) { return vaddvq_f32(v); }

#else  // portable: one block, four lanes, plain C

constexpr int BLOCKS = 1, WEIGHT_BIAS = 0, TILE_ROWS[5] = {0, 1, 1, 1, 1};
struct Float { float lane[4]; };
struct Int { int32_t lane[4]; };
struct Weights { int8_t even[16], odd[16]; };

INLINE Weights weights(const uint8_t* b) {
    static const int8_t doubled[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
    Weights w;
    for (int i = 0; i < 16; ++i) {
        w.even[i] = doubled[b[i] & 15];
        w.odd[i] = doubled[b[i] >> 4];
    }
    return w;
}
INLINE Weights weights_part(const uint8_t* b, int) { return weights(b); }
template <int PLANES> INLINE Int dot(const Weights& w, const uint8_t* x, const uint8_t* xc) {
    Int a;
    memcpy(a.lane, xc, sizeof a.lane);
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
INLINE Float scale(const uint8_t* s) {
    const uint32_t bits = *s ? uint32_t(*s) << 23 : 0x00400000;
    float f;
    memcpy(&f, &bits, 4);
    return {{f, f, f, f}};
}
INLINE Float zero() { return {{0, 0, 0, 0}}; }
INLINE Float accumulate(Float acc, Int a, const uint8_t* xs, Float s) {
    float f[4];
    memcpy(f, xs, sizeof f);
    for (int l = 0; l < 4; ++l) acc.lane[l] += float(a.lane[l]) * f[l] * s.lane[l];
    return acc;
}
INLINE float sum(Float v) { return (v.lane[0] + v.lane[2]) + (v.lane[1] + v.lane[3]); }
#endif

}  // namespace
