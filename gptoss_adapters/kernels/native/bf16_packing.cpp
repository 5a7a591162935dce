// Packing bfloat16 matrices into 12 bits, and their products, for any instruction set.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "lanes.h"
#include "bf16_packed.h"
#include "pool.h"

namespace {

constexpr int NIBBLES = 15;
constexpr int64_t SAMPLED = 32;  // one run of weights in so many is looked at

int exponent(uint16_t w) { return w >> 7 & 255; }
bool is_listed(uint16_t w, int base) { return exponent(w) && (exponent(w) <= base || exponent(w) > base + NIBBLES); }

// Returns how many of the weights are listed. The loops over 16-bit values vectorise.
int64_t pack_group(const uint16_t* w, int64_t count, int32_t base, uint8_t* out) {
    uint16_t all[PACKED_GROUP] = {}, kept[PACKED_GROUP], nibbles[PACKED_GROUP];
    memcpy(all, w, size_t(std::min(count, PACKED_GROUP)) * 2);
    uint16_t listed = 0;
    for (int i = 0; i < PACKED_GROUP; ++i) {
        const uint16_t e = all[i] >> 7 & 255, n = uint16_t(e - base), in_range = uint16_t(-(uint16_t(n - 1) < NIBBLES)), zero = uint16_t(-(e == 0));
        kept[i] = all[i] & (in_range | zero);
        nibbles[i] = n & in_range;
        listed += 1 + (in_range | zero);
    }
    uint8_t sign[PACKED_GROUP], mantissa[PACKED_GROUP], nibble[PACKED_GROUP];
    for (int i = 0; i < PACKED_GROUP; ++i) {
        sign[i] = uint8_t(kept[i] >> 15);
        mantissa[i] = uint8_t(kept[i] << 1);  // a bit of the exponent is shifted out
        nibble[i] = uint8_t(nibbles[i]);
    }
    for (int j = 0; j < 4; ++j)
        for (int h = 0; h < 2; ++h)
            for (int i = 0; i < 4; ++i) {
                const int from = 4 * j + i + 32 * h, at = 16 * j + 2 * i + 8 * h;
                out[at] = mantissa[from] | sign[from + 16];
                out[at + 1] = mantissa[from + 16] | sign[from];
                out[PACKED_GROUP + at / 2] = uint8_t(nibble[from] | nibble[from + 16] << 4);
            }
    return listed;
}

template <typename F> void by_rows(const PackedMatrix& m, const F& work) {
    const int64_t step = rows_of_item(m.rows, m.threads);
    parallel(m.threads, (m.rows + step - 1) / step, [&](int64_t item) { work(item * step, std::min(m.rows, (item + 1) * step)); });
}

}  // namespace

void pack_count(const uint16_t* w, int64_t n, int64_t* histogram) {
    constexpr int64_t RUN = 4096, LEAST = 64;  // runs of weights, from all over the matrix
    const int64_t runs = (n + RUN - 1) / RUN, step = std::max<int64_t>(1, std::min<int64_t>(SAMPLED, runs / LEAST));
    for (int64_t run = 0; run < runs; run += step)
        for (int64_t i = run * RUN; i < std::min(n, (run + 1) * RUN); ++i) ++histogram[exponent(w[i])];
}

void pack_rows(const uint16_t* w, const PackedMatrix& m) {
    by_rows(m, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
            const uint16_t* row = w + r * m.width;
            int64_t listed = 0;
            for (int64_t g = 0; g < m.groups; ++g)
                listed += pack_group(row + g * PACKED_GROUP, m.width - g * PACKED_GROUP, m.base, m.data + (r * m.groups + g) * PACKED_BYTES);
            m.first[r + 1] = listed;
        }
    });
}

void pack_listed(const uint16_t* w, const PackedMatrix& m) {
    by_rows(m, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
            int64_t to = m.first[r];
            for (int64_t i = 0; to < m.first[r + 1]; ++i)
                if (is_listed(w[r * m.width + i], m.base)) {
                    m.column[to] = int32_t(i);
                    m.value[to++] = w[r * m.width + i];
                }
        }
    });
}

void unpack_rows(const PackedKernels& k, const PackedMatrix& m, int64_t begin, int64_t end, uint16_t* out) {
    parallel(m.threads, end - begin, [&](int64_t item) {
        const int64_t r = begin + item;
        uint16_t *row = out + item * m.width, last[PACKED_GROUP];
        const int64_t whole = m.width / PACKED_GROUP;
        for (int64_t g = 0; g < whole; ++g) k.unpack(m.data + (r * m.groups + g) * PACKED_BYTES, m.base, row + g * PACKED_GROUP);
        if (m.width % PACKED_GROUP) {
            k.unpack(m.data + (r * m.groups + whole) * PACKED_BYTES, m.base, last);
            memcpy(row + whole * PACKED_GROUP, last, size_t(m.width % PACKED_GROUP) * 2);
        }
        for (int64_t i = m.first[r]; i < m.first[r + 1]; ++i) row[m.column[i]] = m.value[i];
    });
}

void run_linear_packed(const PackedKernels& k, const PackedMatrix& m, const float* bias, int64_t tokens, const float* x, float* y) {
    const int64_t padded = m.groups * PACKED_GROUP;
    const std::unique_ptr<float[]> memory(new float[size_t(tokens * padded)]);
    std::vector<const float*> in;
    bool finite = true;
    for (int64_t t = 0; t < tokens; ++t) {
        float* to = memory.get() + t * padded;
        std::fill(std::copy(x + t * m.width, x + (t + 1) * m.width, to), to + padded, 0.0f);
        for (int64_t i = 0; i < m.width; ++i) finite &= std::fabs(to[i]) <= 3.4028235e38f;
        in.push_back(to);
    }
    by_rows(m, [&](int64_t begin, int64_t end) {
        std::vector<float*> out;
        for (int64_t t = 0; t < tokens; ++t) out.push_back(y + t * m.rows + begin);
        k.rows(m.data + begin * m.groups * PACKED_BYTES, m.base, end - begin, m.groups, tokens, in.data(), out.data());
        for (int64_t r = begin; r < end; ++r)
            for (int64_t t = 0; t < tokens; ++t) {
                float& sum = out[size_t(t)][r - begin];
                for (int64_t i = m.first[r]; i < m.first[r + 1]; ++i) sum += widen(m.value[i]) * in[size_t(t)][m.column[i]];
                if (bias) sum += bias[r];
            }
    });
    if (finite) return;
    // Zero times infinity is NaN: where listed weights stand as zero, the sums are made anew.
    std::vector<uint16_t> row(size_t(m.width));
    for (int64_t r = 0; r < m.rows; ++r) {
        if (m.first[r] == m.first[r + 1]) continue;
        unpack_rows(k, m, r, r + 1, row.data());
        for (int64_t t = 0; t < tokens; ++t) {
            float sum = bias ? bias[r] : 0.0f;
            for (int64_t i = 0; i < m.width; ++i) sum += widen(row[size_t(i)]) * in[size_t(t)][i];
            y[t * m.rows + r] = sum;
        }
    }
}
