// A block's threads as fibers, so that kernels run on the host quickly enough for a whole training step. A thread that
// waits at a barrier or in a shuffle gives way to the next; blocks are shared out among the host's cores.
//
// parity/kernels does the same with real threads, for the sanitizers.
#pragma once

#include <atomic>
#include <cassert>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "cuda/std/limits"
#include "cuda_types.h"

// A block runs on one core from its beginning to its end.
#define __shared__ static thread_local

extern thread_local uint3 threadIdx, blockIdx;
extern thread_local dim3 blockDim, gridDim;

namespace gpu {

// Where a thread waits for the others, which must come to the same line.
void meet_block(int line);
void meet_warp(int line);
// A lane's number, and the 64 bits that lane `from` gives.
int lane();
uint64_t exchange(uint64_t value, int from, int line);
[[noreturn]] void fail(const char *what, int line);

template <class T> T shuffle(unsigned mask, T value, int from, int width, int line) {
    static_assert(sizeof(T) <= 8);
    if (mask != 0xffffffffu) fail("a shuffle's mask must be all lanes", line);
    if (width != 32) fail("a shuffle's width must be a warp", line);
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof(T));
    bits = exchange(bits, from, line);
    std::memcpy((void *)&value, &bits, sizeof(T));
    return value;
}
inline int down(int by) { return lane() + by < 32 ? lane() + by : lane(); }

// Runs `body` in every thread of every block.
void run(dim3 grid, dim3 block, const std::function<void()> &body);
// Calls `body(i)` for each i below `count` on all cores.
void for_each(size_t count, const std::function<void(size_t)> &body);

// What a launch needs to know of a kernel.
struct Kernel {
    std::string file, name;
    struct Parameter {
        size_t bytes;
        bool is_pointer;
    };
    std::vector<Parameter> parameters;
    // The kernel with its arguments, copied from where a launch says that they lie.
    std::function<void()> (*bind)(void **arguments, const void *function);
    const void *function;
    bool launched = false;
};
std::vector<Kernel> &kernels();

template <class... P> struct Signature {
    static std::function<void()> bind(void **arguments, const void *function) {
        return bind_at(arguments, function, std::index_sequence_for<P...>());
    }
    template <size_t... I>
    static std::function<void()> bind_at(void **arguments, const void *function, std::index_sequence<I...>) {
        std::tuple<P...> values{at<P>(arguments[I])...};
        auto kernel = (void (*)(P...))function;
        return [=] { std::apply(kernel, values); };
    }
    template <class T> static T at(void *from) {
        alignas(T) unsigned char bytes[sizeof(T)];
        std::memcpy(bytes, from, sizeof(T));
        return *(T *)bytes;
    }
};

template <class... P> bool add(const char *file, const char *name, void (*function)(P...)) {
    Kernel kernel{file, name, {{sizeof(P), std::is_pointer_v<P>}...}, Signature<std::remove_const_t<P>...>::bind, (const void *)function, false};
    kernels().push_back(kernel);
    return true;
}

} // namespace gpu

#define __syncthreads() gpu::meet_block(__LINE__)
#define __syncwarp(...) gpu::meet_warp(__LINE__)
#define __shfl_sync(mask, value, from) gpu::shuffle(mask, value, from, 32, __LINE__)
#define __shfl_xor_sync(mask, value, with, ...) \
    gpu::shuffle(mask, value, gpu::lane() ^ (with), (32 __VA_OPT__(, __VA_ARGS__)), __LINE__)
#define __shfl_down_sync(mask, value, by) gpu::shuffle(mask, value, gpu::down(by), 32, __LINE__)

template <class T> T atomicAdd(T *at, std::type_identity_t<T> value) {
    T old = *at, sum;
    do sum = old + value;
    while (!__atomic_compare_exchange(at, &old, &sum, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return old;
}
template <class T> T atomicMax(T *at, std::type_identity_t<T> value) {
    T old = *at, most;
    do most = old < value ? value : old;
    while (!__atomic_compare_exchange(at, &old, &most, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return old;
}
template <class T> T atomicMin(T *at, std::type_identity_t<T> value) {
    T old = *at, least;
    do least = value < old ? value : old;
    while (!__atomic_compare_exchange(at, &old, &least, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return old;
}
template <class T> T atomicCAS(T *at, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
    __atomic_compare_exchange(at, &expected, &value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    return expected;
}

// What candle's kernels ask for beyond ours.
using std::isnan;
using std::signbit;
// No more than its size: nothing here computes with 8 bits.
struct __nv_fp8_e4m3 {
    uint8_t __x;
    __nv_fp8_e4m3() = default;
    __nv_fp8_e4m3(float) { gpu::fail("8-bit numbers are not emulated", 0); }
    operator float() const { gpu::fail("8-bit numbers are not emulated", 0); }
};
enum { __NV_E4M3 };
inline __half __nv_cvt_fp8_to_halfraw(uint8_t, int) { gpu::fail("8-bit numbers are not emulated", 0); }
struct alignas(4) __nv_bfloat162 { __nv_bfloat16 x, y; };
struct alignas(4) __half2 { __half x, y; };
inline __nv_bfloat162 __hadd2(__nv_bfloat162 a, __nv_bfloat162 b) { return {float(a.x) + float(b.x), float(a.y) + float(b.y)}; }
inline __nv_bfloat162 __hsub2(__nv_bfloat162 a, __nv_bfloat162 b) { return {float(a.x) - float(b.x), float(a.y) - float(b.y)}; }
inline __nv_bfloat162 __hmul2(__nv_bfloat162 a, __nv_bfloat162 b) { return {float(a.x) * float(b.x), float(a.y) * float(b.y)}; }
inline __nv_bfloat162 __h2div(__nv_bfloat162 a, __nv_bfloat162 b) { return {float(a.x) / float(b.x), float(a.y) / float(b.y)}; }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return x; }
inline __half __float2half_rn(float x) { return x; }
inline float2 __bfloat1622float2(__nv_bfloat162 a) { return {a.x, a.y}; }
inline __nv_bfloat162 __float22bfloat162_rn(float2 a) { return {a.x, a.y}; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {x, y}; }
template <class T> concept Sixteen = std::is_same_v<T, __nv_bfloat16> || std::is_same_v<T, __half>;
template <Sixteen T> T operator+(T a, T b) { return float(a) + float(b); }
template <Sixteen T> T operator-(T a, T b) { return float(a) - float(b); }
template <Sixteen T> T operator*(T a, T b) { return float(a) * float(b); }
template <Sixteen T> T operator/(T a, T b) { return float(a) / float(b); }
template <Sixteen T> T operator-(T a) { return -float(a); }
template <Sixteen T> T &operator+=(T &a, T b) { return a = a + b; }
template <Sixteen T> T &operator*=(T &a, T b) { return a = a * b; }
template <Sixteen T> T &operator*=(T &a, float b) { return a = float(a) * b; }
template <Sixteen T> bool operator<(T a, T b) { return float(a) < float(b); }
template <Sixteen T> bool operator>(T a, T b) { return float(a) > float(b); }
template <Sixteen T> bool operator<=(T a, T b) { return float(a) <= float(b); }
template <Sixteen T> bool operator>=(T a, T b) { return float(a) >= float(b); }
template <Sixteen T> bool operator==(T a, T b) { return float(a) == float(b); }
template <Sixteen T> bool operator!=(T a, T b) { return float(a) != float(b); }
template <Sixteen T> bool __hisnan(T a) { return float(a) != float(a); }
template <Sixteen T> T hsqrt(T a) { return sqrtf(a); }
template <Sixteen T> T hcos(T a) { return cosf(a); }
template <Sixteen T> T hsin(T a) { return sinf(a); }
template <Sixteen T> T hlog(T a) { return logf(a); }
template <Sixteen T> T hexp(T a) { return expf(a); }
template <Sixteen T> T __habs(T a) { return fabsf(a); }
template <Sixteen T> T __hmax_nan(T a, T b) { return float(a) != float(a) ? a : float(b) != float(b) ? b : a < b ? b : a; }
template <Sixteen T> T __hmin_nan(T a, T b) { return float(a) != float(a) ? a : float(b) != float(b) ? b : b < a ? b : a; }
inline unsigned short __half_as_ushort(__half a) { return a.bits; }
inline __half __ushort_as_half(unsigned short bits) { return from_bits<__half>(bits); }
inline float normcdff(float x) { return 0.5f * erfcf(-x * 0.70710678f); }
inline double normcdf(double x) { return 0.5 * erfc(-x * 0.70710678118654752); }
inline long long __double_as_longlong(double x) { long long i; std::memcpy(&i, &x, 8); return i; }
inline double __longlong_as_double(long long i) { double x; std::memcpy(&x, &i, 8); return x; }
