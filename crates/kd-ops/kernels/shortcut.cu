// Every second pixel, between channels of zeros; a block is one plane of what is written.

extern "C" __global__ void subsample_pad_forward(const float *x, float *y, int channels, int height, int width,
                                                 int out_channels, int out_height, int out_width) {
    int image = blockIdx.x / out_channels;
    int channel = int(blockIdx.x % out_channels) - (out_channels - channels) / 2;
    bool zeros = channel < 0 || channel >= channels;
    const float *from = zeros ? x : x + (size_t(image) * channels + channel) * height * width;
    y += size_t(blockIdx.x) * out_height * out_width;
    for (int i = threadIdx.x; i < out_height * out_width; i += blockDim.x)
        y[i] = zeros ? 0.0f : from[i / out_width * 2 * width + i % out_width * 2];
}

extern "C" __global__ void subsample_pad_backward(const float *dy, float *dx, int channels, int height, int width,
                                                  int out_channels, int out_height, int out_width) {
    int image = blockIdx.x / channels;
    int channel = int(blockIdx.x % channels) + (out_channels - channels) / 2;
    dy += (size_t(image) * out_channels + channel) * out_height * out_width;
    dx += size_t(blockIdx.x) * height * width;
    for (int i = threadIdx.x; i < height * width; i += blockDim.x) {
        int row = i / width, column = i % width;
        dx[i] = row % 2 == 0 && column % 2 == 0 ? dy[row / 2 * out_width + column / 2] : 0.0f;
    }
}
