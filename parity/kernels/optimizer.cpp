// Adam, SGD and gradient norms over many tensors, against f64.
#include "check.h"

#include "../../crates/kd-ops/kernels/optimizer.cu"

struct Set {
    std::vector<std::vector<float>> parameters, grads;
    std::vector<size_t> starts;
    size_t total = 0;
    Tensors table{};
    unsigned chunks = 0;

    explicit Set(const std::vector<size_t> &sizes) {
        for (size_t size : sizes) {
            parameters.push_back(random_floats(size, 1, size));
            grads.push_back(random_floats(size, 2, size + 1));
        }
        for (size_t t = 0; t < sizes.size(); t++) {
            table.parameter[t] = parameters[t].data();
            table.grad[t] = grads[t].data();
            table.start[t] = total;
            table.size[t] = sizes[t];
            table.first_chunk[t] = chunks;
            starts.push_back(total);
            total += sizes[t];
            chunks += (sizes[t] + CHUNK - 1) / CHUNK;
        }
        table.first_chunk[sizes.size()] = chunks;
        table.count = sizes.size();
    }
};

static void check_adam(const std::vector<size_t> &sizes, double weight_decay, bool decoupled = false) {
    const double lr = 1e-2, beta1 = 0.9, beta2 = 0.999, eps = 1e-8;
    Set set(sizes);
    std::vector<float> first(set.total), second(set.total);
    std::vector<double> m(set.total), v(set.total), p(set.total), found(set.total);
    for (size_t t = 0; t < sizes.size(); t++)
        std::copy(set.parameters[t].begin(), set.parameters[t].end(), p.begin() + set.starts[t]);
    for (int step = 1; step <= 3; step++) {
        for (size_t t = 0; t < sizes.size(); t++) set.grads[t] = random_floats(sizes[t], 2, 100 * step + t), set.table.grad[t] = set.grads[t].data();
        // With the launch, or from memory.
        const Step now{0, {float(lr / (1 - std::pow(beta1, step))), float(std::sqrt(1 - std::pow(beta2, step))),
                          float(1 - lr * weight_decay)}};
        bool given = step == 2;
        emulate::launch(set.chunks, 7, step % 2 == 0, adam, set.table, first.data(), second.data(), float(beta1),
                        float(1 - beta1), float(beta2), float(1 - beta2), float(eps), float(decoupled ? 0 : weight_decay),
                        given ? NAN : now.scalars[0], given ? NAN : now.scalars[1], given ? NAN : now.scalars[2],
                        int(decoupled), given ? &now : (const Step *)nullptr);
        for (size_t t = 0; t < sizes.size(); t++)
            for (size_t i = 0; i < sizes[t]; i++) {
                size_t at = set.starts[t] + i;
                if (decoupled) p[at] *= 1 - lr * weight_decay;
                double grad = set.grads[t][i] + (decoupled ? 0 : weight_decay * p[at]);
                m[at] = beta1 * m[at] + (1 - beta1) * grad;
                v[at] = beta2 * v[at] + (1 - beta2) * grad * grad;
                double mean = m[at] / (1 - std::pow(beta1, step)), var = v[at] / (1 - std::pow(beta2, step));
                p[at] -= lr * mean / (std::sqrt(var) + eps);
                found[at] = set.parameters[t][i];
            }
        compare("adam", found, p, 2e-6, 2e-6);
        compare("adam first", first, m, 1e-6, 2e-6);
        compare("adam second", second, v, 1e-6, 2e-6);
    }
}

static void check_sgd(const std::vector<size_t> &sizes, double momentum, bool nesterov, double weight_decay) {
    const double lr = 0.1;
    Set set(sizes);
    std::vector<float> sums(set.total);
    std::vector<double> s(set.total), p(set.total), found(set.total);
    for (size_t t = 0; t < sizes.size(); t++)
        std::copy(set.parameters[t].begin(), set.parameters[t].end(), p.begin() + set.starts[t]);
    for (int step = 1; step <= 3; step++) {
        const Step now{0, {float(lr)}};
        bool given = step == 2;
        emulate::launch(set.chunks, 7, step % 2 == 0, sgd, set.table, momentum > 0 ? sums.data() : nullptr,
                        given ? NAN : float(lr), float(momentum), int(nesterov), float(weight_decay),
                        given ? &now : (const Step *)nullptr);
        for (size_t t = 0; t < sizes.size(); t++)
            for (size_t i = 0; i < sizes[t]; i++) {
                size_t at = set.starts[t] + i;
                double grad = set.grads[t][i] + weight_decay * p[at];
                s[at] = momentum * s[at] + grad;
                p[at] -= lr * (momentum == 0 ? grad : nesterov ? grad + momentum * s[at] : s[at]);
                found[at] = set.parameters[t][i];
            }
        compare("sgd", found, p, 2e-6, 2e-6);
    }
}

static void check_norms(const std::vector<size_t> &sizes, double max_norm) {
    Set set(sizes);
    if (sizes[0] > 2) set.grads[0][1] = 3e30f; // its square is no f32
    if (max_norm < 1e30) set.grads[0][0] = 0.5, set.grads[0][sizes[0] > 2 ? 1 : 0] = 1;
    std::vector<double> norms(sizes.size()), chunks(set.chunks);
    double all = 0;
    for (size_t t = 0; t < sizes.size(); t++) {
        double sum = 0;
        for (float g : set.grads[t]) sum += double(g) * g;
        norms[t] = std::sqrt(sum);
        all += sum;
    }
    std::vector<double> squares = run_twice<double>(set.chunks, [&](double *squares, bool back) {
        emulate::launch(set.chunks, 32, back, grad_norm_chunks, set.table, squares);
    });
    std::vector<double> found = run_twice<double>(sizes.size(), [&](double *norms, bool back) {
        emulate::launch(sizes.size(), 32, back, grad_norm_tensors, set.table, squares.data(), norms);
    });
    compare("norms", found, norms, 0, 1e-12);
    double total = 0;
    emulate::launch(1, 32, false, grad_norm_total, found.data(), int(sizes.size()), &total);
    compare("total norm", std::vector<double>{total}, std::vector<double>{std::sqrt(all)}, 0, 1e-12);
    double scale = std::min(1.0, max_norm / (std::sqrt(all) + 1e-6));
    std::vector<std::vector<float>> before = set.grads;
    emulate::launch(set.chunks, 7, true, grad_norm_clip, set.table, &total, max_norm);
    for (size_t t = 0; t < sizes.size(); t++) {
        std::vector<double> expected(sizes[t]);
        for (size_t i = 0; i < sizes[t]; i++) expected[i] = before[t][i] * scale;
        compare("clipped", set.grads[t], expected, 0, 1e-6);
    }
}

int main() {
    static_assert(sizeof(Tensors) <= 3584, "the table and the other arguments fit in 4 KiB");
    for (const std::vector<size_t> &sizes : {std::vector<size_t>{1}, {5, CHUNK, 1, CHUNK + 1, 100}, {CHUNK + 8, 16, 4}}) {
        check_adam(sizes, 0);
        check_adam(sizes, 0.01);
        check_adam(sizes, 0.1, true);
        check_sgd(sizes, 0, false, 0.01);
        check_sgd(sizes, 0.9, false, 0);
        check_sgd(sizes, 0.9, true, 0.01);
        check_norms(sizes, 1e31);
        check_norms(sizes, 5);
        check_norms(sizes, 1e9);
    }
    std::vector<size_t> many(TENSORS, 3);
    check_adam(many, 0);
    return finish("optimizer");
}
