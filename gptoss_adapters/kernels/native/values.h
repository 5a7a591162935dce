// The bits of an MXFP4 value. Every one, scale byte 0 (subnormal) and the overflow of 253 and 254 included, is a bfloat16 value
// or Inf, and its float32 is that with 16 zero bits: one table serves both, and no arithmetic means no flush-to-zero.
#pragma once
#include <cstdint>

namespace {

constexpr uint16_t bf16_value(int scale, int code) {
    constexpr int exponent[8] = {0, -1, 0, 0, 1, 1, 2, 2}, half[8] = {0, 0, 0, 1, 0, 1, 0, 1};
    if (scale == 255) return 0x7fc0;
    const int m = code & 7, sign = (code & 8) << 12, field = scale + exponent[m];
    if (m == 0) return sign;
    if (field >= 255) return sign | 0x7f80;
    if (field >= 1) return sign | field << 7 | half[m] << 6;
    return sign | (128 + 64 * half[m]) >> (1 - field);
}

}  // namespace
