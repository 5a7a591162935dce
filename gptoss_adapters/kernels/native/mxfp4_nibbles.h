// The 16 nibble pairs of a block in each order. File-local functions only, see mxfp4_codec.cpp.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace {

#if defined(__AVX2__)
using Nibbles = __m128i;
inline Nibbles load16(const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
inline void store16(uint8_t* p, Nibbles v) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), v); }
inline Nibbles hf_order_to_ggml(Nibbles v) {
    const __m128i low = _mm_set1_epi8(15);
    const __m128i even = _mm_and_si128(v, low), odd = _mm_and_si128(_mm_srli_epi16(v, 4), low);
    const __m128i first = _mm_unpacklo_epi8(even, odd), second = _mm_unpackhi_epi8(even, odd);
    return _mm_or_si128(first, _mm_slli_epi16(second, 4));
}
inline Nibbles ggml_order_to_hf(Nibbles v) {
    const __m128i low = _mm_set1_epi8(15), pair = _mm_set1_epi16(0x1001);  // even + 16 * odd
    const __m128i first = _mm_and_si128(v, low), second = _mm_and_si128(_mm_srli_epi16(v, 4), low);
    return _mm_packus_epi16(_mm_maddubs_epi16(first, pair), _mm_maddubs_epi16(second, pair));
}
inline Nibbles pack_codes(const uint8_t* c) {
    const __m128i pair = _mm_set1_epi16(0x1001);
    return _mm_packus_epi16(_mm_maddubs_epi16(load16(c), pair), _mm_maddubs_epi16(load16(c + 16), pair));
}
inline bool same(Nibbles a, Nibbles b) { return _mm_movemask_epi8(_mm_cmpeq_epi8(a, b)) == 0xffff; }
#elif defined(__ARM_NEON)
using Nibbles = uint8x16_t;
inline Nibbles load16(const uint8_t* p) { return vld1q_u8(p); }
inline void store16(uint8_t* p, Nibbles v) { vst1q_u8(p, v); }
inline Nibbles hf_order_to_ggml(Nibbles v) {
    const uint8x16_t even = vandq_u8(v, vdupq_n_u8(15)), odd = vshrq_n_u8(v, 4);
    return vorrq_u8(vzip1q_u8(even, odd), vshlq_n_u8(vzip2q_u8(even, odd), 4));
}
inline Nibbles ggml_order_to_hf(Nibbles v) {
    const uint8x16_t first = vandq_u8(v, vdupq_n_u8(15)), second = vshrq_n_u8(v, 4);
    return vorrq_u8(vuzp1q_u8(first, second), vshlq_n_u8(vuzp2q_u8(first, second), 4));
}
inline Nibbles pack_codes(const uint8_t* c) {
    const uint8x16x2_t v = vld2q_u8(c);
    return vorrq_u8(v.val[0], vshlq_n_u8(v.val[1], 4));
}
inline bool same(Nibbles a, Nibbles b) { return vminvq_u8(vceqq_u8(a, b)) == 0xff; }
#else
struct Nibbles { uint8_t b[16]; };
inline Nibbles load16(const uint8_t* p) { Nibbles v; memcpy(v.b, p, 16); return v; }
inline void store16(uint8_t* p, Nibbles v) { memcpy(p, v.b, 16); }
inline Nibbles hf_order_to_ggml(Nibbles v) {
    Nibbles o;
    for (int j = 0; j < 8; ++j) {
        o.b[2 * j] = (v.b[j] & 15) | (v.b[8 + j] & 15) << 4;
        o.b[2 * j + 1] = (v.b[j] >> 4) | (v.b[8 + j] & 0xf0);
    }
    return o;
}
inline Nibbles ggml_order_to_hf(Nibbles v) {
    Nibbles o;
    for (int j = 0; j < 8; ++j) {
        o.b[j] = (v.b[2 * j] & 15) | (v.b[2 * j + 1] & 15) << 4;
        o.b[8 + j] = (v.b[2 * j] >> 4) | (v.b[2 * j + 1] & 0xf0);
    }
    return o;
}
inline Nibbles pack_codes(const uint8_t* c) {
    Nibbles o;
    for (int j = 0; j < 16; ++j) o.b[j] = uint8_t(c[2 * j] | c[2 * j + 1] << 4);
    return o;
}
inline bool same(Nibbles a, Nibbles b) { return memcmp(a.b, b.b, 16) == 0; }
#endif

}  // namespace
