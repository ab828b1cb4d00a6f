// kd-loss's kernels: value, parts and gradient against the formulas in f64.
#include "check.h"

#include "../../crates/kd-loss/src/logits/fused/kernel.cu"

template <class T> void (*warp_rows())(const T *, const T *, const unsigned *, T *, float *, const float *, int, int,
                                       float, float, float, float);
template <> auto warp_rows<float>() -> decltype(&warp_rows_f32) { return warp_rows_f32; }
template <> auto warp_rows<__nv_bfloat16>() -> decltype(&warp_rows_bf16) { return warp_rows_bf16; }
template <> auto warp_rows<__half>() -> decltype(&warp_rows_f16) { return warp_rows_f16; }
template <class T> void (*block_rows())(const T *, const T *, const unsigned *, T *, float *, const float *, int, int,
                                        float, float, float, float);
template <> auto block_rows<float>() -> decltype(&block_rows_f32) { return block_rows_f32; }
template <> auto block_rows<__nv_bfloat16>() -> decltype(&block_rows_bf16) { return block_rows_bf16; }
template <> auto block_rows<__half>() -> decltype(&block_rows_f16) { return block_rows_f16; }
void scale(float *x, const float *by, size_t n) { scale_f32(x, by, n); }
void scale(__nv_bfloat16 *x, const float *by, size_t n) { scale_bf16(x, by, n); }
void scale(__half *x, const float *by, size_t n) { scale_f16(x, by, n); }

struct Case {
    int batch, columns, threads; // threads 0: a warp a row
    int warps = 1;               // of a block, in that case
    bool teacher = true, labels = true;
    float temperature = 2, smoothing = 0, labels_weight = 0.75f, kd_weight = 0.25f, spread = 4;
    int s_shift = 0, t_shift = 0; // elements that the logits begin after an aligned address
    bool bad_label = false;
};

std::vector<double> log_softmax(const double *z, int columns, double temperature) {
    double max = -INFINITY, sum = 0;
    for (int j = 0; j < columns; j++) max = std::max(max, z[j] / temperature);
    for (int j = 0; j < columns; j++) sum += std::exp(z[j] / temperature - max);
    std::vector<double> out(columns);
    for (int j = 0; j < columns; j++) out[j] = z[j] / temperature - max - std::log(sum);
    return out;
}

template <class T> void check(const char *type, Case c, double rounding) {
    char name[80];
    std::snprintf(name, sizeof name, "%s [%d, %d], T %g, smoothing %g, logits to %g", type, c.batch, c.columns,
                  c.temperature, c.smoothing, c.spread);
    int n = c.batch * c.columns;
    // Exactly as large as what is read and written, so that a step outside is seen.
    auto logits = [&](int shift, uint64_t seed, std::vector<double> &exact) {
        std::vector<float> values = random_floats(n, c.spread, seed);
        T *raw = static_cast<T *>(std::aligned_alloc(16, (size_t(shift + n) * sizeof(T) + 15) / 16 * 16));
        for (int i = 0; i < n; i++) {
            from_float(values[i], raw[shift + i]);
            exact.push_back(to_float(raw[shift + i]));
        }
        return raw;
    };
    std::vector<double> s, t;
    T *s_raw = logits(c.s_shift, 1 + c.columns, s), *t_raw = logits(c.t_shift, 2 + c.columns, t);
    std::vector<unsigned> labels(c.batch);
    for (int i = 0; i < c.batch; i++) labels[i] = (7 * i + 3) % c.columns;
    if (c.bad_label) labels[0] = c.columns;

    double ce = 0, kl = 0;
    std::vector<double> gradient(n);
    for (int i = 0; i < c.batch; i++) {
        const double *si = &s[size_t(i) * c.columns], *ti = &t[size_t(i) * c.columns];
        bool is_class = labels[i] < unsigned(c.columns);
        double T_ = c.temperature, w = double(c.labels_weight), k = double(c.kd_weight);
        if (c.labels) {
            auto p = log_softmax(si, c.columns, 1);
            double even = c.smoothing / double(c.columns);
            for (int j = 0; j < c.columns; j++) {
                double target = even + (unsigned(j) == labels[i] ? 1 - double(c.smoothing) : 0);
                if (target != 0) ce -= target * p[j];
                gradient[i * c.columns + j] += is_class ? w / c.batch * (std::exp(p[j]) - target) : NAN;
            }
            if (!is_class) ce = NAN;
        }
        if (c.teacher) {
            auto p = log_softmax(si, c.columns, T_), q = log_softmax(ti, c.columns, T_);
            for (int j = 0; j < c.columns; j++) {
                kl += std::exp(q[j]) * (q[j] - p[j]);
                gradient[i * c.columns + j] += k * T_ / c.batch * (std::exp(p[j]) - std::exp(q[j]));
            }
        }
    }
    ce /= c.batch;
    kl *= double(c.temperature) * c.temperature / c.batch;
    std::vector<double> expected{(c.labels ? c.labels_weight * ce : 0) + (c.teacher ? c.kd_weight * kl : 0), ce, kl};

    dim3 grid = c.threads ? dim3(c.batch) : dim3((c.batch + c.warps - 1) / c.warps), block = c.threads ? c.threads : 32 * c.warps;
    auto kernel = c.threads ? block_rows<T>() : warp_rows<T>();
    std::vector<float> rows;
    auto run = [&](T *gradient, const float *upstream, bool backwards) {
        emulate::launch(grid, block, backwards, kernel, s_raw + c.s_shift, c.teacher ? t_raw + c.t_shift : nullptr,
                        c.labels ? labels.data() : nullptr, gradient, rows.data(), upstream, c.batch, c.columns,
                        c.temperature, c.smoothing, c.labels_weight, c.kd_weight);
    };
    auto as_float = [](const std::vector<T> &x) {
        std::vector<float> out;
        for (T v : x) out.push_back(to_float(v));
        return out;
    };

    // Sums alone, then the mean over the rows.
    rows = run_twice<float>(c.batch * 8, [&](float *out, bool backwards) {
        rows.assign(c.batch * 8, NAN);
        run(nullptr, nullptr, backwards);
        std::memcpy(out, rows.data(), rows.size() * sizeof(float));
    });
    std::vector<float> found = run_twice<float>(3, [&](float *out, bool backwards) {
        emulate::launch(1, 96, backwards, mean_rows, rows.data(), out, out + 1, c.batch, c.temperature,
                        c.labels_weight, c.kd_weight);
    });
    // A difference of logits is as exact as f32 has it.
    compare(name, found, expected, 2e-6 + 2e-7 * c.spread, 1e-5);

    // The gradient with the sums, and afterwards from the sums times something.
    double smallest = 2e-7 / c.batch + (sizeof(T) == 2 ? 6e-8 : 0);
    std::vector<T> first = run_twice<T>(n, [&](T *out, bool backwards) { run(out, nullptr, backwards); });
    compare(name, as_float(first), gradient, smallest, rounding);
    float upstream = 1;
    std::vector<T> again = run_twice<T>(n, [&](T *out, bool backwards) { run(out, &upstream, backwards); });
    expect("the gradient made later has the same bits", !std::memcmp(again.data(), first.data(), n * sizeof(T)));
    emulate::launch(2, 32, false, [&] { scale(again.data(), &upstream, n); });
    expect("times one it has the same bits", !std::memcmp(again.data(), first.data(), n * sizeof(T)));
    upstream = -3;
    std::vector<T> scaled = run_twice<T>(n, [&](T *out, bool backwards) { run(out, &upstream, backwards); });
    emulate::launch(2, 32, false, [&] { scale(again.data(), &upstream, n); });
    for (double &g : gradient) g *= -3;
    compare(name, as_float(scaled), gradient, 3 * smallest, rounding);
    compare(name, as_float(again), gradient, 3 * smallest, 2 * rounding);
    std::free(s_raw);
    std::free(t_raw);
}

void check_all(Case c) {
    check<float>("f32", c, 1e-5);
    check<__nv_bfloat16>("bf16", c, 1.0 / 256);
    check<__half>("f16", c, 1.0 / 1024);
}

int main() {
    for (int columns : {1, 2, 10, 33, 129, 1000}) check_all({.batch = 3, .columns = columns, .threads = 0});
    for (int columns : {33, 1031}) check_all({.batch = 2, .columns = columns, .threads = 128});
    check_all({.batch = 5, .columns = 10, .threads = 0, .warps = 4});
    check_all({.batch = 1, .columns = 10, .threads = 0});
    check_all({.batch = 5, .columns = 100, .threads = 0, .teacher = false});
    check_all({.batch = 5, .columns = 100, .threads = 0, .teacher = false, .smoothing = 0.1f});
    check_all({.batch = 5, .columns = 100, .threads = 0, .labels = false});
    check_all({.batch = 2, .columns = 1031, .threads = 96, .labels = false, .temperature = 0.5f});
    check_all({.batch = 2, .columns = 1031, .threads = 96, .teacher = false, .smoothing = 1});
    check_all({.batch = 5, .columns = 10, .threads = 0, .temperature = 20, .smoothing = 0.3f});
    // Views: alike in alignment, and not.
    check_all({.batch = 3, .columns = 77, .threads = 0, .s_shift = 1, .t_shift = 1});
    check_all({.batch = 3, .columns = 77, .threads = 0, .s_shift = 1, .t_shift = 2});
    check_all({.batch = 2, .columns = 777, .threads = 64, .s_shift = 3});
    // Far apart.
    check<float>("f32", {.batch = 5, .columns = 10, .threads = 0, .spread = 1e4f}, 1e-5);
    check<float>("f32", {.batch = 2, .columns = 300, .threads = 64, .spread = 1e4f}, 1e-5);
    check<__nv_bfloat16>("bf16", {.batch = 5, .columns = 10, .threads = 0, .spread = 1e4f}, 1.0 / 256);
    check<__half>("f16", {.batch = 5, .columns = 10, .threads = 0, .spread = 1e4f}, 1.0 / 1024);
    // A label that is no class.
    check_all({.batch = 3, .columns = 10, .threads = 0, .bad_label = true});
    check_all({.batch = 2, .columns = 300, .threads = 64, .bad_label = true});
    // Many classes, and a block as large as it gets.
    check_all({.batch = 1, .columns = 100003, .threads = 128});
    check<float>("f32", {.batch = 1, .columns = 20001, .threads = 512}, 1e-5);
    return finish("loss");
}
