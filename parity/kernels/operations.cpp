// kd-ops' small operations: ReLU, max-pooling, dropout, shortcut, linear layers.
#include "check.h"

#include "../../crates/kd-ops/kernels/dropout.cu"
#include "../../crates/kd-ops/kernels/linear.cu"
#include "../../crates/kd-ops/kernels/max_pool.cu"
#include "../../crates/kd-ops/kernels/relu.cu"
#include "../../crates/kd-ops/kernels/shortcut.cu"

static void check_relu() {
    for (size_t count : {1, 63, 64, 65, 1000}) {
        std::vector<float> x = random_floats(count, 2, count), dy = random_floats(count, 1, count + 1);
        x[0] = 0;
        if (count > 5) x[5] = NAN;
        std::vector<double> y(count), dx(count);
        for (size_t i = 0; i < count; i++) {
            y[i] = x[i] < 0 ? 0 : x[i];
            dx[i] = x[i] > 0 ? dy[i] : 0;
        }
        std::vector<float> found = run_twice<float>(
            count, [&](float *y, bool back) { emulate::launch(3, 5, back, relu_forward_f32, count, x.data(), y); });
        compare("relu", found, y, 0, 0);
        std::vector<float> grad = run_twice<float>(count, [&](float *dx, bool back) {
            emulate::launch(3, 5, back, relu_backward_f32, count, found.data(), dy.data(), dx);
        });
        compare("relu backward", grad, dx, 0, 0);
    }
}

static void check_max_pool() {
    struct Case { int height, width, kernel, stride; };
    for (Case c : {Case{4, 4, 2, 2}, {5, 7, 2, 2}, {7, 5, 3, 2}, {6, 6, 3, 1}, {9, 8, 2, 3}, {3, 3, 3, 3}, {17, 13, 4, 3}}) {
        const int planes = 3, oh = (c.height - c.kernel) / c.stride + 1, ow = (c.width - c.kernel) / c.stride + 1;
        std::vector<float> x = random_floats(planes * c.height * c.width, 1, c.height);
        // Few different values, so that maxima are tied; one NaN.
        for (float &value : x) value = std::round(value * 2);
        x[c.width + 1] = NAN;
        std::vector<float> dy = random_floats(planes * oh * ow, 1, 7);
        std::vector<double> y(planes * oh * ow), dx(x.size());
        std::vector<unsigned> winners(y.size());
        for (int p = 0; p < planes; p++)
            for (int r = 0; r < oh; r++)
                for (int q = 0; q < ow; q++) {
                    int best = -1, out = (p * oh + r) * ow + q;
                    for (int i = 0; i < c.kernel * c.kernel; i++) {
                        int at = (r * c.stride + i / c.kernel) * c.width + q * c.stride + i % c.kernel;
                        float value = x[p * c.height * c.width + at], most = x[p * c.height * c.width + std::max(best, 0)];
                        if (best < 0 || value > most || (std::isnan(value) && !std::isnan(most))) best = at;
                    }
                    y[out] = x[p * c.height * c.width + best];
                    winners[out] = best;
                    dx[p * c.height * c.width + best] += dy[out];
                }
        std::vector<unsigned> found_winners(y.size(), 999);
        std::vector<float> found = run_twice<float>(y.size(), [&](float *y, bool back) {
            emulate::launch(planes, 5, back, max_pool_forward_f32, x.data(), y, found_winners.data(), c.height, c.width, oh,
                            ow, c.kernel, c.stride, 0, 0);
        });
        compare("max_pool", found, y, 0, 0);
        compare("max_pool winners", found_winners, winners, 0, 0);
        std::vector<float> grad = run_twice<float>(x.size(), [&](float *dx, bool back) {
            emulate::launch(planes, 5, back, max_pool_backward_f32, dy.data(), winners.data(), dx, c.height, c.width, oh, ow,
                            c.kernel, c.stride, 0);
        });
        compare("max_pool backward", grad, dx, 1e-6, 0);
    }
}

// The words are those of the crate rand_chacha, which `the_mask_is_that_of_the_kernel_check` in
// kd-ops/src/dropout.rs pins too: seed 0x0123456789abcdef, step 5, layer 3; words 0, 1, 15, 16, 31, 32, 63, 64, 99.
static void check_dropout() {
    const size_t at[] = {0, 1, 15, 16, 31, 32, 63, 64, 99};
    const unsigned words[] = {0xa63e4363, 0x385dbe92, 0x1f575a3b, 0x6b8aa62f, 0xfe9ec9db, 0x8e0c0351, 0x8250716f, 0x81245298, 0xd51d5fd3};
    for (size_t count : {1, 15, 16, 17, 100}) {
        std::vector<float> x = random_floats(count, 1, count);
        for (size_t k = 0; k < 9; k++) {
            if (at[k] >= count) continue;
            for (unsigned more : {0u, 1u}) {
                std::vector<float> y = run_twice<float>(count, [&](float *y, bool back) {
                    // The step's number with the launch, or from memory.
                    const Step now{5, {}};
                    emulate::launch(2, 5, back, dropout_f32, count, x.data(), y, 0x0123456789abcdefull,
                                    back ? 99ull : 5ull, 3ull, words[k] + more, 1.25f,
                                    back ? &now : (const Step *)nullptr, (const float *)nullptr, 0);
                });
                expect("dropout's mask", y[at[k]] == (more ? 0.0f : x[at[k]] * 1.25f));
                for (size_t i = 0; i < count; i++) expect("dropout's values", y[i] == 0 || y[i] == x[i] * 1.25f);
            }
        }
    }
}

static void check_shortcut() {
    struct Case { int channels, height, width, out_channels; };
    for (Case c : {Case{2, 4, 4, 4}, {3, 5, 7, 7}, {1, 1, 1, 1}, {16, 3, 2, 32}}) {
        const int images = 2, oh = (c.height + 1) / 2, ow = (c.width + 1) / 2;
        std::vector<float> x = random_floats(images * c.channels * c.height * c.width, 1, 3);
        std::vector<float> dy = random_floats(images * c.out_channels * oh * ow, 1, 4);
        std::vector<double> y(dy.size()), dx(x.size());
        for (int n = 0; n < images; n++)
            for (int k = 0; k < c.channels; k++)
                for (int r = 0; r < oh; r++)
                    for (int q = 0; q < ow; q++) {
                        int from = ((n * c.channels + k) * c.height + 2 * r) * c.width + 2 * q;
                        int to = ((n * c.out_channels + k + (c.out_channels - c.channels) / 2) * oh + r) * ow + q;
                        y[to] = x[from];
                        dx[from] = dy[to];
                    }
        std::vector<float> found = run_twice<float>(y.size(), [&](float *y, bool back) {
            emulate::launch(images * c.out_channels, 5, back, subsample_pad_forward_f32, x.data(), y, c.channels, c.height,
                            c.width, c.out_channels, oh, ow);
        });
        compare("subsample_pad", found, y, 0, 0);
        std::vector<float> grad = run_twice<float>(x.size(), [&](float *dx, bool back) {
            emulate::launch(images * c.channels, 5, back, subsample_pad_backward_f32, dy.data(), dx, c.channels, c.height,
                            c.width, c.out_channels, oh, ow);
        });
        compare("subsample_pad backward", grad, dx, 0, 0);
    }
}

static void check_linear() {
    struct Case { int rows, columns; };
    for (Case c : {Case{1, 1}, {5, 10}, {7, 33}, {19, 64}, {8, 100}}) {
        std::vector<float> y = random_floats(c.rows * c.columns, 1, c.columns), bias = random_floats(c.columns, 1, 9);
        std::vector<double> sums(c.columns);
        for (int i = 0; i < c.rows * c.columns; i++) sums[i % c.columns] += y[i];
        for (int relu : {0, 1}) {
            std::vector<double> expected(y.begin(), y.end());
            for (int i = 0; i < c.rows * c.columns; i++) {
                expected[i] = y[i] + bias[i % c.columns];
                if (relu) expected[i] = std::max(expected[i], 0.0);
            }
            std::vector<float> found = run_twice<float>(y.size(), [&](float *out, bool back) {
                std::copy(y.begin(), y.end(), out);
                emulate::launch(c.rows, 5, back, linear_bias_forward_f32, out, bias.data(), c.columns, relu);
            });
            compare("linear bias", found, expected, 1e-6, 0);
        }
        std::vector<float> grad = run_twice<float>(c.columns, [&](float *out, bool back) {
            emulate::launch((c.columns + 31) / 32, dim3(32, 8), back, linear_bias_backward_f32, y.data(), c.rows, c.columns, out);
        });
        compare("linear bias backward", grad, sums, 1e-6, 1e-6);
    }
}

int main() {
    check_relu();
    check_max_pool();
    check_dropout();
    check_shortcut();
    check_linear();
    return finish("operations");
}
