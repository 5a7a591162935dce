// A small thread pool: spins for the next job, then sleeps.
#pragma once
#include <cstdint>

// Calls work(context, item) for every item in 0..items-1 on up to `threads` threads (the caller is one of them) and returns
// when all are done. Items go to whichever thread is free, so an item must not depend on who runs it or in which order.
void pool_run(int threads, int64_t items, void (*work)(void* context, int64_t item), void* context);

template <typename F> void parallel(int threads, int64_t items, const F& work) {
    pool_run(threads, items, [](void* context, int64_t item) { (*static_cast<const F*>(context))(item); }, const_cast<F*>(&work));
}
