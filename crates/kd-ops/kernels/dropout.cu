// Dropout with the CPU's masks: word i of a ChaCha8 stream decides on element i. A thread computes one block of
// the stream and applies it to 16 elements.
#include "number.cuh"
#include "step.cuh"

__device__ inline unsigned rotate(unsigned x, int by) { return x << by | x >> (32 - by); }

__device__ inline void quarter_round(unsigned &a, unsigned &b, unsigned &c, unsigned &d) {
    a += b; d = rotate(d ^ a, 16);
    c += d; b = rotate(b ^ c, 12);
    a += b; d = rotate(d ^ a, 8);
    c += d; b = rotate(b ^ c, 7);
}

// Forward and backward alike: y = x * mask / (1 - p). Backward it goes on through the activation whose result was `by`, which
// is null where there is none. The key is seed and step, each low word first, and
// "kd-ops dropout 1" (DropoutKey in dropout.rs); `stream` is the layer.
template <class T>
__device__ inline void dropout(size_t count, const T *x, T *y, unsigned long long seed, unsigned long long step,
                               unsigned long long stream, unsigned dropped_below, float scale, const Step *now, const T *by,
                               int activation) {
    if (now) step = now->step;
    size_t block = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (block * 16 >= count) return;
    const unsigned start[16] = {
        0x61707865, 0x3320646e, 0x79622d32, 0x6b206574, // "expand 32-byte k"
        unsigned(seed), unsigned(seed >> 32), unsigned(step), unsigned(step >> 32),
        0x6f2d646b, 0x64207370, 0x6f706f72, 0x31207475, // "kd-ops dropout 1"
        unsigned(block), unsigned((unsigned long long)block >> 32), unsigned(stream), unsigned(stream >> 32),
    };
    unsigned s[16];
#pragma unroll
    for (int i = 0; i < 16; i++) s[i] = start[i];
#pragma unroll
    for (int round = 0; round < 8; round += 2) {
        quarter_round(s[0], s[4], s[8], s[12]);
        quarter_round(s[1], s[5], s[9], s[13]);
        quarter_round(s[2], s[6], s[10], s[14]);
        quarter_round(s[3], s[7], s[11], s[15]);
        quarter_round(s[0], s[5], s[10], s[15]);
        quarter_round(s[1], s[6], s[11], s[12]);
        quarter_round(s[2], s[7], s[8], s[13]);
        quarter_round(s[3], s[4], s[9], s[14]);
    }
#pragma unroll
    for (int i = 0; i < 16; i++) {
        size_t at = block * 16 + i;
        if (at >= count) break;
        bool dropped = s[i] + start[i] < dropped_below || (by && !passes(get(by[at]), activation));
        set(y[at], dropped ? 0.0f : get(x[at]) * scale);
    }
}

#define DROPOUT_KERNELS(T, NAME)                                                                                   \
    extern "C" __global__ void dropout_##NAME(size_t count, const T *x, T *y, unsigned long long seed,             \
                                              unsigned long long step, unsigned long long stream,                  \
                                              unsigned dropped_below, float scale, const Step *now, const T *by,   \
                                              int activation) {                                                    \
        dropout(count, x, y, seed, step, stream, dropped_below, scale, now, by, activation);                       \
    }
DROPOUT_KERNELS(float, f32)
DROPOUT_KERNELS(__nv_bfloat16, bf16)
