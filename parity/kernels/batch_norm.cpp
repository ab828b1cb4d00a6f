// Batch normalisation, forward and backward, against f64.
#include "check.h"

#include "../../crates/kd-ops/kernels/batch_norm.cu"

struct Case { int images, channels, plane, parts, threads_x, threads_y; float offset; };

static void check(Case c, bool relu, bool with_residual, bool running) {
    const size_t count = size_t(c.images) * c.channels * c.plane;
    const double eps = 1e-5, momentum = 0.1, n = double(c.images) * c.plane;
    std::vector<float> x = random_floats(count, 1, c.plane), dy = random_floats(count, 1, 5), residual;
    if (with_residual) residual = random_floats(count, 1, 6);
    // Far from zero the variance must not cancel; an outlier where the sums are shifted to must not hurt either.
    for (float &value : x) value += c.offset;
    x[0] = c.offset + 1000;
    std::vector<float> weight = random_floats(c.channels, 1, 7), bias = random_floats(c.channels, 1, 8);
    std::vector<float> old_mean = random_floats(c.channels, 1, 9), old_var = random_floats(c.channels, 1, 10);
    for (float &value : old_var) value = std::abs(value) + 0.1f;

    std::vector<double> mean(c.channels), inv(c.channels), new_mean(c.channels), new_var(c.channels);
    auto at = [&](int image, int channel, int i) { return (size_t(image) * c.channels + channel) * c.plane + i; };
    for (int k = 0; k < c.channels; k++) {
        double sum = 0, squares = 0;
        for (int m = 0; m < c.images; m++)
            for (int i = 0; i < c.plane; i++) sum += x[at(m, k, i)];
        for (int m = 0; m < c.images; m++)
            for (int i = 0; i < c.plane; i++) squares += std::pow(x[at(m, k, i)] - sum / n, 2);
        mean[k] = running ? old_mean[k] : sum / n;
        inv[k] = 1 / std::sqrt((running ? old_var[k] : squares / n) + eps);
        new_mean[k] = running ? old_mean[k] : (1 - momentum) * old_mean[k] + momentum * sum / n;
        new_var[k] = running ? old_var[k] : (1 - momentum) * old_var[k] + momentum * squares / (n - 1);
    }
    std::vector<double> y(count), dz(count), dx(count), dweight(c.channels), dbias(c.channels);
    for (size_t i = 0; i < count; i++) {
        int k = i / c.plane % c.channels;
        y[i] = (x[i] - mean[k]) * inv[k] * weight[k] + bias[k] + (with_residual ? residual[i] : 0);
        // The sign is taken from the f32 result below, lest values next to zero differ.
        if (relu) y[i] = std::max(y[i], 0.0);
    }

    std::vector<float> found_mean(c.channels), found_running_mean, found_running_var;
    std::vector<double> found_inv(c.channels);
    dim3 threads(c.threads_x, c.threads_y);
    // Several planes a block where that divides their number.
    const int rows = c.images * c.channels % 4 ? 1 : 4;
    const dim3 planes(c.images * c.channels / rows), threads_of_planes(c.threads_x, rows);
    if (running) {
        emulate::launch((c.channels + 31) / 32, 32, false, batch_norm_running, old_mean.data(), old_var.data(), c.channels,
                        eps, found_mean.data(), found_inv.data());
    } else {
        std::vector<double> partial = run_twice<double>(2 * c.channels * c.parts, [&](double *partial, bool back) {
            emulate::launch(dim3(c.channels, c.parts), threads, back, batch_norm_moments_f32, x.data(), c.images, c.channels,
                            c.plane, partial);
        });
        found_running_mean = old_mean;
        found_running_var = old_var;
        emulate::launch(c.channels, 32, false, batch_norm_statistics_f32, partial.data(), c.parts, x.data(), c.plane, n,
                        momentum, eps, found_running_mean.data(), found_running_var.data(), found_mean.data(),
                        found_inv.data());
        compare("running mean", found_running_mean, new_mean, 1e-7, 1e-6);
        compare("running variance", found_running_var, new_var, 1e-7, 1e-6);
    }
    compare("mean", found_mean, mean, 1e-7, 1e-6);
    compare("1 / deviation", found_inv, inv, 0, 1e-6);

    std::vector<float> found = run_twice<float>(count, [&](float *y, bool back) {
        emulate::launch(planes, threads_of_planes, back, batch_norm_forward_f32, x.data(), found_mean.data(),
                        found_inv.data(), weight.data(), bias.data(), with_residual ? residual.data() : nullptr, c.channels,
                        c.plane, int(relu), y);
    });
    // The mean is rounded to f32, as on the CPU: an error of half a unit in its last place goes into every value.
    double rounding = 4e-6 + (std::abs(c.offset) + 2) * 1e-7 * inv[0];
    for (double value : inv) rounding = std::max(rounding, 4e-6 + (std::abs(c.offset) + 2) * 1e-7 * value);
    compare("y", found, y, rounding, 4e-6);

    for (int k = 0; k < c.channels; k++) {
        double sum = 0, products = 0;
        for (int m = 0; m < c.images; m++)
            for (int i = 0; i < c.plane; i++) {
                size_t a = at(m, k, i);
                dz[a] = !relu || found[a] > 0 ? dy[a] : 0;
                sum += dz[a];
                products += dz[a] * (x[a] - mean[k]);
            }
        dweight[k] = products * inv[k];
        dbias[k] = sum;
        for (int m = 0; m < c.images; m++)
            for (int i = 0; i < c.plane; i++) {
                size_t a = at(m, k, i);
                double through = running ? 0 : sum / n + (x[a] - mean[k]) * products * inv[k] * inv[k] / n;
                dx[a] = weight[k] * inv[k] * (dz[a] - through);
            }
    }
    std::vector<double> partial = run_twice<double>(2 * c.channels * c.parts, [&](double *partial, bool back) {
        emulate::launch(dim3(c.channels, c.parts), threads, back, batch_norm_gradient_sums_f32, x.data(), found.data(), dy.data(),
                        found_mean.data(), c.images, c.channels, c.plane, int(relu), partial);
    });
    std::vector<float> of_weight(c.channels), of_bias(c.channels), through_mean(c.channels), through_var(c.channels);
    emulate::launch(c.channels, 32, true, batch_norm_gradient_totals, partial.data(), c.parts, found_inv.data(),
                    running ? INFINITY : n, of_weight.data(), of_bias.data(), through_mean.data(), through_var.data());
    std::vector<float> of_residual(count);
    std::vector<float> of_x = run_twice<float>(count, [&](float *dx, bool back) {
        emulate::launch(planes, threads_of_planes, back, batch_norm_backward_f32, x.data(), found.data(), dy.data(),
                        found_mean.data(), found_inv.data(), weight.data(), through_mean.data(), through_var.data(),
                        c.channels, c.plane, int(relu), dx, with_residual ? of_residual.data() : nullptr);
    });
    compare("dweight", of_weight, dweight, 2e-5 * n * rounding / 4e-6, 1e-5);
    compare("dbias", of_bias, dbias, 1e-5, 1e-6);
    compare("dx", of_x, dx, 10 * rounding, 1e-5);
    if (with_residual) compare("dresidual", of_residual, dz, 0, 0);
}

int main() {
    for (Case c : {Case{1, 3, 2, 1, 32, 1, 0}, {5, 2, 49, 3, 32, 2, 0}, {4, 3, 64, 4, 64, 2, 100}, {3, 2, 36, 2, 32, 1, 1}, {3, 1, 1, 2, 32, 2, -5}}) {
        check(c, false, false, false);
        check(c, true, true, false);
        check(c, true, false, true);
        check(c, false, true, true);
    }
    return finish("batch_norm");
}
