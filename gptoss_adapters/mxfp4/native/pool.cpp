#include "pool.h"

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include <pthread.h>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace {

constexpr int SPINS = 20000;  // some 0.3 ms: longer than the Python between two layers, shorter than anyone minds a busy core

inline void pause() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Denormals must count the same on every thread: torch.set_flush_denormal changes only the caller's.
class KeepDenormals {
#if defined(__x86_64__)
  public:
    KeepDenormals() : saved(_mm_getcsr()) { _mm_setcsr(0x1f80); }
    ~KeepDenormals() { _mm_setcsr(saved); }

  private:
    unsigned saved;
#else
  public:
    KeepDenormals() {}
#endif
};

// A worker that sees a new job enters it if it is still open; the caller closes it when no item is left and waits only for
// those inside. So one that the system wakes late, on a busy machine, delays nobody.
struct Pool {
    std::mutex one_caller;
    std::vector<std::thread> workers;

    void (*work)(void*, int64_t) = nullptr;  // of the open job, like the next two
    void* context = nullptr;
    int64_t items = 0;
    std::atomic<int64_t> next{0};
    std::atomic<int> open{0}, inside{0};  // open: how many workers may enter
    std::atomic<uint64_t> job{0};

    std::mutex sleep;
    std::condition_variable wake;
    int sleeping = 0;

    void drain() {
        for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < items;) work(context, i);
    }

    void await(uint64_t seen) {
        for (int spin = 0; spin < SPINS; ++spin) {
            if (job.load(std::memory_order_acquire) != seen) return;
            pause();
        }
        std::unique_lock<std::mutex> lock(sleep);
        ++sleeping;
        wake.wait(lock, [&] { return job.load() != seen; });
        --sleeping;
    }

    void worker(int id, uint64_t seen) {
        KeepDenormals keep;
        for (;;) {
            await(seen);
            seen = job.load();
            inside.fetch_add(1);
            if (id < open.load()) drain();
            inside.fetch_sub(1);
        }
    }

    void run(int threads, int64_t n, void (*f)(void*, int64_t), void* c) {
        std::lock_guard<std::mutex> lock(one_caller);
        while (int(workers.size()) < threads - 1) {
            workers.emplace_back([this, id = int(workers.size()), seen = job.load()] { worker(id, seen); });
            workers.back().detach();
        }
        work = f, context = c, items = n;
        next.store(0, std::memory_order_relaxed);
        open.store(threads - 1);
        {
            std::lock_guard<std::mutex> sleepers(sleep);
            job.fetch_add(1);
            if (sleeping) wake.notify_all();
        }
        KeepDenormals keep;
        drain();
        open.store(0);
        for (int spin = 0; inside.load(); ++spin)
            if (spin < SPINS) pause();
            else std::this_thread::yield();
    }
};

Pool* pool = new Pool;  // never destroyed: its threads may outlive static destructors

__attribute__((constructor)) void forget_threads_after_fork() {
    pthread_atfork(nullptr, nullptr, [] { pool = new Pool; });
}

}  // namespace

void pool_run(int threads, int64_t items, void (*work)(void*, int64_t), void* context) {
    if (threads > 1 && items > 1) return pool->run(threads, items, work, context);
    KeepDenormals keep;
    for (int64_t i = 0; i < items; ++i) work(context, i);
}
