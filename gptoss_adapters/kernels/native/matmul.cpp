// Compiled once per instruction set (KERNELS_ISA); file-local functions and intrinsics only, see mxfp4_codec.cpp.
//
// Activations become block fixed-point numbers: x = v * d with d = amax / LIMIT for each block of 32, v an integer of 8, 16 or
// 24 bits split into int8 planes. Weights are exact small integers, so the sum over a block is exact and only the sums of those
// round, in float32. A prepared vector is a run of groups of 4 blocks:
//   planes [P][even, odd][16 lanes][4 bytes], scales d / 2 [16] float, corrections -WEIGHT_BIAS * sum(v) [16] int32
// where lane 4 b + q of a plane is quarter q (8 values) of block b, and of the others block b, four times.
#include "matmul.h"

#include "mxfp4_codec.h"
#include "lanes.h"
#include "per_isa.h"
#include "vec.h"

extern "C" const CodecKernels OF_THIS_ISA(codec);

namespace {

constexpr int GROUP = 4;
constexpr double Q24_LIMIT = 84.0 * 65536;  // a block's sum of 32 products of up to 12 * Q24_LIMIT fits an int32

template <int P> constexpr int64_t group_bytes() { return 128 * P + 128; }

int64_t prepared_bytes(int32_t precision, int64_t groups) { return (groups + GROUP - 1) / GROUP * (128 * precision + 128); }

// ---- activations --------------------------------------------------------------------------------------------------

// Rounds to nearest even by adding 1.5 * 2^23 (2^52): what is left of the sum's low bits is the integer.
template <int P> INLINE void quantise(const float* x, float amax, int32_t* v, float* half_scale) {
    if constexpr (P == Q24) {
        const double limit = Q24_LIMIT, inverse = amax > 0 ? limit / amax : 0;
        for (int j = 0; j < QK; ++j) {
            const double r = x[j] * inverse + 6755399441055744.0;
            int64_t bits;
            memcpy(&bits, &r, 8);
            v[j] = int32_t(bits);
        }
        *half_scale = float(amax / limit * 0.5);
    } else {
        const float limit = P == Q16 ? 127.0f * 256 : 127.0f, inverse = amax > 0 ? limit / amax : 0;
        for (int j = 0; j < QK; ++j) {
            const float r = x[j] * inverse + 12582912.0f;
            int32_t bits;
            memcpy(&bits, &r, 4);
            v[j] = bits - 0x4b400000;
        }
        *half_scale = amax / limit * 0.5f;
    }
}

template <int P> INLINE void store_planes(const int32_t* v, int block, uint8_t* group) {
    int32_t rest[QK];
    memcpy(rest, v, sizeof rest);
    for (int p = 0; p < P; ++p) {
        int8_t byte[QK];
        for (int j = 0; j < QK; ++j) {
            byte[j] = int8_t(rest[j]);
            rest[j] = (rest[j] - byte[j]) >> 8;
        }
        uint8_t* even = group + 128 * p + 16 * block;
        for (int j = 0; j < 16; ++j) {
            even[j] = uint8_t(byte[2 * j]);
            even[64 + j] = uint8_t(byte[2 * j + 1]);
        }
    }
}

INLINE int32_t max_magnitude(const float* x) {
    int32_t bits[QK], top = 0;
    memcpy(bits, x, sizeof bits);
    for (int j = 0; j < QK; ++j) top = top > (bits[j] & 0x7fffffff) ? top : (bits[j] & 0x7fffffff);
    return top;
}

bool fits(const float* x, int64_t groups) {
    for (int64_t b = 0; b < groups; ++b) {
        const int32_t top = max_magnitude(x + b * QK);
        if (top && (top < (127 - 100) << 23 || top > (127 + 100) << 23)) return false;
    }
    return true;
}

template <int P> void prepare_as(const float* x, int64_t groups, uint8_t* out) {
    memset(out + (groups - 1) / GROUP * group_bytes<P>(), 0, group_bytes<P>());
    for (int64_t b = 0; b < groups; ++b) {
        const int32_t top = max_magnitude(x + b * QK);
        int32_t v[QK];
        float amax, scales[4];
        uint32_t corrections[4] = {};  // modulo 2^32, as the sums that they correct
        memcpy(&amax, &top, 4);
        quantise<P>(x + b * QK, amax, v, scales);
        scales[1] = scales[2] = scales[3] = scales[0];
        for (int j = 0; j < QK; ++j) corrections[0] -= uint32_t(WEIGHT_BIAS * v[j]);
        corrections[1] = corrections[2] = corrections[3] = corrections[0];
        uint8_t* group = out + b / GROUP * group_bytes<P>();
        store_planes<P>(v, b % GROUP, group);
        memcpy(group + 128 * P + 16 * (b % GROUP), scales, 16);
        memcpy(group + 128 * P + 64 + 16 * (b % GROUP), corrections, 16);
    }
}

void prepare(int32_t precision, const float* x, int64_t groups, uint8_t* out) {
    if (precision == Q8) prepare_as<Q8>(x, groups, out);
    else if (precision == Q16) prepare_as<Q16>(x, groups, out);
    else prepare_as<Q24>(x, groups, out);
}

// ---- rows ---------------------------------------------------------------------------------------------------------

// ROWS rows of weights and their scales; the last tile of a matrix repeats its last row.
struct Tile {
    const uint8_t *blocks[ROWS], *scales[ROWS];
};

// One vector of weights of each row for T tokens. The arithmetic of a (row, token) pair depends neither on the other rows nor on
// T, so results are the same however rows are shared out and tokens are grouped.
//
// Meanwhile a tile to come is fetched, byte after byte in the order of memory: on some processors (Zen 4) rows fetched side by
// side, as they are multiplied, come half as fast as one stream. Past the end of the weights a prefetch is harmless. Where
// arithmetic is quick, the next tile would come too late, and a later one has its place in L2.
template <int P, int T, bool PART> INLINE void step(const Tile& w, int64_t groups, int64_t v, const uint8_t* const* x, Float* acc) {
    constexpr int AHEAD = P == Q24 ? 1 : 2, LOCALITY = P == Q24 ? 3 : 2;
    const int64_t next = ROWS * (AHEAD * groups + v * BLOCKS);
    for (int64_t i = 0; i < ROWS * BLOCKS * HF_BLOCK; i += 64) __builtin_prefetch(w.blocks[0] + next * HF_BLOCK + i, 0, LOCALITY);
    if (v * ROWS * BLOCKS % 64 == 0) __builtin_prefetch(w.scales[0] + next);
    const int64_t at = v / (GROUP / BLOCKS) * group_bytes<P>() + v % (GROUP / BLOCKS) * BLOCKS * 16;
    const int left = PART ? int(groups - v * BLOCKS) : BLOCKS;
    Weights u[ROWS];
    const uint8_t* s[ROWS];
    uint8_t s_part[ROWS][4] = {};
    for (int r = 0; r < ROWS; ++r) {
        const uint8_t* b = w.blocks[r] + v * BLOCKS * HF_BLOCK;
        u[r] = PART ? weights_part(b, left) : weights(b);
        s[r] = w.scales[r] + v * BLOCKS;
        if (PART) {
            for (int i = 0; i < left; ++i) s_part[r][i] = s[r][i];
            s[r] = s_part[r];
        }
    }
    const Float unit = units(s);
    for (int t = 0; t < T; ++t) {
        Int d[ROWS];
        for (int r = 0; r < ROWS; ++r) d[r] = dot<P>(u[r], x[t] + at);
        acc[t] = accumulate(acc[t], transposed(d), x[t] + at + 128 * P, unit);
    }
}

template <int P, int T> void tiles(const Rows& w, const uint8_t* const* x, float* const* y) {
    for (int64_t row = 0; row < w.rows; row += ROWS) {
        const int64_t count = w.rows - row < ROWS ? w.rows - row : ROWS;
        Tile tile;
        for (int r = 0; r < ROWS; ++r) {
            const int64_t at = (row + (r < count ? r : count - 1)) * w.groups;
            tile.blocks[r] = w.blocks + at * HF_BLOCK, tile.scales[r] = w.scales + at;
        }
        Float acc[T];
        for (int t = 0; t < T; ++t) acc[t] = zero();
        int64_t v = 0;
        for (; v < w.groups / BLOCKS; ++v) step<P, T, false>(tile, w.groups, v, x, acc);
        if (w.groups % BLOCKS) step<P, T, true>(tile, w.groups, v, x, acc);
        for (int t = 0; t < T; ++t) {
            float sums[ROWS];
            store_rows(acc[t], sums);
            for (int r = 0; r < count; ++r) y[t][row + r] = sums[r] + (w.bias ? w.bias[row + r] : 0.0f);
        }
    }
}

template <int P> void rows_as(const Rows& w, int64_t tokens, const uint8_t* const* x, float* const* y) {
    for (; tokens >= 4; tokens -= 4, x += 4, y += 4) tiles<P, 4>(w, x, y);
    if (tokens == 3) tiles<P, 3>(w, x, y);
    if (tokens == 2) tiles<P, 2>(w, x, y);
    if (tokens == 1) tiles<P, 1>(w, x, y);
}

void rows(int32_t precision, const Rows& w, int64_t tokens, const uint8_t* const* x, float* const* y) {
    if (precision == Q8) rows_as<Q8>(w, tokens, x, y);
    else if (precision == Q16) rows_as<Q16>(w, tokens, x, y);
    else rows_as<Q24>(w, tokens, x, y);
}

void rows_f32(const Rows& w, const float* x, float* y) {
    for (int64_t r = 0; r < w.rows; ++r) {
        float lane[LANES] = {};
        for (int64_t b = 0; b < w.groups; ++b) {
            float v[QK];
            const int64_t at = r * w.groups + b;
            OF_THIS_ISA(codec).decode(w.blocks + at * HF_BLOCK, w.scales + at, 1, 1, 1, v, SOURCE_F32);
            for (int j = 0; j < QK; ++j) lane[j % LANES] += v[j] * x[b * QK + j];
        }
        y[r] = sum_lanes(lane) + (w.bias ? w.bias[r] : 0.0f);
    }
}

// ---- SwiGLU -------------------------------------------------------------------------------------------------------

void swiglu(const float* h, int64_t n, float alpha, float limit, float* out) {
    for (int64_t i = 0; i < n; ++i) {
        const float gate = h[2 * i], up = h[2 * i + 1];
        const float g = gate > limit ? limit : gate;
        const float c = up > limit ? limit : up, u = c < -limit ? -limit : c;
        out[i] = g / (1.0f + exp_f32(-alpha * g)) * (u + 1.0f);
    }
}

// ---- dense bfloat16 -----------------------------------------------------------------------------------------------

// R rows and T vectors at once, 2 * LANES partial sums each; as in `tile`, the arithmetic of a pair depends on neither,
// and the next tile is fetched in the order of memory (into L2: a tile is as large as L1).
template <int T, int R> INLINE void bf16_tile(const uint16_t* w, const float* bias, int64_t k, const float* const* x, float* const* y, int64_t row) {
    float lane[R][T][2 * LANES] = {};
    int64_t i = 0;
    for (; i + 2 * LANES <= k; i += 2 * LANES)
        for (int j = 0; j < R; ++j) {
            __builtin_prefetch(w + (row + R) * k + R * i + 2 * LANES * j, 0, 2);
            for (int l = 0; l < 2 * LANES; ++l) {
                const float f = widen(w[(row + j) * k + i + l]);
                for (int t = 0; t < T; ++t) lane[j][t][l] += f * x[t][i + l];
            }
        }
    for (int j = 0; j < R; ++j)
        for (int t = 0; t < T; ++t) {
            for (int l = 0; l < LANES; ++l) lane[j][t][l] += lane[j][t][l + LANES];
            float total = sum_lanes(lane[j][t]);
            for (int64_t rest = i; rest < k; ++rest) total += widen(w[(row + j) * k + rest]) * x[t][rest];
            y[t][row + j] = total + (bias ? bias[row + j] : 0.0f);
        }
}

template <int T, int R> void bf16_tiles(const uint16_t* w, const float* bias, int64_t n, int64_t k, const float* const* x, float* const* y) {
    int64_t row = 0;
    for (; row + R <= n; row += R) bf16_tile<T, R>(w, bias, k, x, y, row);
    for (; row < n; ++row) bf16_tile<T, 1>(w, bias, k, x, y, row);
}

void rows_bf16(const uint16_t* w, const float* bias, int64_t n, int64_t k, int64_t tokens, const float* const* x, float* const* y) {
    for (; tokens >= 4; tokens -= 4, x += 4, y += 4) bf16_tiles<4, 2>(w, bias, n, k, x, y);
    for (; tokens; --tokens, ++x, ++y) bf16_tiles<1, 4>(w, bias, n, k, x, y);
}

}  // namespace

extern "C" const MatmulKernels OF_THIS_ISA(matmul) = {fits, prepared_bytes, prepare, rows, rows_f32, swiglu, rows_bf16};
