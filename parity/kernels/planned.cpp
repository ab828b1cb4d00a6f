// kd-ops' kernels of planned passes and of a step's figures.
#include "check.h"

#include "../../crates/kd-ops/kernels/figures.cu"
#include "../../crates/kd-ops/kernels/planned.cu"

static double after(double value, int activation) {
    if (activation) value = std::max(value, 0.0);
    return activation == 2 ? std::min(value, 6.0) : value;
}

// Planes of whole words and others, one and two inputs, through normalisations and as they are.
static void check_sums() {
    for (int pixels : {1, 9, 16, 40}) {
        const int images = 2, channels = 4, planes = images * channels;
        std::vector<float> a = random_floats(planes * pixels, 8, 1), b = random_floats(planes * pixels, 8, 2);
        std::vector<float> mean = random_floats(channels, 1, 3), weight = random_floats(channels, 1, 4);
        std::vector<float> bias = random_floats(channels, 1, 5);
        std::vector<double> inv_std{0.5, 1.5, 1.0, 2.0};
        for (int norms : {0, 1, 3})
            for (int inputs : {1, 2})
                for (int activation : {0, 1, 2}) {
                    std::vector<double> expected(a.size());
                    for (size_t i = 0; i < a.size(); i++) {
                        int c = i / pixels % channels;
                        auto read = [&](float x, bool norm) {
                            return norm ? (x - double(mean[c])) * (weight[c] * inv_std[c]) + bias[c] : double(x);
                        };
                        double value = read(a[i], norms & 1) + (inputs == 2 ? read(b[i], norms & 2) : 0.0);
                        expected[i] = after(value, activation);
                    }
                    Normed none{};
                    Normed first{a.data(), mean.data(), inv_std.data(), weight.data(), bias.data()}, second = first;
                    second.x = b.data();
                    if (!(norms & 1)) first = {a.data(), nullptr, nullptr, nullptr, nullptr};
                    if (!(norms & 2)) second = {b.data(), nullptr, nullptr, nullptr, nullptr};
                    std::vector<float> found = run_twice<float>(a.size(), [&](float *y, bool back) {
                        emulate::launch(planes / 2, dim3(5, 2), back, map_sum, first, inputs == 2 ? second : none, channels,
                                        pixels, activation, y);
                    });
                    compare("sum", found, expected, 1e-6, 1e-6);
                }
    }
}

static void check_in_place() {
    for (size_t count : {1, 7, 64, 1000}) {
        std::vector<float> from = random_floats(count, 1, count), to = random_floats(count, 1, 9);
        std::vector<float> y = random_floats(count, 8, 3);
        y[0] = 6.0f;
        std::vector<double> sum(count);
        for (size_t i = 0; i < count; i++) sum[i] = double(from[i]) + to[i];
        std::vector<float> found = run_twice<float>(count, [&](float *out, bool back) {
            std::copy(to.begin(), to.end(), out);
            emulate::launch(3, 5, back, map_add, count, from.data(), out);
        });
        compare("add", found, sum, 1e-6, 1e-7);
        for (int activation : {1, 2}) {
            std::vector<double> masked(count);
            for (size_t i = 0; i < count; i++) masked[i] = y[i] > 0 && (activation == 1 || y[i] < 6) ? to[i] : 0;
            found = run_twice<float>(count, [&](float *out, bool back) {
                std::copy(to.begin(), to.end(), out);
                emulate::launch(3, 5, back, map_mask, count, y.data(), activation, out);
            });
            compare("mask", found, masked, 0, 0);
        }
    }
}

static void check_means() {
    for (int pixels : {1, 31, 49, 100}) {
        const int planes = 11;
        std::vector<float> x = random_floats(planes * pixels, 1, pixels), dy = random_floats(planes, 1, 5);
        std::vector<double> means(planes), shares(x.size());
        for (int i = 0; i < planes * pixels; i++) {
            means[i / pixels] += double(x[i]) / pixels;
            shares[i] = double(dy[i / pixels]) / pixels;
        }
        std::vector<float> found = run_twice<float>(planes, [&](float *y, bool back) {
            emulate::launch((planes + 7) / 8, dim3(32, 8), back, plane_means, x.data(), planes, pixels, y);
        });
        compare("means", found, means, 1e-6, 1e-7);
        found = run_twice<float>(x.size(), [&](float *dx, bool back) {
            emulate::launch(planes, 5, back, plane_means_gradient, dy.data(), pixels, dx);
        });
        compare("means backward", found, shares, 1e-6, 0);
    }
}

static void check_fold() {
    const int channels = 3, window = 7;
    std::vector<float> weight = random_floats(channels * window, 1, 1), before = random_floats(channels, 1, 2);
    std::vector<float> scale = random_floats(channels, 1, 3), shift = random_floats(channels, 1, 4);
    std::vector<float> mean = random_floats(channels, 1, 5), var{0.5f, 1.0f, 2.0f};
    for (bool biased : {false, true}) {
        std::vector<double> folded(weight.size()), bias(channels);
        for (int c = 0; c < channels; c++) {
            double by = scale[c] / std::sqrt(var[c] + 1e-5);
            for (int i = 0; i < window; i++) folded[c * window + i] = weight[c * window + i] * by;
            bias[c] = ((biased ? before[c] : 0.0) - mean[c]) * by + shift[c];
        }
        std::vector<float> found_bias(channels);
        std::vector<float> found = run_twice<float>(weight.size(), [&](float *to, bool back) {
            emulate::launch(channels, 5, back, fold_norm, weight.data(), biased ? before.data() : nullptr, scale.data(),
                            shift.data(), mean.data(), var.data(), 1e-5, window, to, found_bias.data());
        });
        compare("folded weight", found, folded, 1e-6, 0);
        compare("folded bias", found_bias, bias, 1e-6, 1e-7);
    }
}

static void check_figures() {
    std::vector<float> one{0.1f}, three{1, 2, 3};
    std::vector<double> wide{1e300, 0.1};
    Pieces pieces{{one.data(), wide.data(), three.data()}, {0, 1, 3, 6}, 2, 3};
    std::vector<double> joined = run_twice<double>(6, [&](double *to, bool back) {
        emulate::launch(2, 5, back, join_f64, pieces, to);
    });
    const std::vector<double> expected{double(0.1f), 1e300, 0.1, 1, 2, 3};
    expect("joined figures", joined == expected);
    for (unsigned count : {1u, 63u, 300u}) {
        std::vector<unsigned> a(count), b(count);
        double equal = 0;
        for (unsigned i = 0; i < count; i++) a[i] = i % 5, b[i] = i % 3, equal += a[i] == b[i];
        std::vector<float> found = run_twice<float>(1, [&](float *to, bool back) {
            emulate::launch(1, 64, back, count_equal, a.data(), b.data(), count, to);
        });
        expect("equal answers", found[0] == equal);
    }
}

int main() {
    check_sums();
    check_in_place();
    check_means();
    check_fold();
    check_figures();
    return finish("planned");
}
