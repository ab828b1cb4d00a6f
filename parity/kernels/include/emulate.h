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
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(...)
// One block runs at a time, so a static is shared by just its threads. Like on a GPU it holds
// leftovers when a block begins: run a kernel twice to see that nothing hangs on them.
#define __shared__ static
#define __align__(bytes) alignas(bytes)

struct uint3 { unsigned x, y, z; };
struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(4) uchar4 { unsigned char x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

inline thread_local uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
constexpr int warpSize = 32;

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

using std::max;
using std::min;
template <class T> T __ldg(const T *p) { return *p; }
template <class T> T __ldcs(const T *p) { return *p; }
template <class T> void __stcs(T *p, T value) { *p = value; }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return (uint64_t(a) * b) >> 32; }
inline int __float_as_int(float x) { int i; std::memcpy(&i, &x, 4); return i; }
inline float __int_as_float(int i) { float x; std::memcpy(&x, &i, 4); return x; }
inline unsigned __float_as_uint(float x) { return unsigned(__float_as_int(x)); }
inline float __uint_as_float(unsigned i) { return __int_as_float(int(i)); }

// bf16 and f16 with CUDA's names; to the nearest, ties to even.
struct alignas(2) __nv_bfloat16 { uint16_t bits; };
struct alignas(2) __half { uint16_t bits; };
inline float __bfloat162float(__nv_bfloat16 x) { return __uint_as_float(unsigned(x.bits) << 16); }
inline __nv_bfloat16 __float2bfloat16(float x) {
    unsigned u = __float_as_uint(x);
    if (x != x) return {0x7fff};
    return {uint16_t((u + 0x7fff + (u >> 16 & 1)) >> 16)};
}
inline float __half2float(__half x) {
    _Float16 h;
    std::memcpy(&h, &x, 2);
    return float(h);
}
inline __half __float2half(float x) {
    _Float16 h = _Float16(x);
    __half out;
    std::memcpy(&out, &h, 2);
    return out;
}
