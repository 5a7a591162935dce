// Where the fields of the structs lie that Python fills: a test compares them with kernels/structs.py.
#include <cstddef>

#include "isas.h"
#include "stream.h"

namespace {

struct Layout {
    const char *structure, *field;
    int64_t offset, bytes;
};

#define FIELD(S, f) {#S, #f, offsetof(S, f), sizeof(S::f)}
const Layout LAYOUTS[] = {
    {"EncodeRule", "", 0, sizeof(EncodeRule)}, FIELD(EncodeRule, round_up), FIELD(EncodeRule, ties_to_even),
    FIELD(EncodeRule, keep_minus_zero), FIELD(EncodeRule, search),
    {"EncodeStats", "", 0, sizeof(EncodeStats)}, FIELD(EncodeStats, error), FIELD(EncodeStats, power),
    FIELD(EncodeStats, changed), FIELD(EncodeStats, zero_blocks), FIELD(EncodeStats, minus_zeros), FIELD(EncodeStats, max_codes),
    {"MoeArguments", "", 0, sizeof(MoeArguments)}, FIELD(MoeArguments, gate_up_blocks), FIELD(MoeArguments, gate_up_scales),
    FIELD(MoeArguments, gate_up_bias), FIELD(MoeArguments, down_blocks), FIELD(MoeArguments, down_scales),
    FIELD(MoeArguments, down_bias), FIELD(MoeArguments, hidden), FIELD(MoeArguments, inter), FIELD(MoeArguments, experts),
    FIELD(MoeArguments, tokens), FIELD(MoeArguments, top_k), FIELD(MoeArguments, x), FIELD(MoeArguments, ids),
    FIELD(MoeArguments, weights), FIELD(MoeArguments, y), FIELD(MoeArguments, alpha), FIELD(MoeArguments, limit),
    FIELD(MoeArguments, precision), FIELD(MoeArguments, threads),
    {"AttendArguments", "", 0, sizeof(AttendArguments)}, FIELD(AttendArguments, q), FIELD(AttendArguments, k),
    FIELD(AttendArguments, v), FIELD(AttendArguments, sinks), FIELD(AttendArguments, q_positions),
    FIELD(AttendArguments, k_positions), FIELD(AttendArguments, out), FIELD(AttendArguments, kv_stride),
    FIELD(AttendArguments, k_positions_stride), FIELD(AttendArguments, batch), FIELD(AttendArguments, queries),
    FIELD(AttendArguments, keys), FIELD(AttendArguments, heads), FIELD(AttendArguments, kv_heads),
    FIELD(AttendArguments, head_dim), FIELD(AttendArguments, window), FIELD(AttendArguments, threads),
    {"PackedMatrix", "", 0, sizeof(PackedMatrix)}, FIELD(PackedMatrix, data), FIELD(PackedMatrix, first),
    FIELD(PackedMatrix, column), FIELD(PackedMatrix, value), FIELD(PackedMatrix, rows), FIELD(PackedMatrix, width),
    FIELD(PackedMatrix, groups), FIELD(PackedMatrix, base), FIELD(PackedMatrix, threads),
    {"StreamArguments", "", 0, sizeof(StreamArguments)}, FIELD(StreamArguments, in_fd), FIELD(StreamArguments, in_at),
    FIELD(StreamArguments, rows), FIELD(StreamArguments, groups), FIELD(StreamArguments, outputs),
    FIELD(StreamArguments, compare), FIELD(StreamArguments, out_fd), FIELD(StreamArguments, out_at),
    FIELD(StreamArguments, items), FIELD(StreamArguments, error), FIELD(StreamArguments, output), FIELD(StreamArguments, padding),
    FIELD(StreamArguments, at), FIELD(StreamArguments, scratch), FIELD(StreamArguments, chunk),
    {nullptr, nullptr, 0, 0},
};

}  // namespace

// Ends with a row of nulls; the field "" stands for the whole.
extern "C" __attribute__((visibility("default"))) const void* gptoss_layouts() { return LAYOUTS; }
