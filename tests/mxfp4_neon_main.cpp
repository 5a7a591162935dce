// Runs the native functions in a cross-compiled program, for test_mxfp4_neon.py: a request on stdin, results on stdout.
#include <cstdint>
#include <cstdio>
#include <vector>

extern "C" {
const char* mxfp4_select(const char* name);
void mxfp4_hf_to_ggml(const uint8_t*, const uint8_t*, int64_t, int64_t, int64_t, uint8_t*);
void mxfp4_ggml_to_hf(const uint8_t*, int64_t, int64_t, int64_t, uint8_t*, uint8_t*);
int64_t mxfp4_compare_ggml(const uint8_t*, const uint8_t*, int64_t, int64_t, int64_t, const uint8_t*);
int64_t mxfp4_encode(const void*, int32_t, int64_t, const void*, const uint8_t*, uint8_t*, uint8_t*);
void mxfp4_decode(const uint8_t*, const uint8_t*, int64_t, int64_t, int64_t, void*, int32_t);
void mxfp4_matmul(const uint8_t*, const uint8_t*, const float*, int64_t, int64_t, int64_t, const float*, int32_t, int32_t, float*);
}

template <typename T> std::vector<T> get(size_t n) {
    std::vector<T> v(n);
    if (fread(v.data(), sizeof(T), n, stdin) != n) throw 1;
    return v;
}
template <typename T> void put(const std::vector<T>& v) { fwrite(v.data(), sizeof(T), v.size(), stdout); }

int main(int, char** argv) {
    const char* chosen = mxfp4_select(argv[1]);
    if (!chosen) return 2;
    const auto shape = get<int64_t>(3);
    const int64_t rows = shape[0], groups = shape[1], tokens = shape[2];
    const auto blocks = get<uint8_t>(rows * groups * 16), scales = get<uint8_t>(rows * groups);
    const auto x = get<float>(tokens * groups * 32);

    std::vector<uint8_t> ggml(rows * groups * 17), back(blocks.size()), back_scales(scales.size());
    mxfp4_hf_to_ggml(blocks.data(), scales.data(), rows, groups, 1, ggml.data());
    mxfp4_ggml_to_hf(ggml.data(), rows, groups, 1, back.data(), back_scales.data());
    if (back != blocks || back_scales != scales) return 3;
    if (mxfp4_compare_ggml(blocks.data(), scales.data(), rows, groups, 1, ggml.data()) != -1) return 4;
    std::vector<float> values(rows * groups * 32), y(tokens * rows);
    mxfp4_decode(blocks.data(), scales.data(), rows, groups, 1, values.data(), 0);
    put(ggml);
    put(values);
    const struct { uint32_t round_up; int32_t ties_to_even, keep_minus_zero, search; } mse = {0, 1, 1, 1};
    const int64_t n = x.size() / 32;
    std::vector<uint8_t> made(n * 16), made_scales(n);
    if (mxfp4_encode(x.data(), 0, n, &mse, nullptr, made.data(), made_scales.data()) != -1) return 5;
    put(made);
    put(made_scales);
    std::vector<uint16_t> bf16(x.size());  // truncated
    for (size_t i = 0; i < x.size(); ++i) bf16[i] = uint16_t(reinterpret_cast<const uint32_t&>(x[i]) >> 16);
    if (mxfp4_encode(bf16.data(), 1, n, &mse, made_scales.data(), made.data(), made_scales.data()) != -1) return 6;
    put(made);
    put(made_scales);
    for (int precision = 0; precision <= 3; ++precision) {
        mxfp4_matmul(blocks.data(), scales.data(), nullptr, rows, groups, tokens, x.data(), precision, 2, y.data());
        put(y);
    }
}
