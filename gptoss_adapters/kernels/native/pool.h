// A small thread pool: spins for the next job, then sleeps.
#pragma once
#include <cstdint>

// Calls work(context, item) for every item in 0..items-1 on up to `threads` threads (the caller is one of them) and returns
// when all are done. Items go to whichever thread is free, so an item must not depend on who runs it or in which order.
void pool_run(int threads, int64_t items, void (*work)(void* context, int64_t item), void* context);

template <typename F> void parallel(int threads, int64_t items, const F& work) {
    pool_run(threads, items, [](void* context, int64_t item) { (*static_cast<const F*>(context))(item); }, const_cast<F*>(&work));
}

// From now on the threads are those of an OpenMP runtime, by its GOMP_parallel: for a process whose other work runs there, since two
// pools that wait by spinning take each other's cores. Null: the own ones again.
using GompParallel = void (*)(void (*function)(void*), void* data, unsigned threads, unsigned flags);
void pool_use_openmp(GompParallel parallel);

// Calls body(), whose calls of `parallel` then need one OpenMP region together: each region waits for its last thread.
void pool_hold(int threads, void (*body)(void* context), void* context);

template <typename F> void hold(int threads, const F& body) {
    pool_hold(threads, [](void* context) { (*static_cast<const F*>(context))(); }, const_cast<F*>(&body));
}

// How many of `rows` rows of weights make an item: enough items to balance the threads, and as many rows as that allows, since the first
// ones of an item are not prefetched. A multiple of every tile.
inline int64_t rows_of_item(int64_t rows, int threads) {
    constexpr int64_t LEAST = 64, MOST = 512, ITEMS_OF_A_THREAD = 8;
    const int64_t share = rows / (ITEMS_OF_A_THREAD * (threads > 1 ? threads : 1)) / LEAST * LEAST;
    return share < LEAST ? LEAST : share > MOST ? MOST : share;
}
