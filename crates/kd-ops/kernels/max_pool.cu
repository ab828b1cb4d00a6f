// Max-pooling of NCHW maps without padding; a block is one plane.

// `winners` are positions in the plane: of the first maximum in row-major order, where a NaN counts as the maximum.
extern "C" __global__ void max_pool_forward(const float *x, float *y, unsigned *winners, int height, int width,
                                            int out_height, int out_width, int kernel, int stride) {
    x += size_t(blockIdx.x) * height * width;
    y += size_t(blockIdx.x) * out_height * out_width;
    winners += size_t(blockIdx.x) * out_height * out_width;
    for (int i = threadIdx.x; i < out_height * out_width; i += blockDim.x) {
        int first = i / out_width * stride * width + i % out_width * stride;
        int best = first;
        float most = x[first];
        for (int row = 0; row < kernel; row++)
            for (int at = first + row * width; at < first + row * width + kernel; at++) {
                float value = x[at];
                if (value > most || (value != value && most == most)) {
                    best = at;
                    most = value;
                }
            }
        y[i] = most;
        winners[i] = best;
    }
}

// Each input asks the windows that it lies in, in row-major order: overlapping windows need no atomics.
extern "C" __global__ void max_pool_backward(const float *dy, const unsigned *winners, float *dx, int height,
                                             int width, int out_height, int out_width, int kernel, int stride) {
    dx += size_t(blockIdx.x) * height * width;
    dy += size_t(blockIdx.x) * out_height * out_width;
    winners += size_t(blockIdx.x) * out_height * out_width;
    for (int i = threadIdx.x; i < height * width; i += blockDim.x) {
        int row = i / width, column = i % width;
        int first_row = row < kernel ? 0 : (row - kernel) / stride + 1;
        int first_column = column < kernel ? 0 : (column - kernel) / stride + 1;
        int last_row = min(row / stride, out_height - 1);
        int last_column = min(column / stride, out_width - 1);
        float sum = 0.0f;
        for (int r = first_row; r <= last_row; r++)
            for (int c = first_column; c <= last_column; c++)
                if (winners[r * out_width + c] == unsigned(i)) sum += dy[r * out_width + c];
        dx[i] = sum;
    }
}
