// What MXFP4 is: blocks of 32 values, a 4-bit e2m1 code each (3 bits of magnitude below the sign), and one e8m0 scale.
#pragma once
#include <cstdint>

namespace {

constexpr int QK = 32;  // values of a block
constexpr int HF_BLOCK = QK / 2, GGML_BLOCK = 1 + QK / 2, Q8_0_BLOCK = 2 + QK;  // bytes of one
constexpr int DOUBLED[8] = {0, 1, 2, 3, 4, 6, 8, 12};  // twice the e2m1 magnitudes

// Twice the value of each code, plus `bias`, as bytes for table look-ups.
struct Bytes { alignas(16) int8_t of_code[16]; };
constexpr Bytes doubled_bytes(int bias) {
    Bytes t{};
    for (int c = 0; c < 16; ++c) t.of_code[c] = int8_t(bias + (c & 8 ? -DOUBLED[c & 7] : DOUBLED[c]));
    return t;
}

// The bits of a value. Every one, scale byte 0 (subnormal) and the overflow of 253 and 254 included, is a bfloat16 value or Inf,
// and its float32 is that with 16 zero bits: one table serves both, and no arithmetic means no flush-to-zero.
constexpr uint16_t bf16_value(int scale, int code) {
    if (scale == 255) return 0x7fc0;
    const int twice = DOUBLED[code & 7], sign = (code & 8) << 12;
    if (twice == 0) return sign;
    int top = 0;  // twice is 2^top, or that and a half more
    while (twice >> (top + 1)) ++top;
    const int field = scale + top - 1, half = twice != 1 << top;
    if (field >= 255) return sign | 0x7f80;
    if (field >= 1) return sign | field << 7 | half << 6;
    return sign | (128 + 64 * half) >> (1 - field);
}

}  // namespace
