// ReLU; the derivative at zero is 0, NaN stays NaN.

extern "C" __global__ void relu_forward(size_t count, const float *x, float *y) {
    size_t step = size_t(gridDim.x) * blockDim.x;
    for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
        float value = x[i];
        y[i] = value < 0.0f ? 0.0f : value;
    }
}

extern "C" __global__ void relu_backward(size_t count, const float *y, const float *dy, float *dx) {
    size_t step = size_t(gridDim.x) * blockDim.x;
    for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step)
        dx[i] = y[i] > 0.0f ? dy[i] : 0.0f;
}
