// What surrounds a convolution's products, and whole convolutions by columns and plain products, against f64.
#include "check.h"

#include "../../crates/kd-ops/kernels/conv.cu"

// A map in NCHW and in CNHW, as the strides of image and channel.
struct Order { size_t image, channel; };
static std::vector<Order> orders(int images, int channels, size_t pixels) {
    return {{channels * pixels, pixels}, {pixels, images * pixels}};
}

// Two planes a block where their number is even.
struct Planes {
    int count;
    int rows() const { return count % 2 ? 1 : 2; }
    dim3 blocks() const { return dim3(count / rows()); }
    dim3 threads() const { return dim3(5, rows()); }
};

static void check_bias(int images, int channels, int pixels) {
    const size_t count = size_t(images) * channels * pixels;
    const Planes planes{images * channels};
    std::vector<float> z = random_floats(count, 1, pixels), bias = random_floats(channels, 0.5, 2), dy = random_floats(count, 1, 3);
    for (Order order : orders(images, channels, pixels))
        for (int relu : {0, 1}) {
            std::vector<double> y(count), dz(count), dbias(channels);
            std::vector<float> found = run_twice<float>(count, [&](float *y, bool back) {
                emulate::launch(planes.blocks(), planes.threads(), back, conv_bias_forward_f32, z.data(), order.image, order.channel,
                                bias.data(), channels, pixels, relu, y);
            });
            for (int n = 0; n < images; n++)
                for (int k = 0; k < channels; k++)
                    for (int i = 0; i < pixels; i++) {
                        size_t a = (size_t(n) * channels + k) * pixels + i, b = n * order.image + k * order.channel + i;
                        y[a] = z[b] + bias[k];
                        if (relu) y[a] = std::max(y[a], 0.0);
                        dz[b] = !relu || found[a] > 0 ? dy[a] : 0;
                        dbias[k] += dz[b];
                    }
            compare("conv bias", found, y, 1e-6, 0);
            std::vector<float> grad = run_twice<float>(count, [&](float *dz, bool back) {
                emulate::launch(planes.blocks(), planes.threads(), back, conv_bias_backward_f32, found.data(), dy.data(), channels, pixels,
                                relu, dz, order.image, order.channel);
            });
            compare("conv bias backward", grad, dz, 0, 0);
            for (int parts : {1, 2, 5}) {
                std::vector<double> partial = run_twice<double>(2 * channels * parts, [&](double *partial, bool back) {
                    emulate::launch(dim3(channels, parts), dim3(32, 2), back, conv_bias_sums_f32, grad.data(), order.image,
                                    order.channel, images, pixels, partial);
                });
                std::vector<float> sums = run_twice<float>(channels, [&](float *sums, bool back) {
                    emulate::launch(channels, 32, back, conv_bias_totals, partial.data(), parts, sums);
                });
                compare("conv dbias", sums, dbias, 1e-6, 1e-6);
            }
        }
}

static void check_pool(int images, int channels, int height, int width) {
    const size_t pixels = height * width, count = images * channels * pixels;
    const Planes planes{images * channels};
    const int oh = height / 2, ow = width / 2;
    std::vector<float> z = random_floats(count, 1, pixels), bias = random_floats(channels, 0.5, 2);
    for (float &value : z) value = std::round(value * 2) / 2; // ties
    if (width > 2) z[width + 1] = NAN;
    std::vector<float> dy = random_floats(images * channels * oh * ow, 1, 3);
    for (Order order : orders(images, channels, pixels))
        for (int relu : {0, 1}) {
            std::vector<double> y(dy.size()), dz(count);
            for (int n = 0; n < images; n++)
                for (int k = 0; k < channels; k++)
                    for (int i = 0; i < oh * ow; i++) {
                        size_t first = n * order.image + k * order.channel + i / ow * 2 * width + i % ow * 2, best = first;
                        for (size_t at : {first, first + 1, first + width, first + width + 1})
                            if (z[at] > z[best] || (std::isnan(z[at]) && !std::isnan(z[best]))) best = at;
                        size_t out = (size_t(n) * channels + k) * oh * ow + i;
                        y[out] = float(z[best] + bias[k]);
                        if (relu && y[out] < 0) y[out] = 0;
                        if (!relu || y[out] > 0) dz[best] += dy[out];
                    }
            std::vector<unsigned char> winners(y.size(), 77);
            std::vector<float> found = run_twice<float>(y.size(), [&](float *y, bool back) {
                emulate::launch(planes.blocks(), planes.threads(), back, conv_pool_forward_f32, z.data(), order.image, order.channel,
                                bias.data(), channels, height, width, relu, y, winners.data());
            });
            compare("conv pool", found, y, 0, 0);
            std::vector<float> grad = run_twice<float>(count, [&](float *dz, bool back) {
                emulate::launch(planes.blocks(), planes.threads(), back, conv_pool_backward_f32, found.data(), winners.data(), dy.data(),
                                channels, height, width, relu, dz, order.image, order.channel);
            });
            compare("conv pool backward", grad, dz, 0, 0);
        }
}

// The three products by columns give a convolution and its gradients.
static void check_columns(Sizes s, int outputs) {
    s.out_height = (s.height + 2 * s.padding - s.dilation * (s.kernel_height - 1) - 1) / s.stride + 1;
    s.out_width = (s.width + 2 * s.padding - s.dilation * (s.kernel_width - 1) - 1) / s.stride + 1;
    const int rows = s.channels * s.kernel_height * s.kernel_width, pixels = s.out_height * s.out_width;
    const size_t all = size_t(s.images) * pixels;
    std::vector<float> x = random_floats(size_t(s.images) * s.channels * s.height * s.width, 1, rows);
    std::vector<float> weight = random_floats(outputs * rows, 1, 2), dz = random_floats(outputs * all, 1, 3);
    std::vector<double> z(outputs * all), dx(x.size()), dweight(weight.size()), columns_dx(rows * all);
    auto each = [&](auto body) {
        for (int n = 0; n < s.images; n++)
            for (int o = 0; o < outputs; o++)
                for (int p = 0; p < pixels; p++)
                    for (int row = 0; row < rows; row++) {
                        int kx = row % s.kernel_width, ky = row / s.kernel_width % s.kernel_height;
                        int channel = row / s.kernel_width / s.kernel_height;
                        int r = p / s.out_width * s.stride - s.padding + ky * s.dilation;
                        int c = p % s.out_width * s.stride - s.padding + kx * s.dilation;
                        if (r < 0 || r >= s.height || c < 0 || c >= s.width) continue;
                        body(o * all + size_t(n) * pixels + p, o * rows + row,
                             ((size_t(n) * s.channels + channel) * s.height + r) * s.width + c);
                    }
    };
    each([&](size_t out, size_t w, size_t in) {
        z[out] += double(weight[w]) * x[in];
        dweight[w] += double(dz[out]) * x[in];
        dx[in] += double(dz[out]) * weight[w];
    });
    for (int blocks_of_images : {1, 2}) {
        std::vector<float> columns = run_twice<float>(rows * all, [&](float *columns, bool back) {
            emulate::launch(dim3(rows, blocks_of_images), 5, back, conv_columns_f32, x.data(), s, columns);
        });
        std::vector<double> found_z(z.size()), found_dweight(dweight.size());
        std::vector<float> of_columns(rows * all);
        for (int o = 0; o < outputs; o++)
            for (int row = 0; row < rows; row++)
                for (size_t i = 0; i < all; i++) {
                    found_z[o * all + i] += double(weight[o * rows + row]) * columns[row * all + i];
                    found_dweight[o * rows + row] += double(dz[o * all + i]) * columns[row * all + i];
                    columns_dx[row * all + i] = (o == 0 ? 0 : columns_dx[row * all + i]) + double(weight[o * rows + row]) * dz[o * all + i];
                }
        std::copy(columns_dx.begin(), columns_dx.end(), of_columns.begin());
        compare("conv by columns", found_z, z, 1e-12, 0);
        compare("conv dweight by columns", found_dweight, dweight, 1e-12, 0);
        std::vector<float> found_dx = run_twice<float>(x.size(), [&](float *dx, bool back) {
            emulate::launch(s.images * s.channels, 5, back, conv_from_columns_f32, of_columns.data(), s, 0, dx);
        });
        compare("conv dx by columns", found_dx, dx, 1e-5, 1e-6);
    }
}

int main() {
    check_bias(1, 1, 1);
    check_bias(3, 2, 35);
    check_bias(2, 5, 64);
    check_bias(1, 3, 4);
    check_pool(2, 3, 4, 4);
    check_pool(1, 2, 7, 8);
    check_pool(1, 1, 2, 12);
    check_pool(3, 2, 5, 7);
    check_pool(1, 2, 9, 2);
    check_columns({2, 3, 5, 5, 3, 3, 1, 1, 1, 0, 0}, 4);
    check_columns({3, 2, 7, 6, 3, 2, 2, 1, 1, 0, 0}, 3);
    check_columns({2, 1, 9, 8, 2, 3, 3, 2, 2, 0, 0}, 2);
    check_columns({1, 4, 3, 3, 1, 1, 2, 0, 1, 0, 0}, 2);
    return finish("conv");
}
