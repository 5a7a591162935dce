#include "drivers.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "pool.h"

namespace {

constexpr int64_t QK = 32, HF_BLOCK = 16;

// Rows of one work item: some 100 KB of weights, enough items to balance threads, and a multiple of every tile.
constexpr int64_t CHUNK = 64;

int64_t chunks(int64_t rows) { return (rows + CHUNK - 1) / CHUNK; }

Rows part(const Rows& w, int64_t first) {
    const int64_t n = std::min(CHUNK, w.rows - first);
    return {w.blocks + first * w.groups * HF_BLOCK, w.scales + first * w.groups, w.bias ? w.bias + first : nullptr, w.groups, n};
}

// The inputs of one product, prepared once: `count` vectors of groups * 32 floats, `stride` floats apart.
class Inputs {
  public:
    Inputs(const MatmulKernels& kernels, int32_t precision, int64_t groups, int64_t count, const float* x)
        : kernels(kernels), precision(precision), groups(groups), x(x), bytes(precision == F32 ? 0 : kernels.prepared_bytes(precision, groups)),
          storage(new uint8_t[count * bytes + 63]), fits(new bool[count]) {
        planes = storage.get() + (-reinterpret_cast<uintptr_t>(storage.get()) & 63);
    }
    void prepare(int64_t i) { fits[i] = precision != F32 && kernels.prepare(precision, x + i * groups * QK, groups, planes + i * bytes); }

    // y[n][0..w.rows) for the vectors `which[0..count)`.
    void multiply(const Rows& w, const int64_t* which, int64_t count, float* const* y) const {
        std::vector<const uint8_t*> in;
        std::vector<float*> out;
        for (int64_t n = 0; n < count; ++n)
            if (fits[which[n]]) {
                in.push_back(planes + which[n] * bytes);
                out.push_back(y[n]);
            } else {
                kernels.rows_f32(w, x + which[n] * groups * QK, y[n]);
            }
        if (!in.empty()) kernels.rows(precision, w, int64_t(in.size()), in.data(), out.data());
    }

  private:
    const MatmulKernels& kernels;
    const int32_t precision;
    const int64_t groups;
    const float* x;
    const int64_t bytes;
    std::unique_ptr<uint8_t[]> storage;
    std::unique_ptr<bool[]> fits;
    uint8_t* planes;
};

// Pairs (token, slot) in order of their expert; those of expert e are order[begin[e] .. begin[e + 1]).
struct Routing {
    std::vector<int64_t> begin, order, active;
    Routing(const MoeArguments& a) : begin(a.experts + 1), order(a.tokens * a.top_k) {
        const int64_t pairs = a.tokens * a.top_k;
        for (int64_t p = 0; p < pairs; ++p) ++begin[a.ids[p] + 1];
        for (int64_t e = 0; e < a.experts; ++e) {
            if (begin[e + 1]) active.push_back(e);
            begin[e + 1] += begin[e];
        }
        std::vector<int64_t> next(begin.begin(), begin.end() - 1);
        for (int64_t p = 0; p < pairs; ++p) order[next[a.ids[p]]++] = p;
    }
};

// out[pair] = experts' rows times that pair's input, for all pairs; `share` pairs use one input (the slots of a token).
void multiply_experts(const Routing& routing, const Inputs& inputs, int64_t share, const Rows& all, int64_t rows, int threads, float* out) {
    const int64_t per_expert = chunks(rows), stride = all.groups;
    parallel(threads, int64_t(routing.active.size()) * per_expert, [&](int64_t item) {
        const int64_t e = routing.active[item / per_expert], first = item % per_expert * CHUNK;
        const Rows expert = {all.blocks + e * rows * stride * HF_BLOCK, all.scales + e * rows * stride, all.bias + e * rows, stride, rows};
        std::vector<int64_t> which;
        std::vector<float*> y;
        for (int64_t i = routing.begin[e]; i < routing.begin[e + 1]; ++i) {
            which.push_back(routing.order[i] / share);
            y.push_back(out + routing.order[i] * rows + first);
        }
        inputs.multiply(part(expert, first), which.data(), int64_t(which.size()), y.data());
    });
}

}  // namespace

void run_moe(const MatmulKernels& kernels, const MoeArguments& a) {
    const int64_t pairs = a.tokens * a.top_k, H = a.hidden, I = a.inter;
    const Routing routing(a);
    std::unique_ptr<float[]> h(new float[pairs * 2 * I]), act(new float[pairs * I]), z(new float[pairs * H]);

    Inputs in(kernels, a.precision, H / QK, a.tokens, a.x);
    parallel(a.threads, a.tokens, [&](int64_t t) { in.prepare(t); });
    multiply_experts(routing, in, a.top_k, {a.gate_up_blocks, a.gate_up_scales, a.gate_up_bias, H / QK, 0}, 2 * I, a.threads, h.get());

    Inputs mid(kernels, a.precision, I / QK, pairs, act.get());
    parallel(a.threads, pairs, [&](int64_t p) {
        kernels.swiglu(h.get() + p * 2 * I, I, a.alpha, a.limit, act.get() + p * I);
        mid.prepare(p);
    });
    multiply_experts(routing, mid, 1, {a.down_blocks, a.down_scales, a.down_bias, I / QK, 0}, H, a.threads, z.get());

    parallel(a.threads, a.tokens, [&](int64_t t) {
        float* y = a.y + t * H;
        std::fill(y, y + H, 0.0f);
        for (int64_t p = t * a.top_k; p < (t + 1) * a.top_k; ++p)
            for (int64_t i = 0; i < H; ++i) y[i] += a.weights[p] * z[p * H + i];
    });
}

void run_matmul(const MatmulKernels& kernels, const Rows& w, int64_t tokens, const float* x, int32_t precision, int threads, float* y) {
    Inputs in(kernels, precision, w.groups, tokens, x);
    parallel(threads, tokens, [&](int64_t t) { in.prepare(t); });
    parallel(threads, chunks(w.rows), [&](int64_t item) {
        std::vector<int64_t> which;
        std::vector<float*> out;
        for (int64_t t = 0; t < tokens; ++t) {
            which.push_back(t);
            out.push_back(y + t * w.rows + item * CHUNK);
        }
        in.multiply(part(w, item * CHUNK), which.data(), tokens, out.data());
    });
}

void run_linear_bf16(const MatmulKernels& kernels, const uint16_t* w, const float* bias, int64_t rows, int64_t k, int64_t tokens, const float* x,
                     int threads, float* y) {
    parallel(threads, chunks(rows), [&](int64_t item) {
        const int64_t first = item * CHUNK;
        std::vector<const float*> in;
        std::vector<float*> out;
        for (int64_t t = 0; t < tokens; ++t) {
            in.push_back(x + t * k);
            out.push_back(y + t * rows + first);
        }
        kernels.rows_bf16(w + first * k, bias ? bias + first : nullptr, std::min(CHUNK, rows - first), k, tokens, in.data(), out.data());
    });
}
