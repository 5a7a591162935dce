// Prompts on machines with AMX: 16 x 16 tiles of float32 sums, 32 products deep. Weights decode to bfloat16 without error; an
// activation is split into bfloat16 terms whose sum it is (to 8, 16 or 24 bits). File-local functions and intrinsics only.
#include <immintrin.h>

#include <cstdlib>
#include <cstring>

#include "matmul.h"
#include "values.h"

namespace {

constexpr int QK = 32, HF_BLOCK = 16, SIDE = 16, TILE = 1024;  // bytes in a tile
constexpr int64_t ROW_TILE = 2 * SIDE;

// Long sums round more than short ones: tiles are added up in float32 vectors every SEGMENT blocks.
constexpr int64_t SEGMENT = 8;

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

// Rows `first`.. of w as [block][row][32] bfloat16.
inline void decode(const Rows& w, int64_t first, uint8_t* out) {
    for (int64_t r = 0; r < ROW_TILE; ++r) {
        const uint8_t* b = w.blocks + (first + r) * w.groups * HF_BLOCK;
        const uint8_t* s = w.scales + (first + r) * w.groups;
        for (int64_t g = 0; g < w.groups; ++g) {
            __builtin_prefetch(b + g * HF_BLOCK + ROW_TILE / 4 * w.groups * HF_BLOCK);
            const __m512i byte = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(b + g * HF_BLOCK)));
            const __m512i index = _mm512_or_si512(byte, _mm512_slli_epi32(byte, 12));  // words: byte, byte >> 4
            _mm512_store_si512(out + (g * ROW_TILE + r) * 64, _mm512_permutexvar_epi16(index, _mm512_load_si512(VALUES.entry[s[g]])));
        }
    }
}

// The compiler does not know that tile instructions read memory: what was stored must be there.
inline void stores_done() { asm volatile("" ::: "memory"); }

inline void add_tile(float* sum, const float* tile) {
    for (int i = 0; i < SIDE * SIDE; i += 16) _mm512_store_ps(sum + i, _mm512_add_ps(_mm512_load_ps(sum + i), _mm512_load_ps(tile + i)));
}

// A macro because a tile's number is part of the instruction.
#define FLUSH_TILE(n)                        \
    {                                        \
        _tile_stored(n, tile, 64);           \
        add_tile(sums + n * SIDE * SIDE, tile); \
        _tile_zero(n);                       \
    }

// sums[4][16 rows][16 tokens] += tiles 0..3 = (panel, half of the rows); the tiles are zero then.
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

template <int PANELS> void multiply(int32_t terms, const Bf16Rows& w, int64_t groups, const uint8_t* a, const uint8_t* b, float* sums) {
    memset(sums, 0, 4 * TILE);
    stores_done();
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t g = 0; g < groups; ++g) {
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
        if ((g + 1) % SEGMENT == 0 || g + 1 == groups) flush<PANELS>(sums);
    }
}

inline void configure() {
    alignas(64) uint8_t config[64] = {1};  // palette 1; then row bytes of 8 tiles from byte 16, rows from byte 48
    for (int t = 0; t < 8; ++t) {
        config[16 + 2 * t] = 64;
        config[48 + t] = SIDE;
    }
    stores_done();
    _tile_loadconfig(config);
}

// y[t][0..ROW_TILE) for all tokens.
void multiply_tile(int32_t terms, const Bf16Rows& w, int64_t groups, const float* bias, int64_t tokens, const uint8_t* packed, float* const* y, int64_t row) {
    const int64_t panel_bytes = packed_bytes(terms, groups);
    for (int64_t t = 0; t < tokens; t += 2 * SIDE) {
        alignas(64) float sums[4 * SIDE * SIDE];
        const uint8_t* a = packed + t / SIDE * panel_bytes;
        if (t + SIDE < tokens) multiply<2>(terms, w, groups, a, a + panel_bytes, sums);
        else multiply<1>(terms, w, groups, a, a, sums);
        for (int64_t i = 0; i < 2 * SIDE && t + i < tokens; ++i)
            for (int64_t r = 0; r < ROW_TILE; ++r)
                y[t + i][row + r] = sums[(i / SIDE * 2 + r / SIDE) * SIDE * SIDE + r % SIDE * SIDE + i % SIDE] + (bias ? bias[r] : 0.0f);
    }
}

bool rows(int32_t terms, const Rows& w, int64_t tokens, const uint8_t* packed, float* const* y) {
    if (!safe(w)) return false;
    uint8_t* weights = static_cast<uint8_t*>(aligned_alloc(64, w.groups * ROW_TILE * 64));
    configure();
    for (int64_t row = 0; row < w.rows; row += ROW_TILE) {
        decode(w, row, weights);
        multiply_tile(terms, {weights, 64, ROW_TILE * 64}, w.groups, w.bias ? w.bias + row : nullptr, tokens, packed, y, row);
    }
    _tile_release();
    free(weights);
    return true;
}

void rows_bf16(const uint16_t* w, const float* bias, int64_t n, int64_t groups, int64_t tokens, const uint8_t* packed, float* const* y) {
    configure();
    for (int64_t row = 0; row < n; row += ROW_TILE) {
        const Bf16Rows tile = {reinterpret_cast<const uint8_t*>(w + row * groups * QK), groups * QK * 2, QK * 2};
        multiply_tile(Q24, tile, groups, bias ? bias + row : nullptr, tokens, packed, y, row);
    }
    _tile_release();
}

}  // namespace

extern "C" const GemmKernels gemm_amx = {6, SIDE, ROW_TILE, packed_bytes, pack, rows, rows_bf16};
