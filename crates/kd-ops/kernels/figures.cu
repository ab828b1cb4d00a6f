// What a step measures, in few launches.
#include "reduce.cuh"

constexpr int PIECES = 32;

// Tensors of f32 and of f64 that become one: piece p has the numbers from first[p] to first[p + 1], and is f64 where bit p of
// `wide` is set.
struct Pieces {
    const void *from[PIECES];
    unsigned first[PIECES + 1];
    unsigned wide, count;
};

extern "C" __global__ void join_f64(const Pieces pieces, double *to) {
    unsigned at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= pieces.first[pieces.count]) return;
    int piece = 0;
    while (at >= pieces.first[piece + 1]) piece++;
    unsigned inside = at - pieces.first[piece];
    bool wide = pieces.wide >> piece & 1;
    to[at] = wide ? ((const double *)pieces.from[piece])[inside] : double(((const float *)pieces.from[piece])[inside]);
}

// How many entries of two lists are the same; one block.
extern "C" __global__ void count_equal(const unsigned *a, const unsigned *b, unsigned count, float *to) {
    double equal = 0.0, none = 0.0;
    for (unsigned i = threadIdx.x; i < count; i += blockDim.x) equal += a[i] == b[i] ? 1.0 : 0.0;
    block_sum(equal, none);
    if (threadIdx.x == 0) *to = float(equal);
}
