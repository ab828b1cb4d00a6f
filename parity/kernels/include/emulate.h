// CUDA device code as plain C++ on the host, so that a kernel's indices, barriers and reductions can be
// checked where there is no GPU: a .cu file is included by a program that is compiled by g++ with this header.
//
// Each thread of a block is a real thread, so that AddressSanitizer, UndefinedBehaviorSanitizer and
// ThreadSanitizer see what the kernel does. Blocks run one after the other. What it can't show: speed, what the
// GPU's own rounding of exp and log differs in, and anything that hangs on warps running in lockstep.
//
// Not there on purpose: atomics (no kernel here uses them) and `extern __shared__` (shared arrays have a
// fixed size).
#pragma once

#include <algorithm>
#include <atomic>
#include <barrier>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "cuda_types.h"

// One block runs at a time, so a static is shared by just its threads. Like on a GPU it holds
// leftovers when a block begins: run a kernel twice to see that nothing hangs on them.
#define __shared__ static

inline thread_local uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

namespace emulate {

[[noreturn]] inline void fail(const char *what, int line) {
    std::fprintf(stderr, "emulation: %s (line %d, block %u, thread %u)\n", what, line, blockIdx.x, threadIdx.x);
    std::abort();
}

// Threads that meet: a block, or a warp. Those that have returned are not waited for.
struct Group {
    struct Forget {
        std::atomic<int> *line;
        void operator()() noexcept { line->store(0); }
    };
    explicit Group(int threads) : threads(threads), barrier(threads, Forget{&line}) {}
    int threads;
    // The source line that the threads meet at; they must all be at the same one.
    std::atomic<int> line{0};
    std::barrier<Forget> barrier;
    // What lanes give each other, in turns: who writes the one has seen all others read the other.
    uint64_t values[2][32];
    std::atomic<bool> written[2][32]{};

    void meet(int at) {
        int none = 0;
        if (!line.compare_exchange_strong(none, at) && none != at) fail("threads wait at different barriers", at);
        barrier.arrive_and_wait();
    }
};

struct Block {
    Group all;
    std::vector<std::unique_ptr<Group>> warps;
    explicit Block(int threads) : all(threads) {
        for (int first = 0; first < threads; first += warpSize)
            warps.push_back(std::make_unique<Group>(std::min(warpSize, threads - first)));
    }
};

inline Block *block;
inline thread_local int thread, turn;
inline Group &warp() { return *block->warps[thread / warpSize]; }

// `value` of lane `from(lane)`; lanes outside the warp are an error, as is a mask that leaves lanes out.
template <class T> T shuffle(unsigned mask, T value, int from, int line) {
    static_assert(sizeof(T) <= 8);
    Group &w = warp();
    if (mask != 0xffffffffu) fail("a shuffle's mask must be all lanes", line);
    if (from < 0 || from >= w.threads) fail("a shuffle reads a lane that does not exist", line);
    int lane = thread % warpSize, now = turn;
    turn = 1 - turn;
    std::memcpy(&w.values[now][lane], &value, sizeof(T));
    w.written[now][lane] = true;
    w.meet(line);
    w.written[1 - now][lane] = false;
    if (!w.written[now][from]) fail("a shuffle reads a lane that has returned", line);
    T result;
    std::memcpy(&result, &w.values[now][from], sizeof(T));
    return result;
}

// Runs `kernel(args...)`; blocks in the order of their indices, or backwards.
template <class Kernel, class... Args>
void launch(dim3 grid, dim3 threads, bool backwards, Kernel kernel, Args... args) {
    gridDim = grid;
    blockDim = threads;
    int blocks = grid.x * grid.y * grid.z, size = threads.x * threads.y * threads.z;
    if (size > 1024 || blocks == 0 || grid.y > 65535 || grid.z > 65535) fail("a launch that no GPU takes", 0);
    std::barrier together(size);
    auto run = [&](int me) {
        for (int i = 0; i < blocks; i++) {
            if (me == 0) block = new Block(size);
            together.arrive_and_wait();
            unsigned b = backwards ? blocks - 1 - i : i, t = thread = me;
            blockIdx = {b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y};
            threadIdx = {t % threads.x, t / threads.x % threads.y, t / threads.x / threads.y};
            turn = 0;
            kernel(args...);
            warp().barrier.arrive_and_drop();
            block->all.barrier.arrive_and_drop();
            together.arrive_and_wait();
            if (me == 0) delete block;
        }
    };
    std::vector<std::thread> all;
    for (int me = 0; me < size; me++) all.emplace_back(run, me);
    for (auto &thread : all) thread.join();
}

} // namespace emulate

#define __syncthreads() emulate::block->all.meet(__LINE__)
#define __syncwarp(...) emulate::warp().meet(__LINE__)
#define __shfl_sync(mask, value, from) emulate::shuffle(mask, value, from, __LINE__)
#define __shfl_xor_sync(mask, value, with) emulate::shuffle(mask, value, (emulate::thread % 32) ^ (with), __LINE__)
// A lane past the end gives its own value, as on a GPU.
#define __shfl_down_sync(mask, value, by) \
    emulate::shuffle(mask, value, emulate::thread % 32 + (by) < 32 ? emulate::thread % 32 + (by) : emulate::thread % 32, __LINE__)
