// Compiled once per instruction set (KERNELS_ISA); file-local functions and intrinsics only, see mxfp4_codec.cpp.
#include "bf16_packed.h"
#include "per_isa.h"

#include "lanes.h"

namespace {

constexpr int R = 4;  // rows at once

#if defined(__AVX512BW__)

using Floats = __m512;
struct Table { __m512i exponents; };

INLINE Table table(int32_t base) {
    uint8_t exponents[16] = {};
    for (int n = 1; n < 16; ++n) exponents[n] = uint8_t(base + n);
    return {_mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(exponents)))};
}
// Each 32-bit lane: two bfloat16, of vectors 0 and 1 (first) or 2 and 3 (second). A lane of bytes e1 m1 e0 m0, rotated by a bit,
// is s1 e1 m1 s0 e0 m0, for the lowest bit of a mantissa's byte is the other's sign.
INLINE void pairs(const uint8_t* p, const Table& t, __m512i* out) {
    const __m512i m = _mm512_loadu_si512(p);
    __m512i n = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 64)));
    n = _mm512_or_si512(n, _mm512_slli_epi16(n, 4));
#if defined(__AVX512VBMI__)  // looks at 6 bits of an index: the table is there four times, and no bit needs masking
    const __m512i e = _mm512_permutexvar_epi8(n, t.exponents);
#else
    const __m512i e = _mm512_shuffle_epi8(t.exponents, _mm512_and_si512(n, _mm512_set1_epi8(15)));
#endif
    out[0] = _mm512_ror_epi32(_mm512_unpacklo_epi8(m, e), 1);
    out[1] = _mm512_ror_epi32(_mm512_unpackhi_epi8(m, e), 1);
}
INLINE Floats even(__m512i pair) { return _mm512_castsi512_ps(_mm512_slli_epi32(pair, 16)); }
INLINE Floats odd(__m512i pair) { return _mm512_castsi512_ps(_mm512_and_si512(pair, _mm512_set1_epi32(int(0xffff0000)))); }

void unpack(const uint8_t* group, int32_t base, uint16_t* out) {
    __m512i pair[2];
    pairs(group, table(base), pair);
    for (int h = 0; h < 2; ++h) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 32 * h), _mm512_cvtepi32_epi16(pair[h]));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 32 * h + 16), _mm512_cvtepi32_epi16(_mm512_srli_epi32(pair[h], 16)));
    }
}

// The arithmetic of a (row, token) pair depends neither on N nor on T. Meanwhile the next tile is fetched in the order of memory.
template <int T, int N> INLINE void tile(const uint8_t* data, const Table& t, int64_t groups, const float* const* x, float* const* y) {
    const int64_t row_bytes = groups * PACKED_BYTES;
    Floats sum[N][T][2];
    for (int r = 0; r < N; ++r)
        for (int k = 0; k < T; ++k) sum[r][k][0] = sum[r][k][1] = _mm512_setzero_ps();
    for (int64_t g = 0; g < groups; ++g) {
        for (int i = 0; i < N * PACKED_BYTES; i += 64) __builtin_prefetch(data + N * row_bytes + g * N * PACKED_BYTES + i, 0, 2);
        for (int r = 0; r < N; ++r) {
            __m512i pair[2];
            pairs(data + r * row_bytes + g * PACKED_BYTES, t, pair);
            for (int k = 0; k < T; ++k)
                for (int h = 0; h < 2; ++h) {
                    const float* at = x[k] + g * PACKED_GROUP + 32 * h;
                    sum[r][k][0] = _mm512_fmadd_ps(even(pair[h]), _mm512_loadu_ps(at), sum[r][k][0]);
                    sum[r][k][1] = _mm512_fmadd_ps(odd(pair[h]), _mm512_loadu_ps(at + 16), sum[r][k][1]);
                }
        }
    }
    for (int r = 0; r < N; ++r)
        for (int k = 0; k < T; ++k) {
            float lane[LANES];
            _mm512_storeu_ps(lane, _mm512_add_ps(sum[r][k][0], sum[r][k][1]));
            y[k][r] = sum_lanes(lane);
        }
}

template <int T, int N> void tiles(const uint8_t* data, const Table& t, int64_t rows, int64_t groups, const float* const* x, float* const* y) {
    float* to[T];
    for (int k = 0; k < T; ++k) to[k] = y[k];
    for (; rows >= N; rows -= N, data += N * groups * PACKED_BYTES) {
        tile<T, N>(data, t, groups, x, to);
        for (int k = 0; k < T; ++k) to[k] += N;
    }
    for (; rows; --rows, data += groups * PACKED_BYTES) {
        tile<T, 1>(data, t, groups, x, to);
        for (int k = 0; k < T; ++k) to[k] += 1;
    }
}

void rows(const uint8_t* data, int32_t base, int64_t rows, int64_t groups, int64_t tokens, const float* const* x, float* const* y) {
    const Table t = table(base);
    for (; tokens >= 4; tokens -= 4, x += 4, y += 4) tiles<4, 2>(data, t, rows, groups, x, y);
    for (; tokens; --tokens, ++x, ++y) tiles<1, R>(data, t, rows, groups, x, y);
}

#else

void unpack(const uint8_t* group, int32_t base, uint16_t* out) {
    for (int at = 0; at < PACKED_GROUP; ++at) {
        const int i = at % 8 / 2, j = at / 16, p = at % 2, h = at / 8 % 2, n = group[64 + at / 2] >> 4 * p & 15;
        out[4 * j + i + 16 * p + 32 * h] = uint16_t((group[at ^ 1] & 1) << 15 | (n ? base + n : 0) << 7 | group[at] >> 1);
    }
}

void rows(const uint8_t* data, int32_t base, int64_t rows, int64_t groups, int64_t tokens, const float* const* x, float* const* y) {
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t k = 0; k < tokens; ++k) {
            float lane[LANES] = {};
            for (int64_t g = 0; g < groups; ++g) {
                uint16_t w[PACKED_GROUP];
                unpack(data + (r * groups + g) * PACKED_BYTES, base, w);
                for (int i = 0; i < PACKED_GROUP; ++i) lane[i % LANES] += widen(w[i]) * x[k][g * PACKED_GROUP + i];
            }
            y[k][r] = sum_lanes(lane);
        }
}

#endif

}  // namespace

extern "C" const PackedKernels OF_THIS_ISA(packed) = {rows, unpack};
