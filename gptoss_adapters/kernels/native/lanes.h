// Plain float32 loops that every instruction set's compiler vectorises, with the same result on each.
#pragma once
#include <cstdint>
#include <cstring>

#include "vec.h"

namespace {

// Sixteen partial sums in a fixed order, so that every instruction set and thread count agrees; infinities and NaN come out
// as IEEE arithmetic makes them.
constexpr int LANES = 16;
INLINE float sum_lanes(float* lane) {
    for (int half = LANES / 2; half; half /= 2)
        for (int l = 0; l < half; ++l) lane[l] += lane[l + half];
    return lane[0];
}

// exp to about 1 ulp from -87 on, Inf from 88.4 on: 2^n times the Taylor series of the rest, |rest| <= ln 2 / 2. Plain C, so that it vectorises.
INLINE float exp_f32(float x) {
    x = x < -87.0f ? -87.0f : x;  // a NaN stays
    x = x > 89.0f ? 89.0f : x;  // 2^128: Inf
    const float shifted = x * 1.44269504f + 12582912.0f, n = shifted - 12582912.0f;
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.0f / 5040;
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    int32_t bits;
    memcpy(&bits, &shifted, 4);
    bits = (bits - 0x4b400000 + 127) << 23;
    float power;
    memcpy(&power, &bits, 4);
    return p * power;
}

INLINE float widen(uint16_t w) {
    const uint32_t bits = uint32_t(w) << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

}  // namespace
