// Runs the native functions in a cross-compiled program, for test_neon.py: a request on stdin, results on stdout.
#include <cstdint>
#include <cstdio>
#include <vector>

#include "layer_ops.h"
#include "bf16_packed.h"

extern "C" {
const char* gptoss_select(const char* name);
void gptoss_hf_to_ggml(const uint8_t*, const uint8_t*, int64_t, int64_t, int64_t, uint8_t*);
void gptoss_ggml_to_hf(const uint8_t*, int64_t, int64_t, int64_t, uint8_t*, uint8_t*);
int64_t gptoss_compare_ggml(const uint8_t*, const uint8_t*, int64_t, int64_t, int64_t, const uint8_t*);
int64_t gptoss_encode(const void*, int32_t, int64_t, const void*, const uint8_t*, uint8_t*, uint8_t*);
void gptoss_decode(const uint8_t*, const uint8_t*, int64_t, int64_t, int64_t, void*, int32_t);
void gptoss_matmul(const uint8_t*, const uint8_t*, const float*, int64_t, int64_t, int64_t, const float*, int32_t, int32_t, float*);
void gptoss_rms_norm(const float*, const float*, int64_t, int64_t, float, float*);
void gptoss_attend(const AttendArguments*);
void gptoss_pack_rows(const uint16_t*, const PackedMatrix*);
void gptoss_pack_listed(const uint16_t*, const PackedMatrix*);
void gptoss_unpack_rows(const PackedMatrix*, int64_t, int64_t, uint16_t*);
void gptoss_linear_packed(const PackedMatrix*, const float*, int64_t, const float*, float*);
}

template <typename T> std::vector<T> get(size_t n) {
    std::vector<T> v(n);
    if (fread(v.data(), sizeof(T), n, stdin) != n) throw 1;
    return v;
}
template <typename T> void put(const std::vector<T>& v) { fwrite(v.data(), sizeof(T), v.size(), stdout); }

int main(int, char** argv) {
    const char* chosen = gptoss_select(argv[1]);
    if (!chosen) return 2;
    const auto shape = get<int64_t>(3);
    const int64_t rows = shape[0], groups = shape[1], tokens = shape[2];
    const auto blocks = get<uint8_t>(rows * groups * 16), scales = get<uint8_t>(rows * groups);
    const auto x = get<float>(tokens * groups * 32);

    std::vector<uint8_t> ggml(rows * groups * 17), back(blocks.size()), back_scales(scales.size());
    gptoss_hf_to_ggml(blocks.data(), scales.data(), rows, groups, 1, ggml.data());
    gptoss_ggml_to_hf(ggml.data(), rows, groups, 1, back.data(), back_scales.data());
    if (back != blocks || back_scales != scales) return 3;
    if (gptoss_compare_ggml(blocks.data(), scales.data(), rows, groups, 1, ggml.data()) != -1) return 4;
    std::vector<float> values(rows * groups * 32), y(tokens * rows);
    gptoss_decode(blocks.data(), scales.data(), rows, groups, 1, values.data(), 0);
    put(ggml);
    put(values);
    const struct { uint32_t round_up; int32_t ties_to_even, keep_minus_zero, search; } mse = {0, 1, 1, 1};
    const int64_t n = x.size() / 32;
    std::vector<uint8_t> made(n * 16), made_scales(n);
    if (gptoss_encode(x.data(), 0, n, &mse, nullptr, made.data(), made_scales.data()) != -1) return 5;
    put(made);
    put(made_scales);
    std::vector<uint16_t> bf16(x.size());  // truncated
    for (size_t i = 0; i < x.size(); ++i) bf16[i] = uint16_t(reinterpret_cast<const uint32_t&>(x[i]) >> 16);
    if (gptoss_encode(bf16.data(), 1, n, &mse, made_scales.data(), made.data(), made_scales.data()) != -1) return 6;
    put(made);
    put(made_scales);
    for (int precision = 0; precision <= 3; ++precision) {
        gptoss_matmul(blocks.data(), scales.data(), nullptr, rows, groups, tokens, x.data(), precision, 2, y.data());
        put(y);
    }

    const int64_t width = groups * 32;
    std::vector<float> ones(width, 1.0f), out(x.size()), sinks(2, 0.5f);
    gptoss_rms_norm(x.data(), ones.data(), tokens, width, 1e-5f, out.data());
    put(out);
    std::vector<int64_t> positions;
    for (int64_t t = 0; t < tokens; ++t) positions.push_back(t);
    const AttendArguments a = {x.data(), x.data(), x.data(), sinks.data(), positions.data(), positions.data(), out.data(),
                               0, 0, 1, tokens, tokens, 2, 2, width / 2, 3, 2};
    gptoss_attend(&a);
    put(out);

    std::vector<uint16_t> dense(values.size()), again(values.size());
    for (size_t i = 0; i < values.size(); ++i) dense[i] = uint16_t(reinterpret_cast<const uint32_t&>(values[i]) >> 16);
    const int64_t packed_groups = (width + PACKED_GROUP - 1) / PACKED_GROUP;
    std::vector<uint8_t> data(rows * packed_groups * PACKED_BYTES);
    std::vector<int64_t> first(rows + 1);
    PackedMatrix m = {data.data(), first.data(), nullptr, nullptr, rows, width, packed_groups, 112, 2};  // exponents from 113 on
    gptoss_pack_rows(dense.data(), &m);
    for (int64_t r = 0; r < rows; ++r) first[r + 1] += first[r];
    std::vector<int32_t> column(first[rows]);
    std::vector<uint16_t> value(first[rows]);
    m.column = column.data(), m.value = value.data();
    gptoss_pack_listed(dense.data(), &m);
    gptoss_unpack_rows(&m, 0, rows, again.data());
    if (again != dense) return 7;
    gptoss_linear_packed(&m, nullptr, tokens, x.data(), y.data());
    put(y);
}
