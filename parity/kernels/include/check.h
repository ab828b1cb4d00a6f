// What the check programs share: seeded inputs, two runs that must agree bit for bit, comparison with f64.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

inline int failures = 0, checks = 0;

inline void expect(const char *what, bool holds) {
    checks++;
    if (!holds && failures++ < 20) std::printf("FAILED %s\n", what);
}

inline uint32_t next_random(uint64_t &state) {
    state += 0x9e3779b97f4a7c15u; // splitmix64
    uint64_t z = state;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return uint32_t((z ^ (z >> 31)) >> 32);
}

// In [-scale, scale).
inline std::vector<float> random_floats(size_t count, float scale, uint64_t seed) {
    std::vector<float> values(count);
    for (float &value : values) value = scale * (float(next_random(seed)) / 2147483648.0f - 1.0f);
    return values;
}

// Runs `launch(out, backwards)` with the blocks in both orders; both must give the same bits. What is not
// written stays NaN.
template <class T, class Launch> std::vector<T> run_twice(size_t count, Launch launch) {
    std::vector<T> first(count), second(count);
    std::memset((void *)first.data(), 0xff, count * sizeof(T));
    std::memset((void *)second.data(), 0xff, count * sizeof(T));
    launch(first.data(), false);
    launch(second.data(), true);
    expect("the same bits in both orders of blocks", std::memcmp(first.data(), second.data(), count * sizeof(T)) == 0);
    return first;
}

template <class A, class B>
void compare(const char *what, const std::vector<A> &found, const std::vector<B> &expected, double absolute,
             double relative) {
    for (size_t i = 0; i < expected.size(); i++) {
        double a = found[i], b = expected[i];
        bool holds = std::isnan(b) ? std::isnan(a) : std::abs(a - b) <= absolute + relative * std::abs(b);
        if (!holds && failures < 20) std::printf("%s [%zu]: %.9g, expected %.9g\n", what, i, a, b);
        expect(what, holds);
    }
}

inline int finish(const char *what) {
    std::printf("%s: %d of %d comparisons failed\n", what, failures, checks);
    return failures != 0;
}
