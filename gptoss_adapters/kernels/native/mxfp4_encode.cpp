// Quantising, compiled once per instruction set, on GCC's vector types. Codes come from the bits as integers: exact for every
// scale, subnormals included, and deaf to flush-to-zero.
#include "mxfp4_encode.h"
#include "per_isa.h"
#include "mxfp4.h"
#include "mxfp4_nibbles.h"

namespace {

constexpr int MAX_SCALE = 252;
#if defined(__AVX2__)
constexpr int WIDTH = 32;  // bytes; twice that is no faster, comparing costs more
#else
constexpr int WIDTH = 16;
#endif
typedef float Floats __attribute__((vector_size(WIDTH)));
typedef int32_t Ints __attribute__((vector_size(WIDTH)));
constexpr int FLOATS = WIDTH / 4;  // in a vector

// A source type as it is compared: magnitudes as signed integers in the order of their values, a block in N vectors.
struct Bf16 {
    using Bits = int16_t;
    typedef int16_t V __attribute__((vector_size(WIDTH)));
    typedef int16_t Loaded __attribute__((vector_size(WIDTH), aligned(1), may_alias));
    static constexpr int MANTISSA = 7, N = 64 / WIDTH;
};
struct F32 {
    using Bits = int32_t;
    typedef int32_t V __attribute__((vector_size(WIDTH)));
    typedef int32_t Loaded __attribute__((vector_size(WIDTH), aligned(1), may_alias));
    static constexpr int MANTISSA = 23, N = 128 / WIDTH;
};

template <typename V> inline V larger(V a, V b) { return a > b ? a : b; }
template <typename V> inline V smaller(V a, V b) { return a < b ? a : b; }

#if defined(__AVX2__)
template <typename T> inline typename T::Bits max_lane(typename T::V v);
template <> inline int16_t max_lane<Bf16>(Bf16::V v) {
    const __m256i w = __m256i(v);
    const __m128i m = _mm_max_epi16(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1)), flip = _mm_set1_epi16(0x7fff);
    return int16_t(0x7fff ^ _mm_extract_epi16(_mm_minpos_epu16(_mm_xor_si128(m, flip)), 0));
}
template <> inline int32_t max_lane<F32>(F32::V v) {
    const __m256i w = __m256i(v);
    __m128i m = _mm_max_epi32(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(m, _mm_shuffle_epi32(m, 0xb1)));
}
inline void store_codes(const Bf16::V* code, uint8_t* block) {
    const __m256i pair = _mm256_set1_epi16(0x1001);  // even + 16 * odd
    const __m256i b = _mm256_maddubs_epi16(_mm256_packus_epi16(__m256i(code[0]), __m256i(code[1])), pair);  // values 0-7, 16-23, 8-15, 24-31
    const __m128i p = _mm_packus_epi16(_mm256_castsi256_si128(b), _mm256_extracti128_si256(b, 1));
    store16(block, _mm_shuffle_epi32(p, 0xd8));
}
inline void store_codes(const F32::V* code, uint8_t* block) {
    const __m256i pair = _mm256_set1_epi16(0x1001);
    const __m256i low = _mm256_packs_epi32(__m256i(code[0]), __m256i(code[1])), high = _mm256_packs_epi32(__m256i(code[2]), __m256i(code[3]));
    const __m256i b = _mm256_maddubs_epi16(_mm256_packus_epi16(low, high), pair);  // fours of values 0, 2, 4, 6 and 1, 3, 5, 7
    const __m128i p = _mm_packus_epi16(_mm256_castsi256_si128(b), _mm256_extracti128_si256(b, 1));
    store16(block, _mm_shuffle_epi8(p, _mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15)));
}
#else
template <typename T> inline typename T::Bits max_lane(typename T::V v) {
    typename T::Bits top = 0;
    for (int l = 0; l < WIDTH / int(sizeof top); ++l) top = v[l] > top ? v[l] : top;
    return top;
}
template <typename V> inline void store_codes(const V* code, uint8_t* block) {
    constexpr int LANES = WIDTH / int(sizeof(code[0][0]));
    uint8_t byte[QK];
    for (int j = 0; j < QK; ++j) byte[j] = uint8_t(code[j / LANES][j % LANES]);
    store16(block, pack_codes(byte));
}
#endif

// numerator * 2^exponent, a value of at most three significant bits, as float32 bits.
constexpr int32_t float_bits(uint32_t numerator, int exponent) {
    int top = 0;
    while (numerator >> (top + 1)) ++top;
    const int field = exponent + top + 127;
    return int32_t(field > 0 ? uint32_t(field) << 23 | (numerator << (23 - top) & 0x7fffff) : numerator << (exponent + 149));
}

// The codes of one magnitude under scales 0 to 2, where values of the grid are subnormal: the number of thresholds exceeded.
template <typename T> inline int small_code(typename T::Bits a, int scale, int ties_to_even) {
    int code = 0;  // half way between magnitudes is the sum of their doubles, in quarters
    for (int k = 0; k < 7; ++k) code += int32_t(a) > (float_bits(DOUBLED[k] + DOUBLED[k + 1], scale - 129) >> (23 - T::MANTISSA)) - (k & ties_to_even);
    return code;
}
template <typename T> inline bool small_value(typename T::Bits a, int scale, int code) {
    return int32_t(a) == (code ? float_bits(DOUBLED[code], scale - 128) >> (23 - T::MANTISSA) : 0);
}

// Codes 0 to 7 of the magnitudes under a scale. With `exact`, whether every magnitude is the value of its code.
template <typename T, bool exact> inline bool to_codes(const typename T::V* a, int scale, int ties_to_even, typename T::V* code) {
    using V = typename T::V;
    using Bits = typename T::Bits;
    constexpr int M = T::MANTISSA, HALF = M - 1, LANES = WIDTH / int(sizeof(Bits));
    if (__builtin_expect(scale < 3, 0)) {
        bool all = true;
        for (int k = 0; k < T::N; ++k)
            for (int l = 0; l < LANES; ++l) {
                code[k][l] = Bits(small_code<T>(a[k][l], scale, ties_to_even));
                all = all && (!exact || small_value<T>(a[k][l], scale, code[k][l]));
            }
        return all;
    }
    // As under scale 3, where 1 has an exponent field of 3; what then has a field below 1 is below every threshold.
    const Bits shift = Bits((scale - 3) << M), ties = Bits(ties_to_even);
    constexpr Bits QUARTER = Bits(1 << M), THREE_QUARTERS = Bits(5 << HALF), TO_NEAREST = Bits((1 << (M - 2)) - 1 - (2 << M));
    V bad = {};
    for (int k = 0; k < T::N; ++k) {
        const V v = larger(a[k], V{} + shift) - shift;
        const V normal = (v + ((v >> HALF) & ties) + TO_NEAREST) >> HALF;              // from 1 on: field and top mantissa bit, rounded
        const V subnormal = V{} - (v > QUARTER) - (v > Bits(THREE_QUARTERS - ties));  // a tie that goes up exceeds what is just below
        code[k] = smaller(larger(normal, subnormal), V{} + Bits(7));
        if (exact) {
            const V value = ((code[k] + Bits(4)) << HALF) + ((code[k] == Bits(1)) & Bits(-(1 << HALF)));  // .5 has no bit to round to
            bad |= code[k] == Bits(0) ? V(a[k] != Bits(0)) : V(v != value);
        }
    }
    return !exact || max_lane<T>(bad & Bits(1)) == 0;
}

// The magnitudes in units of the scale. Those below 1/8, which no error difference below looks at, may come out as others below it.
inline Floats in_units(Ints bits, int scale) {
    if (__builtin_expect(scale < 4, 0)) {  // subnormals are near: through integers, in units of 2^-149
        Floats u;
        for (int l = 0; l < FLOATS; ++l) {
            const int32_t field = bits[l] >> 23, mantissa = bits[l] & 0x7fffff, factor = (105 - scale) << 23;
            float unit;
            memcpy(&unit, &factor, 4);
            u[l] = float(field ? (mantissa | 0x800000) << (field - 1) : mantissa) * unit;
        }
        return u;
    }
    return Floats(larger(bits - (scale - 127) * (1 << 23), Ints{}));
}

inline Floats tent(Floats u, float peak, float height) {  // height at the peak, falling to 0 with slope 1
    const Floats d = u - peak;
    return larger(height - Floats(Ints(d) & 0x7fffffff), Floats{});
}

template <typename T> inline Ints float32_bits(const typename T::V* a, int number);
template <> inline Ints float32_bits<F32>(const F32::V* a, int number) { return a[number]; }
template <> inline Ints float32_bits<Bf16>(const Bf16::V* a, int number) {
    typedef int16_t Half __attribute__((vector_size(WIDTH / 2), may_alias));
    return __builtin_convertvector(reinterpret_cast<const Half*>(a)[number], Ints) << 16;
}

template <typename T> struct Exact;  // a type that holds the sums of `better_step` exactly
template <> struct Exact<Bf16> {
    Floats lanes = {};
    void add(Floats x) { lanes += x; }
};
template <> struct Exact<F32> {
    typedef double Lanes __attribute__((vector_size(2 * WIDTH)));
    Lanes lanes = {};
    void add(Floats x) { lanes += __builtin_convertvector(x, Lanes); }
};

// By how much the best scale differs from the one that puts the largest magnitude m into [4, 8): 1, -1 or 0. In units of that scale:
// - one above loses the values .5 and 1.5 and gains 8, so it can win only where m > 7;
// - one below gains .25 and .75, worth 1/16 per value at most, and ends at 3, so it can win only where (m - 3)^2 - (m - 4)^2 < 31 / 16;
// - two above has no value that one above lacks; two below ends at 1.5 and always loses.
// Between values of a grid the difference of two squared errors is linear in the magnitude, so all sums here are exact.
template <typename T, bool up> inline bool better(const typename T::V* a, int scale) {
    Exact<T> more;
    for (int k = 0; k < QK / FLOATS; ++k) {
        const Floats u = in_units(float32_bits<T>(a, k), scale);
        if (up) more.add(tent(u, 0.5f, 0.25f) + tent(u, 1.5f, 0.25f) - larger(4 * u - 28, Floats{}));
        else more.add(larger(4 * u - 14, Floats{}) - tent(u, 0.25f, 0.125f) - tent(u, 0.75f, 0.125f));  // doubled
    }
    double sum = 0;
    for (int l = 0; l < FLOATS; ++l) sum += double(more.lanes[l]);
    return sum < 0;
}

template <typename T> inline int better_step(const typename T::V* a, typename T::Bits amax, int scale) {
    if ((amax >> T::MANTISSA) - 2 != scale) return 0;  // the scale was clamped: m is below 4, or 0
    const uint32_t fraction = uint32_t(amax & ((1 << T::MANTISSA) - 1)) << (23 - T::MANTISSA);
    if (fraction > 0x600000) return scale < MAX_SCALE && better<T, true>(a, scale);
    return fraction < 0x0f0000 && scale > 0 && better<T, false>(a, scale) ? -1 : 0;
}

template <typename T> inline bool encode_block(const char* x, const EncodeRule& rule, const uint8_t* given, uint8_t* block, uint8_t* scale_byte) {
    using V = typename T::V;
    using Bits = typename T::Bits;
    constexpr int M = T::MANTISSA;
    V source[T::N], a[T::N], code[T::N];
    V top = {};
    for (int k = 0; k < T::N; ++k) {
        source[k] = reinterpret_cast<const typename T::Loaded*>(x)[k];
        a[k] = source[k] & Bits((uint64_t(1) << (M + 8)) - 1);
        top = larger(top, a[k]);
    }
    const Bits amax = max_lane<T>(top);
    if (amax >= Bits(0xff << M)) return false;
    bool keep = rule.keep_minus_zero;
    int scale;
    if (given && *given <= MAX_SCALE && to_codes<T, true>(a, *given, 0, code)) {
        scale = *given;
        keep = true;
    } else {
        scale = int(((uint32_t(amax) << (23 - M)) + rule.round_up) >> 23) - 2;
        scale = scale < 0 ? 0 : scale > MAX_SCALE ? MAX_SCALE : scale;
        if (rule.search) scale += better_step<T>(a, amax, scale);
        to_codes<T, false>(a, scale, rule.ties_to_even, code);
    }
    const V always = V{} - Bits(keep);
    for (int k = 0; k < T::N; ++k) code[k] |= (source[k] >> (M + 5)) & Bits(8) & (always | (code[k] > Bits(0)));
    store_codes(code, block);
    *scale_byte = uint8_t(scale);
    return true;
}

template <typename T>
int64_t encode_all(const void* x, int64_t n_blocks, const EncodeRule& rule, const uint8_t* given, uint8_t* blocks, uint8_t* scales) {
    const char* v = static_cast<const char*>(x);
    for (int64_t i = 0; i < n_blocks; ++i)
        if (!encode_block<T>(v + i * QK * int64_t(sizeof(typename T::Bits)), rule, given ? given + i : nullptr, blocks + i * HF_BLOCK, scales + i)) return i;
    return -1;
}

int64_t encode(const void* x, int32_t source, int64_t n_blocks, const EncodeRule* rule, const uint8_t* given, uint8_t* blocks, uint8_t* scales) {
    return source == SOURCE_BF16 ? encode_all<Bf16>(x, n_blocks, *rule, given, blocks, scales) : encode_all<F32>(x, n_blocks, *rule, given, blocks, scales);
}

// ---- what it did --------------------------------------------------------------------------------------------------

inline void load_block(const void* x, int32_t source, int64_t block, float* v) {
    if (source != SOURCE_BF16) {
        memcpy(v, static_cast<const float*>(x) + block * QK, QK * sizeof(float));
        return;
    }
    uint32_t bits[QK];
    for (int j = 0; j < QK; ++j) bits[j] = uint32_t(static_cast<const uint16_t*>(x)[block * QK + j]) << 16;
    memcpy(v, bits, sizeof bits);
}

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
        int32_t code[QK];
        float values[QK];
        load_block(x, source, i, values);
        for (int j = 0; j < HF_BLOCK; ++j) {
            code[2 * j] = blocks[i * HF_BLOCK + j] & 15;
            code[2 * j + 1] = blocks[i * HF_BLOCK + j] >> 4;
        }
        const double half = power_of_two(scales[i] - 128);
        int32_t largest = 0, minus_zeros = 0;
        for (int j = 0; j < QK; j += 8)
            for (int l = 0; l < 8; ++l) {
                const int32_t c = code[j + l] & 7, halves = (c > 2 * c - 4 ? c : 2 * c - 4) + 2 * (c == 7);  // twice the e2m1 value
                const double v = values[j + l], d = v - half * (code[j + l] & 8 ? -halves : halves);
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

extern "C" const EncodeKernels OF_THIS_ISA(encode) = {encode, measure};
