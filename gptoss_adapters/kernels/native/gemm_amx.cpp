// Prompts on machines with AMX: 16 x 16 tiles of float32 sums, 32 products deep. Weights decode to bfloat16 without error; an
// activation is split into bfloat16 terms whose sum it is (to 8, 16 or 24 bits). File-local functions and intrinsics only.
#include <immintrin.h>

#include <cstdlib>
#include <cstring>

#include "matmul.h"
#include "mxfp4.h"

namespace {

constexpr int SIDE = 16, TILE = 1024;  // bytes in a tile
constexpr int64_t ROW_TILE = 2 * SIDE;

// Blocks of weights that are decoded, and stay in the L1 cache, while all vectors are multiplied with them. The tiles' sums
// over one segment are then added up in float32 vectors: many short sums round less than a long one.
constexpr int64_t SEGMENT = 8;

// Packed vectors that one pass over the rows multiplies: they are read again for every ROW_TILE, so they must stay in L2.
constexpr int64_t PASS_BYTES = 5 << 18;

struct alignas(64) ValueTable { uint16_t entry[256][32]; };  // codes 0..15 twice: bit 4 of an index does not matter

constexpr ValueTable make_values() {
    ValueTable t{};
    for (int s = 0; s < 256; ++s)
        for (int c = 0; c < 32; ++c) t.entry[s][c] = bf16_value(s, c & 15);
    return t;
}
constexpr ValueTable VALUES = make_values();

int64_t packed_bytes(int32_t terms, int64_t groups) { return groups * terms * TILE; }

inline uint32_t nearest_bf16(float f) {  // as float bits
    uint32_t bits;
    memcpy(&bits, &f, 4);
    return (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000;
}

// [block][term][pair of k][token]: two bfloat16 of one token side by side, the layout of the second operand.
void pack(int32_t terms, const float* const* x, int64_t count, int64_t groups, uint8_t* out) {
    if (count < SIDE) memset(out, 0, packed_bytes(terms, groups));
    for (int64_t t = 0; t < count; ++t)
        for (int64_t b = 0; b < groups; ++b) {
            float rest[QK];
            memcpy(rest, x[t] + b * QK, sizeof rest);
            for (int term = 0; term < terms; ++term) {
                uint32_t top[QK];
                for (int j = 0; j < QK; ++j) {
                    top[j] = nearest_bf16(rest[j]);
                    float f;
                    memcpy(&f, &top[j], 4);
                    rest[j] -= f;
                }
                uint32_t* tile = reinterpret_cast<uint32_t*>(out + (b * terms + term) * TILE) + t;
                for (int pair = 0; pair < SIDE; ++pair) tile[pair * SIDE] = top[2 * pair] >> 16 | top[2 * pair + 1];
            }
        }
}

inline bool safe(const Rows& w) {
    for (int64_t i = 0; i < w.rows * w.groups; ++i)
        if (w.scales[i] < 2 || w.scales[i] > 252) {
            uint64_t half[2];
            memcpy(half, w.blocks + i * HF_BLOCK, 16);
            if ((half[0] | half[1]) & 0x7777777777777777) return false;
        }
    return true;
}

// Blocks g..g + n of rows first.. as [block][row][32] bfloat16.
inline void decode(const Rows& w, int64_t first, int64_t g, int64_t n, uint8_t* out) {
    for (int64_t r = 0; r < ROW_TILE; ++r) {
        const uint8_t* b = w.blocks + ((first + r) * w.groups + g) * HF_BLOCK;
        const uint8_t* s = w.scales + (first + r) * w.groups + g;
        __builtin_prefetch(b + 2 * SEGMENT * HF_BLOCK);
        __builtin_prefetch(b + 2 * SEGMENT * HF_BLOCK + 64);
        for (int64_t i = 0; i < n; ++i) {
            const __m512i byte = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(b + i * HF_BLOCK)));
            const __m512i index = _mm512_or_si512(byte, _mm512_slli_epi32(byte, 12));  // words: byte, byte >> 4
            _mm512_store_si512(out + (i * ROW_TILE + r) * 64, _mm512_permutexvar_epi16(index, _mm512_load_si512(VALUES.entry[s[i]])));
        }
    }
}

// The compiler does not know that tile instructions read memory: what was stored must be there.
inline void stores_done() { asm volatile("" ::: "memory"); }

inline void add_tile(float* sum, const float* tile) {
    for (int i = 0; i < SIDE * SIDE; i += 16) _mm512_store_ps(sum + i, _mm512_add_ps(_mm512_load_ps(sum + i), _mm512_load_ps(tile + i)));
}

// A macro because a tile's number is part of the instruction.
#define FLUSH_TILE(n)           \
    _tile_stored(n, tile, 64); \
    add_tile(sums + n * SIDE * SIDE, tile);

// sums[4][16 rows][16 tokens] += tiles 0..3 = (panel, half of the rows)
template <int PANELS> inline void flush(float* sums) {
    alignas(64) float tile[SIDE * SIDE];
    FLUSH_TILE(0)
    FLUSH_TILE(1)
    if (PANELS == 2) {
        FLUSH_TILE(2)
        FLUSH_TILE(3)
    }
}

// Where the bfloat16 of row r and block g lie: data + r * row_stride + g * block_stride.
struct Bf16Rows {
    const uint8_t* data;
    int64_t row_stride, block_stride;
};

template <int PANELS> void multiply(int32_t terms, const Bf16Rows& w, int64_t n, const uint8_t* a, const uint8_t* b, float* sums) {
    stores_done();
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t g = 0; g < n; ++g) {
        _tile_loadd(4, w.data + g * w.block_stride, w.row_stride);
        _tile_loadd(5, w.data + g * w.block_stride + SIDE * w.row_stride, w.row_stride);
        for (int32_t term = 0; term < terms; ++term) {
            _tile_loadd(6, a + (g * terms + term) * TILE, 64);
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 5, 6);
            if (PANELS == 2) {
                _tile_loadd(7, b + (g * terms + term) * TILE, 64);
                _tile_dpbf16ps(2, 4, 7);
                _tile_dpbf16ps(3, 5, 7);
            }
        }
    }
    flush<PANELS>(sums);
}

int64_t sums_bytes(int64_t tokens) { return (tokens + 2 * SIDE - 1) / (2 * SIDE) * 4 * TILE; }

inline void configure() {
    alignas(64) uint8_t config[64] = {1};  // palette 1; then row bytes of 8 tiles from byte 16, rows from byte 48
    for (int t = 0; t < 8; ++t) {
        config[16 + 2 * t] = 64;
        config[48 + t] = SIDE;
    }
    stores_done();
    _tile_loadconfig(config);
}

// y[t][row..row + ROW_TILE) for all tokens; `segment(g, n)` gives blocks g..g + n of those rows.
template <typename F>
void multiply_rows(int32_t terms, int64_t groups, int64_t tokens, const uint8_t* packed, const float* bias, float* sums, float* const* y, int64_t row, const F& segment) {
    const int64_t panel_bytes = packed_bytes(terms, groups), pair = 2 * SIDE;
    memset(sums, 0, sums_bytes(tokens));
    for (int64_t g = 0; g < groups; g += SEGMENT) {
        const int64_t n = groups - g < SEGMENT ? groups - g : SEGMENT;
        const Bf16Rows w = segment(g, n);
        for (int64_t t = 0; t < tokens; t += pair) {
            const uint8_t* a = packed + t / SIDE * panel_bytes + g * terms * TILE;
            if (t + SIDE < tokens) multiply<2>(terms, w, n, a, a + panel_bytes, sums + t / pair * TILE);
            else multiply<1>(terms, w, n, a, a, sums + t / pair * TILE);
        }
    }
    for (int64_t t = 0; t < tokens; ++t)
        for (int64_t r = 0; r < ROW_TILE; ++r)
            y[t][row + r] = sums[(t / SIDE * 2 + r / SIDE) * SIDE * SIDE + r % SIDE * SIDE + t % SIDE] + (bias ? bias[row + r] : 0.0f);
}

// y[t][0..rows) for all tokens, in passes; `segment(row, g, n)` gives the weights.
template <typename F>
void multiply_all(int32_t terms, int64_t rows, int64_t groups, int64_t tokens, const uint8_t* packed, const float* bias, float* const* y, const F& segment) {
    const int64_t pair_bytes = 2 * packed_bytes(terms, groups), pairs = PASS_BYTES / pair_bytes, pass = (pairs ? pairs : 1) * 2 * SIDE;
    float* sums = static_cast<float*>(aligned_alloc(64, sums_bytes(pass)));
    configure();
    for (int64_t t = 0; t < tokens; t += pass) {
        const int64_t count = tokens - t < pass ? tokens - t : pass;
        for (int64_t row = 0; row < rows; row += ROW_TILE)
            multiply_rows(terms, groups, count, packed + t / SIDE * packed_bytes(terms, groups), bias, sums, y + t, row,
                          [&](int64_t g, int64_t n) { return segment(row, g, n); });
    }
    _tile_release();
    free(sums);
}

bool rows(int32_t terms, const Rows& w, int64_t tokens, const uint8_t* packed, float* const* y) {
    if (!safe(w)) return false;
    alignas(64) uint8_t weights[SEGMENT * ROW_TILE * 64];
    multiply_all(terms, w.rows, w.groups, tokens, packed, w.bias, y, [&](int64_t row, int64_t g, int64_t n) {
        decode(w, row, g, n, weights);
        return Bf16Rows{weights, 64, ROW_TILE * 64};
    });
    return true;
}

void rows_bf16(const uint16_t* w, const float* bias, int64_t n, int64_t groups, int64_t tokens, const uint8_t* packed, float* const* y) {
    multiply_all(Q24, n, groups, tokens, packed, bias, y, [&](int64_t row, int64_t g, int64_t) {
        return Bf16Rows{reinterpret_cast<const uint8_t*>(w + (row * groups + g) * QK), groups * QK * 2, QK * 2};
    });
}

}  // namespace

extern "C" const GemmKernels gemm_amx = {14, SIDE, ROW_TILE, packed_bytes, pack, rows, rows_bf16};
