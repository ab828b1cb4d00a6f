// Maps are stored as f32 or as bf16, a kernel for each (`..._f32`, `..._bf16`); the arithmetic is f32 in both.
// What belongs to a parameter (bias, statistics and their gradients) is f32 always.
#pragma once

#include <cuda_bf16.h>

__device__ inline float get(float x) { return x; }
__device__ inline float get(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline void set(float &to, float x) { to = x; }
// To the nearest, ties to even.
__device__ inline void set(__nv_bfloat16 &to, float x) { to = __float2bfloat16(x); }
