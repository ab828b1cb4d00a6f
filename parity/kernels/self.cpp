// The emulation itself: a sum over a block by shuffles and shared memory, in every element and every rounding.
#include "check.h"

#include "emulate.h"

__global__ void block_sum(const float *x, float *out, int columns) {
    __shared__ float partial[32];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float sum = 0;
    for (int i = threadIdx.x; i < columns; i += blockDim.x) sum += x[blockIdx.x * columns + i];
    for (int with = 16; with > 0; with /= 2) sum += __shfl_xor_sync(0xffffffff, sum, with);
    if (lane == 0) partial[warp] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        float all = 0;
        for (int i = 0; i < int(blockDim.x / 32); i++) all += partial[i];
        out[blockIdx.x] = all;
    }
    __syncthreads();
}

int main() {
    for (int columns : {1, 31, 32, 33, 1000}) {
        const int rows = 3;
        std::vector<float> x = random_floats(rows * columns, 1.0f, columns);
        std::vector<float> out = run_twice<float>(rows, [&](float *out, bool backwards) {
            emulate::launch(rows, 96, backwards, block_sum, x.data(), out, columns);
        });
        std::vector<double> expected(rows);
        for (int i = 0; i < rows * columns; i++) expected[i / columns] += x[i];
        compare("block sum", out, expected, 1e-5, 1e-5);
    }
    // Every f16 and bf16 that is a number comes back from f32 as it was.
    for (unsigned bits = 0; bits < 65536; bits++) {
        __half h = from_bits<__half>(bits);
        __nv_bfloat16 b = from_bits<__nv_bfloat16>(bits);
        float half = __half2float(h), brain = __bfloat162float(b);
        expect("f16", half != half || __float2half(half).bits == bits);
        expect("bf16", brain != brain || __float2bfloat16(brain).bits == bits);
    }
    expect("bf16 rounds to even", __float2bfloat16(1.0f + 1.0f / 256).bits == 0x3f80 &&
                                      __float2bfloat16(1.0f + 3.0f / 256).bits == 0x3f82);
    return finish("emulation");
}
