// What surrounds a linear layer's products; maps are [rows, columns], row-major.

// In place: y = max(y + bias, 0), or without the maximum. A block is a row.
extern "C" __global__ void linear_bias_forward(float *y, const float *bias, int columns, int relu) {
    y += size_t(blockIdx.x) * columns;
    for (int i = threadIdx.x; i < columns; i += blockDim.x) {
        float value = y[i] + bias[i];
        y[i] = relu && value < 0.0f ? 0.0f : value;
    }
}

// The sum of each column, in f64: a block takes 32 columns, its 8 rows of threads every eighth row.
extern "C" __global__ void linear_bias_backward(const float *dz, int rows, int columns, float *dbias) {
    __shared__ double partial[8][32];
    int column = blockIdx.x * 32 + threadIdx.x;
    double sum = 0.0;
    if (column < columns)
        for (int row = threadIdx.y; row < rows; row += 8) sum += dz[size_t(row) * columns + column];
    partial[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y > 0 || column >= columns) return;
    for (int part = 1; part < 8; part++) sum += partial[part][threadIdx.x];
    dbias[column] = float(sum);
}
