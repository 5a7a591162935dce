// Prompts on machines with AVX512-VNNI: 16 rows are decoded once, one row to a lane, and multiplied with all vectors. Numbers
// are the block fixed-point ones of matmul.cpp. File-local functions and intrinsics only.
#include <immintrin.h>

#include <cstdlib>
#include <cstring>

#include "matmul.h"
#include "mxfp4.h"

namespace {

constexpr int64_t ROW_TILE = 16, WORDS = 8;  // 4-byte words in a plane of a block: quarter 0 even, quarter 0 odd, ...

extern "C" const MatmulKernels matmul_avx512vnni;

constexpr int WEIGHT_BIAS = 12;  // as in vec.h: byte products need unsigned weights
constexpr Bytes WEIGHTS = doubled_bytes(WEIGHT_BIAS);

template <int P> struct Block {
    int32_t word[P][WORDS];
    float scale;
    int32_t correction;
};

int64_t packed_bytes(int32_t planes, int64_t groups) { return groups * (planes * 32 + 8); }

// From the layout that MatmulKernels::prepare makes for groups of 4 blocks, where lane 4 b + q is quarter q of block b.
template <int P> void pack_as(const float* x, int64_t groups, uint8_t* out) {
    uint8_t* prepared = static_cast<uint8_t*>(malloc(matmul_avx512vnni.prepared_bytes(P, groups)));
    matmul_avx512vnni.prepare(P, x, groups, prepared);
    for (int64_t g = 0; g < groups; ++g) {
        const uint8_t* group = prepared + g / 4 * (128 * P + 128);
        Block<P> block;
        for (int p = 0; p < P; ++p)
            for (int k = 0; k < WORDS; ++k) memcpy(&block.word[p][k], group + 128 * p + 64 * (k & 1) + 16 * (g % 4) + 4 * (k / 2), 4);
        memcpy(&block.scale, group + 128 * P + 16 * (g % 4), 4);
        memcpy(&block.correction, group + 128 * P + 64 + 16 * (g % 4), 4);
        memcpy(out + g * sizeof block, &block, sizeof block);
    }
    free(prepared);
}

void pack(int32_t planes, const float* const* x, int64_t, int64_t groups, uint8_t* out) {
    if (planes == Q8) pack_as<Q8>(x[0], groups, out);
    else if (planes == Q16) pack_as<Q16>(x[0], groups, out);
    else pack_as<Q24>(x[0], groups, out);
}

inline __m512i four_rows(const uint8_t* b, int64_t stride) {  // rows 0, 4, 8, 12 from b, 16 bytes each
    const auto row = [&](int r) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(b + 4 * r * stride)); };
    const __m512i low = _mm512_inserti32x4(_mm512_castsi128_si512(row(0)), row(1), 1);
    return _mm512_inserti32x4(_mm512_inserti32x4(low, row(2), 2), row(3), 3);
}

// 2^(byte - 127) as [block][16 rows]; max() turns the pattern of byte 0 into that of 2^-127, which is subnormal.
void decode_scales(const Rows& w, int64_t first, float* out) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i at = _mm512_mullo_epi32(lane, _mm512_set1_epi32(int(w.groups)));
    const uint8_t* s = w.scales + first * w.groups;
    const auto put = [&](int64_t g, __m512i byte) {
        const __m512i bits = _mm512_max_epi32(_mm512_slli_epi32(byte, 23), _mm512_set1_epi32(0x00400000));
        _mm512_store_si512(out + g * ROW_TILE, bits);
    };
    int64_t g = 0;
    for (; g + 4 <= w.groups; g += 4) {
        const __m512i four = _mm512_i32gather_epi32(at, s + g, 1);
        for (int i = 0; i < 4; ++i) put(g + i, _mm512_and_si512(_mm512_srli_epi32(four, 8 * i), _mm512_set1_epi32(255)));
    }
    for (; g < w.groups; ++g) {
        alignas(64) int32_t byte[ROW_TILE];
        for (int64_t r = 0; r < ROW_TILE; ++r) byte[r] = s[r * w.groups + g];
        put(g, _mm512_load_si512(byte));
    }
}

// Twice the values plus 12 as [block][8 words][16 rows], and the scales.
void decode(const Rows& w, int64_t first, uint8_t* values, float* scales) {
    const __m512i table = _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(WEIGHTS.of_code)));
    const __m512i nibble = _mm512_set1_epi8(15);
    const int64_t stride = w.groups * HF_BLOCK;
    const uint8_t* next = w.blocks + (first + ROW_TILE) * stride;  // the next tile, fetched in the order of memory as in matmul.cpp
    for (int64_t g = 0; g < w.groups; ++g) {
        const uint8_t* b = w.blocks + first * stride + g * HF_BLOCK;
        if (g % 4 == 0)
            for (int64_t r = 0; r < ROW_TILE; ++r) __builtin_prefetch(next + (g * ROW_TILE + r * 4) * HF_BLOCK, 0, 2);
        const __m512i r0 = four_rows(b, stride), r1 = four_rows(b + stride, stride), r2 = four_rows(b + 2 * stride, stride), r3 = four_rows(b + 3 * stride, stride);
        const __m512i a = _mm512_unpacklo_epi32(r0, r1), c = _mm512_unpacklo_epi32(r2, r3), d = _mm512_unpackhi_epi32(r0, r1), e = _mm512_unpackhi_epi32(r2, r3);
        const __m512i word[4] = {_mm512_unpacklo_epi64(a, c), _mm512_unpackhi_epi64(a, c), _mm512_unpacklo_epi64(d, e), _mm512_unpackhi_epi64(d, e)};
        for (int q = 0; q < 4; ++q) {
            uint8_t* out = values + (g * WORDS + 2 * q) * 64;
            _mm512_store_si512(out, _mm512_shuffle_epi8(table, _mm512_and_si512(word[q], nibble)));
            _mm512_store_si512(out + 64, _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(word[q], 4), nibble)));
        }
    }
    decode_scales(w, first, scales);
}

template <int P, int T> void multiply(const uint8_t* values, const float* scales, int64_t groups, const Block<P>* const* x, float* const* y, int64_t row, const float* bias) {
    __m512 total[T];
    for (int t = 0; t < T; ++t) total[t] = _mm512_setzero_ps();
    for (int64_t g = 0; g < groups; ++g) {
        __m512i sum[P][T];
        for (int t = 0; t < T; ++t)
            for (int p = 0; p < P; ++p)
                sum[p][t] = p ? _mm512_setzero_si512() : _mm512_set1_epi32(x[t][g].correction);
        for (int k = 0; k < WORDS; ++k) {
            const __m512i w = _mm512_load_si512(values + (g * WORDS + k) * 64);
            for (int p = 0; p < P; ++p)
                for (int t = 0; t < T; ++t) sum[p][t] = _mm512_dpbusd_epi32(sum[p][t], w, _mm512_set1_epi32(x[t][g].word[p][k]));
        }
        const __m512 unit = _mm512_load_ps(scales + g * ROW_TILE);
        for (int t = 0; t < T; ++t) {
            for (int p = P - 1; p; --p) sum[p - 1][t] = _mm512_add_epi32(sum[p - 1][t], _mm512_slli_epi32(sum[p][t], 8));
            total[t] = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sum[0][t]), _mm512_set1_ps(x[t][g].scale)), unit, total[t]);
        }
    }
    const __m512 b = bias ? _mm512_loadu_ps(bias + row) : _mm512_setzero_ps();
    for (int t = 0; t < T; ++t) _mm512_storeu_ps(y[t] + row, _mm512_add_ps(total[t], b));
}

template <int P> void rows_as(const Rows& w, int64_t tokens, const uint8_t* packed, float* const* y) {
    constexpr int TOGETHER = P == Q8 ? 8 : P == Q16 ? 6 : 4;  // what the registers hold
    uint8_t* values = static_cast<uint8_t*>(aligned_alloc(64, w.groups * (WORDS * 64 + ROW_TILE * 4)));
    float* scales = reinterpret_cast<float*>(values + w.groups * WORDS * 64);
    const Block<P>* x[TOGETHER];
    for (int64_t row = 0; row < w.rows; row += ROW_TILE) {
        decode(w, row, values, scales);
        for (int64_t t = 0; t < tokens;) {
            const int64_t n = tokens - t;
            for (int i = 0; i < TOGETHER && i < n; ++i) x[i] = reinterpret_cast<const Block<P>*>(packed + (t + i) * packed_bytes(P, w.groups));
            if (n >= TOGETHER) multiply<P, TOGETHER>(values, scales, w.groups, x, y + t, row, w.bias), t += TOGETHER;
            else if (n >= 4) multiply<P, 4>(values, scales, w.groups, x, y + t, row, w.bias), t += 4;
            else if (n >= 2) multiply<P, 2>(values, scales, w.groups, x, y + t, row, w.bias), t += 2;
            else multiply<P, 1>(values, scales, w.groups, x, y + t, row, w.bias), t += 1;
        }
    }
    free(values);
}

bool rows(int32_t planes, const Rows& w, int64_t tokens, const uint8_t* packed, float* const* y) {
    if (planes == Q8) rows_as<Q8>(w, tokens, packed, y);
    else if (planes == Q16) rows_as<Q16>(w, tokens, packed, y);
    else rows_as<Q24>(w, tokens, packed, y);
    return true;
}

}  // namespace

extern "C" const GemmKernels gemm_vnni = {12, 1, ROW_TILE, packed_bytes, pack, rows, nullptr};
