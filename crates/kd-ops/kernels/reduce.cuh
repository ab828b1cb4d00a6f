// Sums over a block.
#pragma once

// The sums of `a` and of `b` over the block's threads, whose number is a multiple of 32; all threads call it
// once, the first gets the sums. The order follows from the number of threads alone.
__device__ inline void block_sum(double &a, double &b) {
    __shared__ double of_warps[2][32];
    int thread = threadIdx.y * blockDim.x + threadIdx.x;
    int lane = thread % 32, warp = thread / 32, warps = blockDim.x * blockDim.y / 32;
    for (int with = 16; with > 0; with /= 2) {
        a += __shfl_xor_sync(0xffffffff, a, with);
        b += __shfl_xor_sync(0xffffffff, b, with);
    }
    if (lane == 0) {
        of_warps[0][warp] = a;
        of_warps[1][warp] = b;
    }
    __syncthreads();
    if (warp > 0) return;
    a = lane < warps ? of_warps[0][lane] : 0.0;
    b = lane < warps ? of_warps[1][lane] : 0.0;
    for (int with = 16; with > 0; with /= 2) {
        a += __shfl_xor_sync(0xffffffff, a, with);
        b += __shfl_xor_sync(0xffffffff, b, with);
    }
}

// The sums over `parts` pairs that lie one behind the other, by one warp; every lane gets them.
__device__ inline void warp_sum_of_parts(const double *partial, int parts, double &a, double &b) {
    a = b = 0.0;
    for (int part = threadIdx.x; part < parts; part += 32) {
        a += partial[2 * part];
        b += partial[2 * part + 1];
    }
    for (int with = 16; with > 0; with /= 2) {
        a += __shfl_xor_sync(0xffffffff, a, with);
        b += __shfl_xor_sync(0xffffffff, b, with);
    }
}
