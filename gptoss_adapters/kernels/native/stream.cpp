#include "stream.h"

#include "mxfp4.h"

#include <cerrno>
#include <cstring>
#include <mutex>
#include <unistd.h>

namespace {

// One write call puts down no more than this, and ends on a multiple of it. The page cache makes its folios as large as a write
// allows: larger ones cost less each byte, but need large pieces of free memory, and those a virtual machine may have given back to
// its host (touching them again costs more than the copy). On Linux 6.18 and ext4, 4 GB written again and again: 1.0 s with 128 KiB,
// 1.1 to 1.8 s with 64, 1.8 to 2.6 s with 32.
constexpr int64_t PIECE = 128 << 10;

// Buffered writes to one file exclude each other in the kernel, by spinning. Here a thread prepares its next chunks meanwhile; if it
// has no room for more, its turn is some 30 us away, and to sleep and be woken takes longer on a virtual machine.
std::mutex writing;
constexpr int SPINS = 2000;  // some 50 us

inline void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

void take_turn(std::unique_lock<std::mutex>& turn) {
    for (int spin = 0; spin < SPINS; ++spin) {
        if (turn.try_lock()) return;
        relax();
    }
    turn.lock();
}

int32_t read_all(int fd, uint8_t* to, int64_t n, int64_t at, int32_t* error) {
    while (n > 0) {
        const ssize_t got = pread(fd, to, size_t(n), at);
        if (got == 0) return STREAM_SOURCE_ENDS;
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) { *error = errno; return STREAM_READ_FAILED; }
        to += got, n -= got, at += got;
    }
    return STREAM_DONE;
}

int32_t write_all(int fd, const uint8_t* from, int64_t n, int64_t at, int32_t* error) {
    while (n > 0) {
        const int64_t to_edge = PIECE - (at & (PIECE - 1));
        const ssize_t put = pwrite(fd, from, size_t(n < to_edge ? n : to_edge), at);
        if (put < 0 && errno == EINTR) continue;
        if (put < 0) { *error = errno; return STREAM_WRITE_FAILED; }
        from += put, n -= put, at += put;
    }
    return STREAM_DONE;
}

// Whether any `T`, one every `step` bytes, has all bits of `exponent` set: NaN and Inf of a float, 255 of a scale byte.
template <typename T, T exponent, int64_t step>
bool has(const uint8_t* bytes, int64_t n) {
    int any = 0;
    for (int64_t i = 0; i + int64_t(sizeof(T)) <= n; i += step) {
        T x;
        memcpy(&x, bytes + i, sizeof x);
        any |= (x & exponent) == exponent;
    }
    return any;
}

struct Items {
    int64_t bytes;
    bool (*bad)(const uint8_t* bytes, int64_t n);
};

Items items_of(int32_t items) {
    switch (items) {
        case ITEMS_BF16: return {2, has<uint16_t, 0x7f80, 2>};
        case ITEMS_F16: return {2, has<uint16_t, 0x7c00, 2>};
        case ITEMS_F32: return {4, has<uint32_t, 0x7f800000, 4>};
        case ITEMS_MXFP4: return {GGML_BLOCK, has<uint8_t, 0xff, GGML_BLOCK>};
        case ITEMS_Q8_0: return {34, has<uint16_t, 0x7c00, 34>};
        default: return {1, [](const uint8_t*, int64_t) { return false; }};
    }
}

// One output's bytes on their way: they are appended, and leave as whole chunks. While another thread writes, up to two chunks wait
// here rather than the thread.
struct Outlet {
    int fd;
    int64_t at;  // where `buffer` goes
    uint8_t* buffer;
    int64_t held;

    uint8_t* room() { return buffer + held; }

    int32_t add(int64_t n, int64_t chunk, bool last, int32_t* error) {
        held += n;
        const int64_t end = last ? at + held : (at + held) & ~(chunk - 1);
        if (end <= at) return STREAM_DONE;
        std::unique_lock<std::mutex> alone(writing, std::defer_lock);
        if (last || held >= 2 * chunk) take_turn(alone);
        else if (!alone.try_lock()) return STREAM_DONE;
        const int64_t ready = end - at;
        if (const int32_t r = write_all(fd, buffer, ready, at, error)) return r;
        alone.unlock();
        memmove(buffer, buffer + ready, size_t(held - ready));
        at = end, held -= ready;
        return STREAM_DONE;
    }
};

int32_t copied(StreamArguments& a) {
    Outlet out{a.out_fd[0], a.out_at[0], a.scratch, 0};
    for (int64_t done = 0; done < a.rows;) {
        const int64_t to_edge = a.chunk - ((a.out_at[0] + done) & (a.chunk - 1));
        const int64_t n = to_edge < a.rows - done ? to_edge : a.rows - done;
        if (const int32_t r = read_all(a.in_fd[0], out.room(), n, a.in_at[0] + done, &a.error)) return r;
        done += n;
        if (const int32_t r = out.add(n, a.chunk, done == a.rows, &a.error)) return r;
    }
    return STREAM_DONE;
}

int32_t compared(StreamArguments& a) {
    uint8_t *data = a.scratch, *written = a.scratch + a.chunk;
    const Items items = items_of(a.items);
    const int64_t step = a.chunk - a.chunk % items.bytes;
    for (int64_t done = 0; done < a.rows;) {
        const int64_t n = step < a.rows - done ? step : a.rows - done;
        if (const int32_t r = read_all(a.in_fd[0], data, n, a.in_at[0] + done, &a.error)) return r;
        if (read_all(a.out_fd[0], written, n, a.out_at[0] + done, &a.error)) return STREAM_WRITE_FAILED;
        if (items.bad(data, n)) return STREAM_BAD_VALUE;
        if (memcmp(data, written, size_t(n)) != 0) {
            int64_t i = 0;
            while (data[i] == written[i]) ++i;
            a.at = done + i;
            return STREAM_DIFFERS;
        }
        done += n;
    }
    return STREAM_DONE;
}

int32_t repacked(const CodecKernels& codec, StreamArguments& a) {
    const int64_t row_in = a.groups * HF_BLOCK, row_out = a.groups * GGML_BLOCK;
    int64_t step = a.chunk / row_out;  // rows of each output per round
    if (step < 1) step = 1;
    // scratch: blocks [step * outputs rows], scales, then per output what a round makes plus what is held back
    uint8_t* blocks = a.scratch;
    uint8_t* scales = blocks + step * a.outputs * row_in;
    uint8_t* buffers = scales + step * a.outputs * a.groups;
    Outlet outlet[2];
    for (int k = 0; k < a.outputs; ++k) outlet[k] = {a.out_fd[k], a.out_at[k], buffers + k * (step * row_out + 2 * a.chunk), 0};
    for (int64_t row = 0; row < a.rows; row += step) {
        const int64_t n = step < a.rows - row ? step : a.rows - row, taken = n * a.outputs, first = row * a.outputs;
        if (const int32_t r = read_all(a.in_fd[0], blocks, taken * row_in, a.in_at[0] + first * row_in, &a.error)) return r;
        if (const int32_t r = read_all(a.in_fd[1], scales, taken * a.groups, a.in_at[1] + first * a.groups, &a.error)) return r;
        if (memchr(scales, 255, size_t(taken * a.groups))) return STREAM_BAD_VALUE;
        for (int k = 0; k < a.outputs; ++k) {
            const uint8_t *b = blocks + k * row_in, *s = scales + k * a.groups;
            Outlet& out = outlet[k];
            if (a.compare) {
                if (read_all(out.fd, out.buffer, n * row_out, out.at + row * row_out, &a.error)) return STREAM_WRITE_FAILED;
                const int64_t block = codec.compare_ggml(b, s, n, a.groups, a.outputs, out.buffer);
                if (block < 0) continue;
                a.output = k;
                a.at = row * row_out + block * GGML_BLOCK;
                return STREAM_DIFFERS;
            }
            codec.hf_to_ggml(b, s, n, a.groups, a.outputs, out.room());
            if (const int32_t r = out.add(n * row_out, a.chunk, row + n == a.rows, &a.error)) return r;
        }
    }
    return STREAM_DONE;
}

}  // namespace

int32_t run_stream(const CodecKernels& codec, StreamArguments& a) {
    if (a.groups) return repacked(codec, a);
    return a.compare ? compared(a) : copied(a);
}
