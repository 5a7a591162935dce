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
    explicit Pool(bool spawns) : spawns(spawns) {}

    const bool spawns;  // or threads of somebody else's come in as workers
    std::mutex one_caller;
    std::vector<std::thread> workers;

    void (*work)(void*, int64_t) = nullptr;  // of the open job, like the next two
    void* context = nullptr;
    int64_t items = 0;
    std::atomic<int64_t> next{0};
    std::atomic<int> open{0}, inside{0};  // open: how many workers may enter
    std::atomic<uint64_t> job{0};
    std::atomic<bool> ended{false};

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
            if (ended.load()) return;
        }
    }

    void announce() {
        std::lock_guard<std::mutex> sleepers(sleep);
        job.fetch_add(1);
        if (sleeping) wake.notify_all();
    }

    void end() {
        ended.store(true);
        announce();
    }

    void run(int threads, int64_t n, void (*f)(void*, int64_t), void* c) {
        std::lock_guard<std::mutex> lock(one_caller);
        while (spawns && int(workers.size()) < threads - 1) {
            workers.emplace_back([this, id = int(workers.size()), seen = job.load()] { worker(id, seen); });
            workers.back().detach();
        }
        work = f, context = c, items = n;
        next.store(0, std::memory_order_relaxed);
        open.store(threads - 1);
        announce();
        KeepDenormals keep;
        drain();
        open.store(0);
        for (int spin = 0; inside.load(); ++spin)
            if (spin < SPINS) pause();
            else std::this_thread::yield();
    }
};

Pool* pool = new Pool(true);  // never destroyed: its threads may outlive static destructors

__attribute__((constructor)) void forget_threads_after_fork() {
    pthread_atfork(nullptr, nullptr, [] { pool = new Pool(true); });
}

GompParallel openmp = nullptr;
thread_local Pool* held = nullptr;

// One OpenMP region for a whole call: the team's other threads serve as workers of a pool that ends with it.
struct Region {
    Region(void (*body)(void*), void* context) : body(body), context(context) {}

    void (*const body)(void*);
    void* const context;
    const pthread_t caller = pthread_self();
    Pool team{false};
    std::atomic<int> workers{0};

    static void run(void* self) {
        Region& region = *static_cast<Region*>(self);
        if (!pthread_equal(region.caller, pthread_self())) return region.team.worker(region.workers.fetch_add(1), 0);
        held = &region.team;
        region.body(region.context);
        held = nullptr;
        region.team.end();
    }
};

}  // namespace

void pool_use_openmp(GompParallel parallel) { openmp = parallel; }

void pool_hold(int threads, void (*body)(void*), void* context) {
    if (!openmp || held || threads < 2) return body(context);
    Region region(body, context);
    openmp(Region::run, &region, unsigned(threads), 0);
}

void pool_run(int threads, int64_t items, void (*work)(void*, int64_t), void* context) {
    if (threads > 1 && items > 1 && openmp && !held) return hold(threads, [&] { held->run(threads, items, work, context); });
    if (threads > 1 && items > 1) return (held ? held : pool)->run(threads, items, work, context);
    KeepDenormals keep;
    for (int64_t i = 0; i < items; ++i) work(context, i);
}
