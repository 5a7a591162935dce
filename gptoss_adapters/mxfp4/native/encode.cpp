// Quantising, compiled once per instruction set: plain loops over the 32 values of a block, which the compiler vectorises.
// Codes come from comparing bits as integers: exact for every scale, subnormals included, and deaf to flush-to-zero.
#include "encode.h"
#include "nibbles.h"
#include "values.h"

#define CONCAT_(a, b) a##b
#define CONCAT(a, b) CONCAT_(a, b)

namespace {

constexpr int QK = 32, HF_BLOCK = 16, MAX_SCALE = 252;

// A source type as it is compared: magnitudes as signed integers in the order of their values.
struct Bf16 {
    using Bits = int16_t;
    using Word = uint16_t;
    using Sum = float;  // holds the sums of better_step exactly
    static constexpr int MANTISSA = 7;
};
struct F32 {
    using Bits = int32_t;
    using Word = uint32_t;
    using Sum = double;
    static constexpr int MANTISSA = 23;
};

// numerator * 2^(exponent), a value of at most three significant bits, as float32 bits.
constexpr uint32_t float_bits(uint32_t numerator, int exponent) {
    int top = 0;
    while (numerator >> (top + 1)) ++top;
    const int field = exponent + top + 127;
    return field > 0 ? uint32_t(field) << 23 | (numerator << (23 - top) & 0x7fffff) : numerator << (exponent + 149);
}

// For scales 0 to 3; a larger scale is brought to 3 by subtracting from the exponents.
struct Grid {
    uint32_t above[4][7];  // a magnitude has as many codes below its own as it exceeds of these
    uint32_t value[4][8];
};
constexpr Grid make_grid() {
    constexpr int quarters[7] = {1, 3, 5, 7, 10, 14, 20}, halves[8] = {0, 1, 2, 3, 4, 6, 8, 12};
    Grid g{};
    for (int s = 0; s < 4; ++s) {
        for (int k = 0; k < 7; ++k) g.above[s][k] = float_bits(quarters[k], s - 129);
        for (int k = 1; k < 8; ++k) g.value[s][k] = float_bits(halves[k], s - 128);
    }
    return g;
}
constexpr Grid GRID = make_grid();

template <typename T> inline typename T::Bits shortened(uint32_t float_bits) { return typename T::Bits(float_bits >> (23 - T::MANTISSA)); }

// Magnitudes and their maximum.
template <typename T> inline typename T::Bits load(const typename T::Word* x, typename T::Bits* a) {
    typename T::Bits amax = 0;
    for (int j = 0; j < QK; ++j) a[j] = typename T::Bits(x[j] & typename T::Word(~typename T::Word(0)) >> 1);
    for (int j = 0; j < QK; ++j) amax = a[j] > amax ? a[j] : amax;
    return amax;
}

// Codes 0 to 7 of the magnitudes under a scale, and the magnitudes at scale min(scale, 3), 0 where that is too small to matter.
template <typename T> inline void to_codes(const typename T::Bits* a, int scale, int ties_to_even, typename T::Bits* at3, typename T::Bits* code) {
    using Bits = typename T::Bits;
    const int row = scale < 3 ? scale : 3;
    const Bits shift = Bits((scale - row) << T::MANTISSA);
    Bits t[7];
    for (int k = 0; k < 7; ++k) t[k] = Bits(shortened<T>(GRID.above[row][k]) - (k & ties_to_even));  // a tie that goes up exceeds what is just below
    for (int j = 0; j < QK; ++j) {
        const Bits v = Bits((a[j] > shift ? a[j] : shift) - shift);
        at3[j] = v;
        code[j] = Bits((v > t[0]) + (v > t[1]) + (v > t[2]) + (v > t[3]) + (v > t[4]) + (v > t[5]) + (v > t[6]));
    }
}

// Whether every magnitude has a code of its own under a scale; its codes.
template <typename T> inline bool exact_codes(const typename T::Bits* a, int scale, typename T::Bits* code) {
    using Bits = typename T::Bits;
    if (scale > MAX_SCALE) return false;
    Bits at3[QK];
    to_codes<T>(a, scale, 0, at3, code);
    const uint32_t* row = GRID.value[scale < 3 ? scale : 3];
    Bits v[8], all = -1;
    for (int k = 1; k < 8; ++k) v[k] = shortened<T>(row[k]);
    for (int j = 0; j < QK; ++j) {
        const Bits b = at3[j];
        all &= -Bits((a[j] == 0) | (b == v[1]) | (b == v[2]) | (b == v[3]) | (b == v[4]) | (b == v[5]) | (b == v[6]) | (b == v[7]));
    }
    return all != 0;
}

inline float from_bits(int32_t bits) {
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

// The magnitudes in units of the scale. Those below 1/8, which no error difference below looks at, may come out as others below it.
template <typename T> inline void in_units(const typename T::Bits* a, int scale, float* u) {
    if (scale < 4) {  // subnormals are near: through integers, in units of 2^-149
        for (int j = 0; j < QK; ++j) {
            const int32_t bits = int32_t(a[j]) << (23 - T::MANTISSA), field = bits >> 23, mantissa = bits & 0x7fffff;
            u[j] = float(field ? (mantissa | 0x800000) << (field - 1) : mantissa) * from_bits((127 + 127 - 149 - scale) << 23);
        }
        return;
    }
    const int32_t shift = (scale - 127) * (1 << 23);
    for (int j = 0; j < QK; ++j) {
        const int32_t bits = (int32_t(a[j]) << (23 - T::MANTISSA)) - shift;
        u[j] = from_bits(bits > 0 ? bits : 0);
    }
}

inline float tent(float u, float peak, float height) {  // height at the peak, falling to 0 with slope 1
    const float d = u - peak, h = height - (d < 0 ? -d : d);
    return h > 0 ? h : 0;
}

// By how much the best scale differs from the one that puts the largest magnitude m into [4, 8): 1, -1 or 0. In units of that scale:
// - one above loses the values .5 and 1.5 and gains 8, so it can win only where m > 7;
// - one below gains .25 and .75, worth 1/16 per value at most, and ends at 3, so it can win only where (m - 3)^2 - (m - 4)^2 < 31 / 16;
// - two above has no value that one above lacks; two below ends at 1.5 and always loses.
// Between values of a grid the difference of two squared errors is linear in the magnitude, so all sums here are exact.
template <typename T> inline int better_step(const typename T::Bits* a, typename T::Bits amax, int scale) {
    using Sum = typename T::Sum;
    if ((amax >> T::MANTISSA) - 2 != scale) return 0;  // the scale was clamped: m is below 4, or 0
    const uint32_t fraction = uint32_t(amax & ((1 << T::MANTISSA) - 1)) << (23 - T::MANTISSA);
    const bool up = fraction > 0x600000 && scale < MAX_SCALE, down = fraction < 0x0f0000 && scale > 0;
    if (!up && !down) return 0;
    float u[QK];
    Sum lanes[8] = {};
    in_units<T>(a, scale, u);
    for (int j = 0; j < QK; j += 8)
        for (int l = 0; l < 8; ++l) {
            const float x = u[j + l];
            if (up) {
                const float gain = 4 * x - 28;
                lanes[l] += Sum(tent(x, 0.5f, 0.25f)) + Sum(tent(x, 1.5f, 0.25f)) - Sum(gain > 0 ? gain : 0);
            } else {
                const float loss = 4 * x - 14;
                lanes[l] += Sum(loss > 0 ? loss : 0) - Sum(tent(x, 0.25f, 0.125f)) - Sum(tent(x, 0.75f, 0.125f));  // doubled
            }
        }
    Sum more = 0;
    for (int l = 0; l < 8; ++l) more += lanes[l];
    return more < 0 ? (up ? 1 : -1) : 0;
}

template <typename T> inline bool encode_block(const typename T::Word* x, const EncodeRule& rule, const uint8_t* given, uint8_t* block, uint8_t* scale_byte) {
    using Bits = typename T::Bits;
    Bits a[QK], at3[QK], code[QK];
    const Bits amax = load<T>(x, a);
    if (amax >= Bits(0xff << T::MANTISSA)) return false;
    bool keep = rule.keep_minus_zero;
    int scale;
    if (given && exact_codes<T>(a, *given, code)) {
        scale = *given;
        keep = true;
    } else {
        scale = int(((uint32_t(amax) << (23 - T::MANTISSA)) + rule.round_up) >> 23) - 2;
        scale = scale < 0 ? 0 : scale > MAX_SCALE ? MAX_SCALE : scale;
        if (rule.search) scale += better_step<T>(a, amax, scale);
        to_codes<T>(a, scale, rule.ties_to_even, at3, code);
    }
    uint8_t byte[QK];
    const Bits always = keep ? -1 : 0;
    for (int j = 0; j < QK; ++j) {
        const Bits sign = Bits(x[j] >> (T::MANTISSA + 5)) & 8;
        byte[j] = uint8_t(code[j] | (sign & (always | -Bits(code[j] != 0))));
    }
    store16(block, pack_codes(byte));
    *scale_byte = uint8_t(scale);
    return true;
}

template <typename T>
int64_t encode_all(const void* x, int64_t n_blocks, const EncodeRule& rule, const uint8_t* given, uint8_t* blocks, uint8_t* scales) {
    const typename T::Word* v = static_cast<const typename T::Word*>(x);
    for (int64_t i = 0; i < n_blocks; ++i)
        if (!encode_block<T>(v + i * QK, rule, given ? given + i : nullptr, blocks + i * HF_BLOCK, scales + i)) return i;
    return -1;
}

int64_t encode(const void* x, int32_t source, int64_t n_blocks, const EncodeRule* rule, const uint8_t* given, uint8_t* blocks, uint8_t* scales) {
    return source == SOURCE_BF16 ? encode_all<Bf16>(x, n_blocks, *rule, given, blocks, scales) : encode_all<F32>(x, n_blocks, *rule, given, blocks, scales);
}

// ---- what it did --------------------------------------------------------------------------------------------------

inline double power_of_two(int exponent) {
    const uint64_t bits = uint64_t(exponent + 1023) << 52;
    double d;
    memcpy(&d, &bits, 8);
    return d;
}

void measure(const void* x, int32_t source, int64_t n_blocks, const uint8_t* blocks, const uint8_t* scales, const uint8_t* base_blocks,
             const uint8_t* base_scales, EncodeStats* stats) {
    double error[8] = {}, power[8] = {};
    for (int64_t i = 0; i < n_blocks; ++i) {
        int32_t bits[QK], code[QK];
        for (int j = 0; j < QK; ++j)
            bits[j] = source == SOURCE_BF16 ? int32_t(uint32_t(static_cast<const uint16_t*>(x)[i * QK + j]) << 16) : static_cast<const int32_t*>(x)[i * QK + j];
        for (int j = 0; j < HF_BLOCK; ++j) {
            code[2 * j] = blocks[i * HF_BLOCK + j] & 15;
            code[2 * j + 1] = blocks[i * HF_BLOCK + j] >> 4;
        }
        const double half = power_of_two(scales[i] - 128);
        int32_t largest = 0, minus_zeros = 0;
        for (int j = 0; j < QK; j += 8)
            for (int l = 0; l < 8; ++l) {
                const int32_t c = code[j + l] & 7, halves = (c > 2 * c - 4 ? c : 2 * c - 4) + 2 * (c == 7);  // twice the e2m1 value
                const double v = from_bits(bits[j + l]), d = v - half * (code[j + l] & 8 ? -halves : halves);
                error[l] += d * d;
                power[l] += v * v;
            }
        for (int j = 0; j < QK; ++j) {
            largest = (code[j] & 7) > largest ? code[j] & 7 : largest;
            minus_zeros += code[j] == 8;
        }
        ++stats->max_codes[largest];
        stats->zero_blocks += largest == 0;
        stats->minus_zeros += minus_zeros;
        if (base_blocks) stats->changed += base_scales[i] != scales[i] || !same(load16(base_blocks + i * HF_BLOCK), load16(blocks + i * HF_BLOCK));
    }
    for (int l = 0; l < 8; ++l) stats->error += error[l], stats->power += power[l];
}

}  // namespace

extern "C" const EncodeKernels CONCAT(encode_, MXFP4_ISA) = {encode, measure};
