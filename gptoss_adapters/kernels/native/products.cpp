#include "products.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <vector>

#include "mxfp4.h"
#include "pool.h"

namespace {

// Rows of a work item from BIG tokens on: an item is dear enough, and more rows read the packed vectors less often.
constexpr int64_t BIG = 48, BIG_CHUNK = 384;

Rows part(const Rows& w, int64_t first, int64_t count) {
    const int64_t n = std::min(count, w.rows - first);
    return {w.blocks + first * w.groups * HF_BLOCK, w.scales + first * w.groups, w.bias ? w.bias + first : nullptr, w.groups, n};
}

// Pairs (token, slot) in order of their expert.
struct Routing {
    std::vector<int64_t> begin, order;
    Routing(const int32_t* ids, int64_t pairs, int64_t experts) : begin(experts + 1), order(pairs) {
        for (int64_t p = 0; p < pairs; ++p) ++begin[ids[p] + 1];
        for (int64_t e = 0; e < experts; ++e) begin[e + 1] += begin[e];
        std::vector<int64_t> next(begin.begin(), begin.end() - 1);
        for (int64_t p = 0; p < pairs; ++p) order[next[ids[p]]++] = p;
    }
};

// One expert's share of a product: which inputs it multiplies, where the results go.
struct Work {
    Rows weights;
    std::vector<int64_t> in, odd_in;   // indices of inputs; odd ones take the float32 path
    std::vector<float*> out, odd_out;  // their result vectors
    const GemmKernels* gemm = nullptr; // when there are inputs enough
    uint8_t* panels = nullptr;         // where they are packed for it
};

// Uninitialised memory, 64-byte aligned, kept by the calling thread for its next call: fresh pages cost as much as a product.
class Buffer {
  public:
    explicit Buffer(int64_t bytes) : size((bytes + 63) & ~int64_t(63)) {
        for (auto it = kept.free.begin(); it != kept.free.end(); ++it)
            if (it->second >= size && it->second <= 2 * size) {
                data = it->first, size = it->second;
                kept.bytes -= size;
                kept.free.erase(it);
                return;
            }
        data = static_cast<uint8_t*>(aligned_alloc(64, size ? size : 64));
    }
    ~Buffer() {
        if (kept.bytes + size > LIMIT) {
            free(data);
        } else {
            kept.free.emplace_back(data, size);
            kept.bytes += size;
        }
    }
    Buffer(const Buffer&) = delete;
    float* floats() const { return reinterpret_cast<float*>(data); }
    uint8_t* data;

  private:
    struct Kept {
        std::vector<std::pair<uint8_t*, int64_t>> free;
        int64_t bytes = 0;
        ~Kept() {
            for (auto& [block, _] : free) ::free(block);
        }
    };
    static constexpr int64_t LIMIT = 256 << 20;
    static thread_local Kept kept;
    int64_t size;
};
thread_local Buffer::Kept Buffer::kept;

// Multiplies the inputs x [count][groups * 32] as `work` says.
class Product {
  public:
    Product(const ProductKernels& k, int32_t precision, int64_t groups, int64_t count, const float* x, int threads)
        : k(k), precision(precision), groups(groups), count(count), x(x), threads(threads), fits(new bool[count]) {
        parallel(threads, count, [&](int64_t i) { fits[i] = precision != F32 && k.matmul->fits(input(i), groups); });
    }
    void add(const Rows& weights, const int64_t* pairs, int64_t n, int64_t share, float* out) {
        Work w;
        w.weights = weights;
        for (int64_t i = 0; i < n; ++i) {
            const bool fit = fits[pairs[i] / share];
            (fit ? w.in : w.odd_in).push_back(pairs[i] / share);
            (fit ? w.out : w.odd_out).push_back(out + pairs[i] * weights.rows);
        }
        w.gemm = k.gemm_for(int64_t(w.in.size()));
        if (n) work.push_back(std::move(w));
    }
    void run() {
        const Buffer panels(pack());
        const Buffer planes(precision == F32 ? 0 : count * plane_bytes());
        fill(panels.data, planes.data);
        std::vector<std::pair<const Work*, int64_t>> items;
        int64_t rows = 0;
        for (const Work& w : work) rows += w.weights.rows;
        few = rows_of_item(rows, threads);
        for (const Work& w : work)
            for (int64_t first = 0; first < w.weights.rows; first += chunk(w)) items.emplace_back(&w, first);
        parallel(threads, int64_t(items.size()), [&](int64_t i) { multiply(*items[i].first, items[i].second, planes.data); });
    }

  private:
    int64_t chunk(const Work& w) const { return int64_t(w.in.size()) < BIG ? few : BIG_CHUNK; }
    const float* input(int64_t i) const { return x + i * groups * QK; }
    int64_t panel_bytes(const Work& w) const { return w.gemm->packed_bytes(precision, groups); }
    int64_t plane_bytes() const { return k.matmul->prepared_bytes(precision, groups); }
    int64_t panel_count(const Work& w) const { return w.gemm ? (int64_t(w.in.size()) + w.gemm->panel - 1) / w.gemm->panel : 0; }

    int64_t pack() const {
        int64_t bytes = 0;
        for (const Work& w : work)
            if (w.gemm) bytes += panel_count(w) * panel_bytes(w);
        return bytes;
    }

    // Packs panels for the experts with many inputs, and prepares the inputs that any other expert, or a last few rows, need.
    void fill(uint8_t* panels, uint8_t* planes) {
        std::vector<char> wanted(count);
        std::vector<std::pair<Work*, int64_t>> jobs;
        for (Work& w : work) {
            if (!w.gemm || w.weights.rows % w.gemm->row_tile)
                for (int64_t i : w.in) wanted[i] = 1;
            w.panels = panels;
            for (int64_t p = 0; p < panel_count(w); ++p) jobs.emplace_back(&w, p);
            if (w.gemm) panels += panel_count(w) * panel_bytes(w);
        }
        const int64_t packing = int64_t(jobs.size());
        parallel(threads, packing + count, [&](int64_t i) {
            if (i < packing) pack_panel(*jobs[i].first, jobs[i].second);
            else if (wanted[i - packing]) k.matmul->prepare(precision, input(i - packing), groups, planes + (i - packing) * plane_bytes());
        });
    }

    void pack_panel(const Work& w, int64_t panel) const {
        std::vector<const float*> in;
        for (int64_t i = panel * w.gemm->panel; i < std::min<int64_t>((panel + 1) * w.gemm->panel, w.in.size()); ++i) in.push_back(input(w.in[i]));
        w.gemm->pack(precision, in.data(), int64_t(in.size()), groups, w.panels + panel * panel_bytes(w));
    }

    void multiply(const Work& w, int64_t first, const uint8_t* planes) const {
        Rows rows = part(w.weights, first, chunk(w));
        for (size_t i = 0; i < w.odd_in.size(); ++i) k.matmul->rows_f32(rows, input(w.odd_in[i]), w.odd_out[i] + first);
        if (w.in.empty()) return;
        std::vector<float*> out;
        for (float* y : w.out) out.push_back(y + first);
        if (w.gemm) {
            Rows whole = rows;
            whole.rows -= rows.rows % w.gemm->row_tile;
            if (!w.gemm->rows(precision, whole, int64_t(out.size()), w.panels, out.data()))
                for (size_t i = 0; i < w.in.size(); ++i) k.matmul->rows_f32(whole, input(w.in[i]), out[i]);
            rows = part(w.weights, first + whole.rows, rows.rows - whole.rows);
            for (float*& y : out) y += whole.rows;
        }
        if (!rows.rows) return;
        std::vector<const uint8_t*> in;
        for (int64_t i : w.in) in.push_back(planes + i * plane_bytes());
        k.matmul->rows(precision, rows, int64_t(in.size()), in.data(), out.data());
    }

    const ProductKernels& k;
    const int32_t precision;
    const int64_t groups, count;
    const float* x;
    const int threads;
    std::unique_ptr<bool[]> fits;
    std::vector<Work> work;
    int64_t few = 0;  // rows of an item with few tokens
};

// out[pair] [rows] = the rows of that pair's expert times its input; `share` pairs (the slots of a token) use one input.
void multiply_experts(const ProductKernels& k, const MoeArguments& a, const Routing& routing, const float* x, int64_t share, const Rows& all, float* out) {
    const int64_t pairs = int64_t(routing.order.size());
    Product product(k, a.precision, all.groups, pairs / share, x, a.threads);
    for (int64_t e = 0; e < a.experts; ++e) {
        const int64_t at = e * all.rows;
        const Rows expert = {all.blocks + at * all.groups * HF_BLOCK, all.scales + at * all.groups, all.bias + at, all.groups, all.rows};
        product.add(expert, routing.order.data() + routing.begin[e], routing.begin[e + 1] - routing.begin[e], share, out);
    }
    product.run();
}

}  // namespace

void run_moe(const ProductKernels& k, const MoeArguments& a) {
    const int64_t pairs = a.tokens * a.top_k, H = a.hidden, I = a.inter;
    const Routing routing(a.ids, pairs, a.experts);
    const Buffer h_memory(pairs * 2 * I * 4), act_memory(pairs * I * 4), z_memory(pairs * H * 4);
    float *h = h_memory.floats(), *act = act_memory.floats(), *z = z_memory.floats();

    multiply_experts(k, a, routing, a.x, a.top_k, {a.gate_up_blocks, a.gate_up_scales, a.gate_up_bias, H / QK, 2 * I}, h);
    parallel(a.threads, pairs, [&](int64_t p) { k.matmul->swiglu(h + p * 2 * I, I, a.alpha, a.limit, act + p * I); });
    multiply_experts(k, a, routing, act, 1, {a.down_blocks, a.down_scales, a.down_bias, I / QK, H}, z);

    parallel(a.threads, a.tokens, [&](int64_t t) {
        float* y = a.y + t * H;
        std::fill(y, y + H, 0.0f);
        for (int64_t p = t * a.top_k; p < (t + 1) * a.top_k; ++p)
            for (int64_t i = 0; i < H; ++i) y[i] += a.weights[p] * z[p * H + i];
    });
}

void run_matmul(const ProductKernels& k, const Rows& w, int64_t tokens, const float* x, int32_t precision, int threads, float* y) {
    std::vector<int64_t> all(tokens);
    for (int64_t t = 0; t < tokens; ++t) all[t] = t;
    Product product(k, precision, w.groups, tokens, x, threads);
    product.add(w, all.data(), tokens, 1, y);
    product.run();
}

namespace {

bool all_fit(const ProductKernels& k, int64_t tokens, int64_t groups, const float* x) {
    for (int64_t t = 0; t < tokens; ++t)
        if (!k.matmul->fits(x + t * groups * QK, groups)) return false;
    return true;
}

}  // namespace

void run_linear_bf16(const ProductKernels& k, const uint16_t* w, const float* bias, int64_t rows, int64_t width, int64_t tokens, const float* x,
                     int threads, float* y) {
    const int64_t groups = width / QK;
    const GemmKernels* gemm = k.gemm_for(tokens);
    const bool packs = gemm && gemm->rows_bf16 && width % QK == 0 && all_fit(k, tokens, groups, x);
    const int64_t panel = packs ? gemm->panel : 1, panels = packs ? (tokens + panel - 1) / panel : 0;
    const int64_t bytes = packs ? gemm->packed_bytes(Q24, groups) : 0;
    const Buffer packed(panels * bytes);
    std::vector<const float*> in;
    for (int64_t t = 0; t < tokens; ++t) in.push_back(x + t * width);
    parallel(threads, panels, [&](int64_t p) {
        gemm->pack(Q24, in.data() + p * panel, std::min(panel, tokens - p * panel), groups, packed.data + p * bytes);
    });
    const int64_t step = packs && tokens >= BIG ? BIG_CHUNK : rows_of_item(rows, threads);
    parallel(threads, (rows + step - 1) / step, [&](int64_t item) {
        const int64_t first = item * step, n = std::min(step, rows - first), whole = packs ? n - n % gemm->row_tile : 0;
        std::vector<float*> out;
        for (int64_t t = 0; t < tokens; ++t) out.push_back(y + t * rows + first);
        if (whole) gemm->rows_bf16(w + first * width, bias ? bias + first : nullptr, whole, groups, tokens, packed.data, out.data());
        for (float*& o : out) o += whole;
        const int64_t rest = first + whole;
        if (n > whole) k.matmul->rows_bf16(w + rest * width, bias ? bias + rest : nullptr, n - whole, width, tokens, in.data(), out.data());
    });
}
