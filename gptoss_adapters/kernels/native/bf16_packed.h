// bfloat16 matrices in 12 bits a weight, without loss: exponents of trained weights crowd in a few binades.
//
// 64 weights take 96 bytes. Of each weight a byte holds the 7 bits of the mantissa and, in the lowest bit, the sign of its partner;
// a nibble tells the exponent: 0 is exponent 0, n > 0 is base + n. The other exponents are rare: such a weight is stored as +0 and
// listed with its row. Byte 16 j + 2 i + p + 8 h is weight 4 j + i + 16 p + 32 h (i, j < 4; p, h < 2), partners differ in p, and
// nibble n (the low one of a byte first) belongs to byte n: so that unpacking bytes gives vectors of consecutive weights.
#pragma once
#include <cstdint>

constexpr int64_t PACKED_GROUP = 64, PACKED_BYTES = 96;

struct PackedMatrix {  // twin: kernels/structs.py
    uint8_t* data;     // [rows, groups, 96]
    int64_t* first;    // [rows + 1]: where the listed weights of a row begin
    int32_t* column;
    uint16_t* value;   // bfloat16
    int64_t rows, width, groups;
    int32_t base, threads;
};

struct PackedKernels {
    // y[t][r] = sum over k of w[r][k] * x_t[k] without the listed weights; x_t has groups * 64 values.
    void (*rows)(const uint8_t* data, int32_t base, int64_t rows, int64_t groups, int64_t tokens, const float* const* x, float* const* y);
    void (*unpack)(const uint8_t* group, int32_t base, uint16_t* out);  // 64 weights
};

void pack_count(const uint16_t* w, int64_t n, int64_t* histogram);  // of the 256 exponents, in a sample of a large matrix
void pack_rows(const uint16_t* w, const PackedMatrix& m);                        // fills data, and at first[r + 1] how many of row r are listed
void pack_listed(const uint16_t* w, const PackedMatrix& m);                      // fills column and value, where first tells
void unpack_rows(const PackedKernels& k, const PackedMatrix& m, int64_t begin, int64_t end, uint16_t* out);
void run_linear_packed(const PackedKernels& k, const PackedMatrix& m, const float* bias, int64_t tokens, const float* x, float* y);
