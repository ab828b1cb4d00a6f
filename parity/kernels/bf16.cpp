// Every kernel for bf16 maps against the one for f32, which the other checks compare with f64: on the same numbers,
// all of them bf16, it gives the same result rounded to bf16, bit for bit.
#include "check.h"

#include "../../crates/kd-ops/kernels/batch_norm.cu"
#include "../../crates/kd-ops/kernels/conv.cu"
#include "../../crates/kd-ops/kernels/dropout.cu"
#include "../../crates/kd-ops/kernels/linear.cu"
#include "../../crates/kd-ops/kernels/max_pool.cu"
#include "../../crates/kd-ops/kernels/relu.cu"
#include "../../crates/kd-ops/kernels/shortcut.cu"

// The same numbers as f32 and as bf16.
struct Map {
    std::vector<float> f32;
    std::vector<__nv_bfloat16> bf16;
    explicit Map(const std::vector<float> &values) {
        for (float value : values) {
            bf16.push_back(__float2bfloat16(value));
            f32.push_back(__bfloat162float(bf16.back()));
        }
    }
};

static Map random_map(size_t count, float scale, uint64_t seed) { return Map(random_floats(count, scale, seed)); }

// `f32(out, back)` and `bf16(out, back)` write `count` numbers.
template <class F32, class Bf16> static Map same(const char *what, size_t count, F32 f32, Bf16 bf16) {
    Map expected(run_twice<float>(count, f32));
    std::vector<__nv_bfloat16> found = run_twice<__nv_bfloat16>(count, bf16);
    for (size_t i = 0; i < count; i++) expect(what, found[i].bits == expected.bf16[i].bits);
    return expected;
}

// The same where the result is f32 or f64 in both.
template <class T, class F32, class Bf16> static std::vector<T> same_sums(const char *what, size_t count, F32 f32, Bf16 bf16) {
    std::vector<T> expected = run_twice<T>(count, f32), found = run_twice<T>(count, bf16);
    expect(what, std::memcmp(found.data(), expected.data(), count * sizeof(T)) == 0);
    return expected;
}

// Calls `launch` for f32 and for bf16, with the kernel and the maps that are meant.
#define SAME(what, count, KERNEL, grid, threads, ...)                                                               \
    same(                                                                                                           \
        what, count,                                                                                                \
        [&](float *out, bool back) {                                                                                \
            [[maybe_unused]] auto of = [](const Map &map) { return map.f32.data(); };                               \
            emulate::launch(grid, threads, back, KERNEL##_f32, __VA_ARGS__);                                        \
        },                                                                                                          \
        [&](__nv_bfloat16 *out, bool back) {                                                                        \
            [[maybe_unused]] auto of = [](const Map &map) { return map.bf16.data(); };                              \
            emulate::launch(grid, threads, back, KERNEL##_bf16, __VA_ARGS__);                                       \
        })

#define SAME_SUMS(what, T, count, KERNEL, grid, threads, ...)                                                       \
    same_sums<T>(                                                                                                   \
        what, count,                                                                                                \
        [&](T *out, bool back) {                                                                                    \
            auto of = [](const Map &map) { return map.f32.data(); };                                                \
            emulate::launch(grid, threads, back, KERNEL##_f32, __VA_ARGS__);                                        \
        },                                                                                                          \
        [&](T *out, bool back) {                                                                                    \
            auto of = [](const Map &map) { return map.bf16.data(); };                                               \
            emulate::launch(grid, threads, back, KERNEL##_bf16, __VA_ARGS__);                                       \
        })

static void check_elements() {
    for (size_t count : {1, 31, 1000}) {
        Map x = random_map(count, 2, count), dy = random_map(count, 1, count + 1);
        Map y = SAME("relu", count, relu_forward, 3, 5, count, of(x), out);
        SAME("relu backward", count, relu_backward, 3, 5, count, of(y), of(dy), out);
        SAME("dropout", count, dropout, 20, 5, count, of(x), out, 7ull, 5ull, 3ull, 1u << 30, 4.0f / 3, (const Step *)nullptr, of(x), 0);
    }
}

static void check_planes() {
    const int images = 2, channels = 3, height = 5, width = 6, planes = images * channels, oh = 2, ow = 2;
    Map x = random_map(planes * height * width, 1, 1), dy = random_map(planes * oh * ow, 1, 2);
    std::vector<unsigned> winners(planes * oh * ow);
    SAME("max_pool", planes * oh * ow, max_pool_forward, planes, 5, of(x), out, winners.data(), height, width, oh, ow, 3, 2, 0, 0);
    SAME("max_pool backward", x.f32.size(), max_pool_backward, planes, 5, of(dy), winners.data(), out, height, width, oh,
         ow, 3, 2, 0);

    Map wide = random_map(images * 5 * 3 * 3, 1, 3);
    SAME("subsample_pad", images * 5 * 3 * 3, subsample_pad_forward, images * 5, 5, of(x), out, channels, height, width, 5,
         3, 3);
    SAME("subsample_pad backward", x.f32.size(), subsample_pad_backward, planes, 5, of(wide), out, channels, height, width,
         5, 3, 3);
}

static void check_linear() {
    const int rows = 7, columns = 33;
    Map y = random_map(rows * columns, 1, 1);
    std::vector<float> bias = random_floats(columns, 1, 2);
    for (int relu : {0, 1})
        same(
            "linear bias", rows * columns,
            [&](float *out, bool back) {
                std::copy(y.f32.begin(), y.f32.end(), out);
                emulate::launch(rows, 5, back, linear_bias_forward_f32, out, bias.data(), columns, relu);
            },
            [&](__nv_bfloat16 *out, bool back) {
                std::copy(y.bf16.begin(), y.bf16.end(), out);
                emulate::launch(rows, 5, back, linear_bias_forward_bf16, out, bias.data(), columns, relu);
            });
    SAME_SUMS("linear bias backward", float, columns, linear_bias_backward, 2, dim3(32, 8), of(y), rows, columns, out);
}

static void check_conv(int height, int width) {
    const int images = 3, channels = 2, pixels = height * width, windows = height / 2 * (width / 2);
    const dim3 blocks(images * channels / 2), rows(5, 2); // two planes a block
    const size_t count = images * channels * pixels, image = size_t(channels) * pixels, channel = pixels;
    Map z = random_map(count, 1, 1), dy = random_map(count, 1, 2), of_windows = random_map(images * channels * windows, 1, 3);
    std::vector<float> bias = random_floats(channels, 0.5, 4);
    std::vector<unsigned char> winners(images * channels * windows);
    for (int relu : {0, 1}) {
        Map y = SAME("conv bias", count, conv_bias_forward, blocks, rows, of(z), image, channel, bias.data(),
                     channels, pixels, relu, out);
        SAME("conv bias backward", count, conv_bias_backward, blocks, rows, of(y), of(dy), channels, pixels, relu,
             out, image, channel);
        Map pooled = SAME("conv pool", winners.size(), conv_pool_forward, blocks, rows, of(z), image, channel,
                          bias.data(), channels, height, width, relu, out, winners.data());
        SAME("conv pool backward", count, conv_pool_backward, blocks, rows, of(pooled), winners.data(),
             of(of_windows), channels, height, width, relu, out, image, channel);
    }
    SAME_SUMS("conv dbias", double, 2 * channels * 2, conv_bias_sums, dim3(channels, 2), dim3(32, 2), of(dy), image,
              channel, images, pixels, out);
    const int oh = (height + 2 - 3) / 2 + 1, ow = (width + 2 - 2) / 2 + 1;
    Sizes s = {images, channels, height, width, 3, 2, 2, 1, 1, oh, ow};
    const size_t columns = size_t(channels) * 3 * 2 * images * oh * ow;
    Map gathered = SAME("columns", columns, conv_columns, dim3(channels * 6, images), 5, of(z), s, out);
    SAME("from columns", count, conv_from_columns, images * channels, 5, of(gathered), s, 0, out);
}

static void check_batch_norm(int plane) {
    const int images = 4, channels = 3, parts = 3;
    const dim3 blocks(images * channels / 4), rows(5, 4); // four planes a block
    const size_t count = images * channels * plane;
    const dim3 threads(32, 2);
    Map x = random_map(count, 1, 1), dy = random_map(count, 1, 2), residual = random_map(count, 1, 3);
    std::vector<float> weight = random_floats(channels, 1, 4), bias = random_floats(channels, 1, 5);
    std::vector<double> partial = SAME_SUMS("moments", double, 2 * channels * parts, batch_norm_moments,
                                            dim3(channels, parts), threads, of(x), images, channels, plane, out);
    std::vector<float> running_mean(channels), running_var(channels);
    std::vector<double> inv_std(channels);
    std::vector<float> mean = SAME_SUMS("mean", float, channels, batch_norm_statistics, channels, 32, partial.data(), parts,
                                        of(x), plane, double(images * plane), 0.1, 1e-5, running_mean.data(),
                                        running_var.data(), out, inv_std.data());
    for (int relu : {0, 1}) {
        Map y = SAME("batch norm", count, batch_norm_forward, blocks, rows, of(x), mean.data(), inv_std.data(),
                     weight.data(), bias.data(), of(residual), channels, plane, relu, out);
        SAME_SUMS("batch norm's gradient sums", double, 2 * channels * parts, batch_norm_gradient_sums,
                  dim3(channels, parts), threads, of(x), of(y), of(dy), mean.data(), images, channels, plane, relu, out);
        std::vector<float> through = random_floats(channels, 0.1, 6);
        SAME("batch norm's dx", count, batch_norm_backward, blocks, rows, of(x), of(y), of(dy), mean.data(),
             inv_std.data(), weight.data(), through.data(), through.data(), channels, plane, relu, out, nullptr);
        SAME("batch norm's dresidual", count, batch_norm_backward, blocks, rows, of(x), of(y), of(dy), mean.data(),
             inv_std.data(), weight.data(), through.data(), through.data(), channels, plane, relu, nullptr, out);
    }
}

int main() {
    check_elements();
    check_planes();
    check_linear();
    // Value by value, and in words of 16 bytes.
    check_conv(5, 6);
    check_conv(5, 8);
    check_batch_norm(35);
    check_batch_norm(48);
    return finish("bf16");
}
