// cuBLAS, cuRAND and cuDNN, as far as candle and kd call them: right, and as slow as a simple loop.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <type_traits>
#include <vector>

#include "device.h"
#include "threads.h"

namespace {

constexpr int OK = 0, REFUSED = 3;

int refuse(const char *what) {
    std::fprintf(stderr, "emulated GPU: %s\n", what);
    return REFUSED;
}

// ---- numbers

enum Type { F32 = 0, F64 = 1, F16 = 2, BF16 = 14 };

size_t bytes_of(int type) { return type == F64 ? 8 : type == F32 ? 4 : 2; }

double load(const void *at, size_t i, int type) {
    switch (type) {
    case F64: return ((const double *)at)[i];
    case F32: return ((const float *)at)[i];
    case BF16: return float(((const __nv_bfloat16 *)at)[i]);
    default: return float(((const __half *)at)[i]);
    }
}

void store(void *at, size_t i, int type, double value) {
    switch (type) {
    case F64: ((double *)at)[i] = value; break;
    case F32: ((float *)at)[i] = float(value); break;
    case BF16: ((__nv_bfloat16 *)at)[i] = float(value); break;
    default: ((__half *)at)[i] = float(value); break;
    }
}

// To 10 bits of mantissa, ties away from zero, as tensor cores are given f32.
float tf32(float x) {
    if (!std::isfinite(x)) return x;
    return __uint_as_float((__float_as_uint(x) + 0x1000) & ~0x1fffu);
}

// row += factor * other, with the widest vectors that the processor has; without fused products, so that all give the same.
#define WIDE __attribute__((target_clones("avx512f", "avx2", "default"), optimize("O3")))
WIDE void add(float *row, float factor, const float *other, size_t n) {
    for (size_t j = 0; j < n; j++) row[j] += factor * other[j];
}
WIDE void add(double *row, double factor, const double *other, size_t n) {
    for (size_t j = 0; j < n; j++) row[j] += factor * other[j];
}

// c [m, n] = a [m, k] * b [k, n], all packed; each element's sum in the order of k.
template <class T> void product(const T *a, const T *b, T *c, size_t m, size_t n, size_t k) {
    constexpr size_t ROWS = 8;
    // So much of a row stays in the first cache while the factors go over it.
    constexpr size_t COLUMNS = 2048;
    std::fill(c, c + m * n, T(0));
    gpu::for_each((m + ROWS - 1) / ROWS, [&](size_t block) {
        for (size_t j = 0; j < n; j += COLUMNS)
            for (size_t i = block * ROWS; i < std::min(m, block * ROWS + ROWS); i++)
                for (size_t l = 0; l < k; l++) add(c + i * n + j, a[i * k + l], b + l * n + j, std::min(COLUMNS, n - j));
    });
}

// A matrix of cuBLAS, by columns, as [rows, columns] of op(matrix).
template <class T> std::vector<T> packed(const void *from, int type, bool transposed, int rows, int columns, int leading, bool round) {
    std::vector<T> to(size_t(rows) * columns);
    if (transposed && !round && type == (std::is_same_v<T, double> ? F64 : F32)) {
        for (size_t i = 0; i < size_t(rows); i++) std::memcpy(&to[i * columns], (const T *)from + i * leading, columns * sizeof(T));
        return to;
    }
    for (size_t i = 0; i < size_t(rows); i++)
        for (size_t j = 0; j < size_t(columns); j++) {
            T value = load(from, transposed ? i * leading + j : j * leading + i, type);
            to[i * columns + j] = round ? T(tf32(float(value))) : value;
        }
    return to;
}

struct Gemm {
    int transposes_a, transposes_b, m, n, k;
    const void *a, *b;
    void *c;
    int type_a, type_b, type_c, lda, ldb, ldc;
    double alpha, beta;
    bool round;
};

template <class T> void gemm_in(const Gemm &g) {
    std::vector<T> a = packed<T>(g.a, g.type_a, g.transposes_a, g.m, g.k, g.lda, g.round);
    std::vector<T> b = packed<T>(g.b, g.type_b, g.transposes_b, g.k, g.n, g.ldb, g.round);
    std::vector<T> c(size_t(g.m) * g.n);
    product(a.data(), b.data(), c.data(), g.m, g.n, g.k);
    for (size_t i = 0; i < size_t(g.m); i++)
        for (size_t j = 0; j < size_t(g.n); j++) {
            size_t at = j * g.ldc + i;
            double before = g.beta == 0 ? 0 : g.beta * load(g.c, at, g.type_c);
            store(g.c, at, g.type_c, g.alpha * c[i * g.n + j] + before);
        }
}

struct Handle {
    void *stream = nullptr;
};

gpu::Use matrix(const void *at, int type, int rows, int columns, int leading) {
    return {at, rows && columns ? (size_t(leading) * (columns - 1) + rows) * bytes_of(type) : 0};
}

int gemm(void *handle, Gemm g) {
    std::vector<gpu::Use> uses{matrix(g.a, g.type_a, g.transposes_a ? g.k : g.m, g.transposes_a ? g.m : g.k, g.lda),
                               matrix(g.b, g.type_b, g.transposes_b ? g.n : g.k, g.transposes_b ? g.k : g.n, g.ldb),
                               matrix(g.c, g.type_c, g.m, g.n, g.ldc)};
    auto work = [=] { g.type_a == F64 ? gemm_in<double>(g) : gemm_in<float>(g); };
    return gpu::submit(((Handle *)handle)->stream, "cuBLAS products", uses, work) ? REFUSED : OK;
}

} // namespace

// ---- cuBLAS

EXPORT int cublasCreate_v2(void **handle) { return *handle = new Handle, OK; }
EXPORT int cublasDestroy_v2(void *handle) { return delete (Handle *)handle, OK; }
EXPORT int cublasSetStream_v2(void *handle, void *stream) { return ((Handle *)handle)->stream = stream, OK; }

EXPORT int cublasGemmStridedBatchedEx(void *handle, int transposes_a, int transposes_b, int m, int n, int k, const void *alpha,
                                      const void *a, int type_a, int lda, long long stride_a, const void *b, int type_b, int ldb,
                                      long long stride_b, const void *beta, void *c, int type_c, int ldc, long long stride_c,
                                      int batches, int compute, int) {
    constexpr int IN_F32 = 68, IN_F32_FAST_BF16 = 75, IN_F32_FAST_TF32 = 77;
    if (compute != IN_F32 && compute != IN_F32_FAST_BF16 && compute != IN_F32_FAST_TF32)
        return refuse("a product in arithmetic that the emulation does not know");
    for (int i = 0; i < batches; i++) {
        auto at = [&](const void *from, int type, long long stride) { return (char *)from + i * stride * (long long)bytes_of(type); };
        Gemm g{transposes_a, transposes_b, m, n, k, at(a, type_a, stride_a), at(b, type_b, stride_b), at(c, type_c, stride_c),
               type_a, type_b, type_c, lda, ldb, ldc, *(const float *)alpha, *(const float *)beta,
               compute == IN_F32_FAST_TF32 && type_a == F32};
        if (int error = gemm(handle, g)) return error;
    }
    return OK;
}

EXPORT int cublasDgemmStridedBatched(void *handle, int transposes_a, int transposes_b, int m, int n, int k, const double *alpha,
                                     const double *a, int lda, long long stride_a, const double *b, int ldb, long long stride_b,
                                     const double *beta, double *c, int ldc, long long stride_c, int batches) {
    for (int i = 0; i < batches; i++) {
        Gemm g{transposes_a, transposes_b, m, n, k, a + i * stride_a, b + i * stride_b, c + i * stride_c,
               F64, F64, F64, lda, ldb, ldc, *alpha, *beta, false};
        if (int error = gemm(handle, g)) return error;
    }
    return OK;
}

// ---- cuRAND

namespace {
struct Generator {
    void *stream = nullptr;
    std::mt19937_64 numbers;
};
template <class T, class D> int draw(void *generator, T *to, size_t count, D distribution) {
    Generator *g = (Generator *)generator;
    auto work = [=]() mutable {
        for (size_t i = 0; i < count; i++) to[i] = distribution(g->numbers);
    };
    return gpu::submit(g->stream, "random numbers", {{to, count * sizeof(T)}}, work) ? REFUSED : OK;
}
} // namespace

EXPORT int curandCreateGenerator(void **generator, int) { return *generator = new Generator, OK; }
EXPORT int curandDestroyGenerator(void *generator) { return delete (Generator *)generator, OK; }
EXPORT int curandSetStream(void *generator, void *stream) { return ((Generator *)generator)->stream = stream, OK; }
EXPORT int curandSetPseudoRandomGeneratorSeed(void *generator, unsigned long long seed) {
    return ((Generator *)generator)->numbers.seed(seed), OK;
}
EXPORT int curandGenerateUniform(void *generator, float *to, size_t count) {
    return draw(generator, to, count, std::uniform_real_distribution<float>());
}
EXPORT int curandGenerateUniformDouble(void *generator, double *to, size_t count) {
    return draw(generator, to, count, std::uniform_real_distribution<double>());
}
EXPORT int curandGenerateNormal(void *generator, float *to, size_t count, float mean, float deviation) {
    if (count % 2) return refuse("cuRAND makes even counts of normal numbers");
    return draw(generator, to, count, std::normal_distribution<float>(mean, deviation));
}
EXPORT int curandGenerateNormalDouble(void *generator, double *to, size_t count, double mean, double deviation) {
    if (count % 2) return refuse("cuRAND makes even counts of normal numbers");
    return draw(generator, to, count, std::normal_distribution<double>(mean, deviation));
}

// ---- cuDNN: convolutions

namespace {

// A tensor NCHW, or a filter with its output channels first.
struct Tensor {
    int type = -1, sizes[4] = {};
    size_t count() const { return size_t(sizes[0]) * sizes[1] * sizes[2] * sizes[3]; }
};

struct Convolution {
    int padding[2] = {}, stride[2] = {}, dilation[2] = {}, mode = 1, type = -1, math = 0;
};

constexpr int TENSOR_OP_MATH = 1, FMA_MATH = 3;
constexpr int CUDNN_F32 = 0, CUDNN_F64 = 1, CUDNN_F16 = 2, CUDNN_BF16 = 9, BAD_PARAMETER = 2002;

int blas_type(int type) { return type == CUDNN_BF16 ? BF16 : type == CUDNN_F64 ? F64 : type == CUDNN_F16 ? F16 : F32; }

int bad(const char *what) {
    refuse(what);
    return BAD_PARAMETER;
}

struct Pass {
    Tensor x, w, y;
    Convolution c;
    size_t window() const { return size_t(w.sizes[1]) * w.sizes[2] * w.sizes[3]; }
    size_t pixels() const { return size_t(y.sizes[2]) * y.sizes[3]; }

    const char *wrong() const {
        for (int i = 0; i < 2; i++) {
            int reach = c.dilation[i] * (w.sizes[2 + i] - 1) + 1;
            if (c.stride[i] <= 0 || c.dilation[i] <= 0) return "a convolution's stride or dilation is not positive";
            if ((x.sizes[2 + i] + 2 * c.padding[i] - reach) / c.stride[i] + 1 != y.sizes[2 + i]) return "a convolution's output has a wrong size";
        }
        if (x.sizes[0] != y.sizes[0] || x.sizes[1] != w.sizes[1] || y.sizes[1] != w.sizes[0]) return "a convolution's channels or images do not agree";
        if (x.type != y.type || x.type != w.type) return "a convolution's numbers are not of one type";
        if (c.type != CUDNN_F32 && c.type != CUDNN_F64) return "a convolution must sum in f32 or f64";
        if (c.mode != 1) return "a convolution must be a cross-correlation";
        return nullptr;
    }
    // Calls `body(place in a window, output pixel, place in the image)` for what lies inside of the image.
    template <class F> void each(F body) const {
        for (int channel = 0; channel < w.sizes[1]; channel++)
            for (int i = 0; i < w.sizes[2]; i++)
                for (int j = 0; j < w.sizes[3]; j++)
                    for (int row = 0; row < y.sizes[2]; row++)
                        for (int column = 0; column < y.sizes[3]; column++) {
                            int r = row * c.stride[0] - c.padding[0] + i * c.dilation[0];
                            int s = column * c.stride[1] - c.padding[1] + j * c.dilation[1];
                            if (r < 0 || r >= x.sizes[2] || s < 0 || s >= x.sizes[3]) continue;
                            body((size_t(channel) * w.sizes[2] + i) * w.sizes[3] + j, size_t(row) * y.sizes[3] + column,
                                 (size_t(channel) * x.sizes[2] + r) * x.sizes[3] + s);
                        }
    }
    // Every math type but that of plain products lets f32 become TF32.
    bool rounds() const { return c.math != FMA_MATH && x.type == CUDNN_F32; }
    // What each algorithm asks for, so that a workspace that is missing, another shape's or another algorithm's is found.
    size_t workspace(int algorithm) const { return 1024 + 64 * size_t(algorithm) + 16 * y.count(); }
};

float factor(const void *at, size_t i, int type, bool rounds) {
    float value = float(load(at, i, blas_type(type)));
    return rounds ? tf32(value) : value;
}

std::vector<float> factors(const void *at, size_t from, size_t count, int type, bool rounds) {
    std::vector<float> all(count);
    for (size_t i = 0; i < count; i++) all[i] = factor(at, from + i, type, rounds);
    return all;
}

std::vector<float> transposed(const std::vector<float> &a, size_t rows, size_t columns) {
    std::vector<float> b(a.size());
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < columns; j++) b[j * rows + i] = a[i * columns + j];
    return b;
}

// An image's windows, [window, output pixels].
std::vector<float> columns(const Pass &p, const void *x, size_t image) {
    size_t size = p.x.count() / p.x.sizes[0];
    std::vector<float> all(p.window() * p.pixels()), values = factors(x, image * size, size, p.x.type, p.rounds());
    p.each([&](size_t place, size_t pixel, size_t from) { all[place * p.pixels() + pixel] = values[from]; });
    return all;
}

void forward(const Pass &p, const void *x, const void *w, void *y) {
    size_t filters = p.w.sizes[0], out = filters * p.pixels();
    std::vector<float> weight = factors(w, 0, p.w.count(), p.w.type, p.rounds()), result(out);
    for (size_t image = 0; image < size_t(p.x.sizes[0]); image++) {
        product(weight.data(), columns(p, x, image).data(), result.data(), filters, p.pixels(), p.window());
        for (size_t i = 0; i < out; i++) store(y, image * out + i, blas_type(p.y.type), result[i]);
    }
}

// With `add` to what is there.
void backward_data(const Pass &p, const void *w, const void *dy, void *dx, bool add) {
    size_t filters = p.w.sizes[0], out = filters * p.pixels(), in = p.x.count() / p.x.sizes[0];
    std::vector<float> weight = transposed(factors(w, 0, p.w.count(), p.w.type, p.rounds()), filters, p.window());
    std::vector<float> windows(p.window() * p.pixels()), result(in);
    for (size_t image = 0; image < size_t(p.x.sizes[0]); image++) {
        std::vector<float> gradient = factors(dy, image * out, out, p.y.type, p.rounds());
        product(weight.data(), gradient.data(), windows.data(), p.window(), p.pixels(), filters);
        std::fill(result.begin(), result.end(), 0.0f);
        p.each([&](size_t place, size_t pixel, size_t to) { result[to] += windows[place * p.pixels() + pixel]; });
        for (size_t i = 0; i < in; i++) {
            size_t at = image * in + i;
            double before = add ? load(dx, at, blas_type(p.x.type)) : 0;
            store(dx, at, blas_type(p.x.type), before + result[i]);
        }
    }
}

void backward_filter(const Pass &p, const void *x, const void *dy, void *dw) {
    size_t filters = p.w.sizes[0], out = filters * p.pixels();
    std::vector<float> sum(p.w.count()), result(p.w.count());
    for (size_t image = 0; image < size_t(p.x.sizes[0]); image++) {
        std::vector<float> gradient = factors(dy, image * out, out, p.y.type, p.rounds());
        std::vector<float> windows = transposed(columns(p, x, image), p.window(), p.pixels());
        product(gradient.data(), windows.data(), result.data(), filters, p.window(), p.pixels());
        for (size_t i = 0; i < sum.size(); i++) sum[i] += result[i];
    }
    for (size_t i = 0; i < sum.size(); i++) store(dw, i, blas_type(p.w.type), sum[i]);
}

struct Proposal {
    int algorithm, status;
    float time;
    size_t memory;
    int determinism, math, reserved[3];
};

// What an algorithm's number says here: two are proposed and refused afterwards, as cuDNN does at times.
enum Algorithm { REFUSED_IN_USE = 0, ANY = 1, REFUSED_FOR_ITS_WORKSPACE = 2, WITH_TENSOR_CORES = 3, NOT_REPEATABLE = 4, NOT_THERE = 5 };

constexpr int NOT_SUPPORTED = 3000;

// As cuDNN gives them, the quickest first: those that fail, one that is not deterministic, one with tensor cores, one without.
std::vector<Proposal> proposals(const Pass &p) {
    constexpr int NOT_DETERMINISTIC = 0, DETERMINISTIC = 1;
    // As for PyTorch, bf16 is proposed with its own math type.
    int plain = p.x.type == CUDNN_BF16 ? TENSOR_OP_MATH : FMA_MATH;
    return {{NOT_THERE, NOT_SUPPORTED, -1, 0, DETERMINISTIC, FMA_MATH, {}},
            {NOT_REPEATABLE, OK, 1, p.workspace(NOT_REPEATABLE), NOT_DETERMINISTIC, FMA_MATH, {}},
            {REFUSED_FOR_ITS_WORKSPACE, OK, 1, p.workspace(REFUSED_FOR_ITS_WORKSPACE), DETERMINISTIC, plain, {}},
            {REFUSED_IN_USE, OK, 1, p.workspace(REFUSED_IN_USE), DETERMINISTIC, plain, {}},
            {WITH_TENSOR_CORES, OK, 2, p.workspace(WITH_TENSOR_CORES), DETERMINISTIC, TENSOR_OP_MATH, {}},
            {ANY, OK, 3, p.workspace(ANY), DETERMINISTIC, plain, {}}};
}

int propose(int asked, int *given, Proposal *to, Pass p) {
    std::vector<Proposal> all = proposals(p);
    *given = std::min(asked, int(all.size()));
    std::copy(all.begin(), all.begin() + *given, to);
    return OK;
}

int workspace_of(int algorithm, size_t *bytes, const Pass &p) {
    if (const char *what = p.wrong()) return bad(what);
    if (algorithm == REFUSED_FOR_ITS_WORKSPACE) return NOT_SUPPORTED;
    return *bytes = p.workspace(algorithm), OK;
}

gpu::Use tensor_at(const void *at, const Tensor &t) { return {at, t.count() * bytes_of(blas_type(t.type))}; }

template <class Work>
int convolve(void *handle, const char *name, Pass p, int algorithm, const void *a, const Tensor &ta, const void *b, const Tensor &tb,
             void *to, const Tensor &tto, void *workspace, size_t bytes, const float *alpha, const float *beta, Work work) {
    if (const char *what = p.wrong()) return bad(what);
    if (algorithm == REFUSED_IN_USE) return NOT_SUPPORTED;
    if (algorithm != ANY && algorithm != WITH_TENSOR_CORES) return bad("a convolution's algorithm is not deterministic, or not there");
    bool as_proposed = false;
    for (const Proposal &proposal : proposals(p)) as_proposed |= proposal.algorithm == algorithm && proposal.math == p.c.math;
    if (!as_proposed) return bad("a convolution's math type is not the one that its algorithm was proposed with");
    // Kernels for tensor cores read 16 bytes at a time.
    for (const void *at : {a, b, (const void *)to, (const void *)workspace})
        if (size_t(at) % 16) return bad("a convolution's tensor is not aligned to 16 bytes");
    if (*alpha != 1 || *beta != 0) return bad("a convolution must be scaled by 1 and, but for the gradient of its input, added to nothing");
    if (bytes != p.workspace(algorithm)) return bad("a convolution's workspace has another size than it asks for");
    auto run = [=] {
        std::memset(workspace, 0xff, bytes);
        work(p, a, b, to);
    };
    std::vector<gpu::Use> uses{tensor_at(a, ta), tensor_at(b, tb), tensor_at(to, tto), {workspace, bytes}};
    return gpu::submit(((Handle *)handle)->stream, name, uses, run) ? BAD_PARAMETER : OK;
}

} // namespace

EXPORT int cudnnCreate(void **handle) { return *handle = new Handle, OK; }
EXPORT int cudnnDestroy(void *handle) { return delete (Handle *)handle, OK; }
EXPORT int cudnnSetStream(void *handle, void *stream) { return ((Handle *)handle)->stream = stream, OK; }
EXPORT size_t cudnnGetVersion() { return 91900; }
EXPORT int cudnnCreateTensorDescriptor(Tensor **t) { return *t = new Tensor, OK; }
EXPORT int cudnnDestroyTensorDescriptor(Tensor *t) { return delete t, OK; }
EXPORT int cudnnCreateFilterDescriptor(Tensor **t) { return *t = new Tensor, OK; }
EXPORT int cudnnDestroyFilterDescriptor(Tensor *t) { return delete t, OK; }
EXPORT int cudnnCreateConvolutionDescriptor(Convolution **c) { return *c = new Convolution, OK; }
EXPORT int cudnnDestroyConvolutionDescriptor(Convolution *c) { return delete c, OK; }
EXPORT int cudnnSetTensor4dDescriptor(Tensor *t, int format, int type, int n, int c, int h, int w) {
    if (format != 0) return bad("a tensor must be NCHW");
    return *t = {type, {n, c, h, w}}, OK;
}
EXPORT int cudnnSetFilter4dDescriptor(Tensor *t, int type, int format, int k, int c, int h, int w) {
    if (format != 0) return bad("a filter must be NCHW");
    return *t = {type, {k, c, h, w}}, OK;
}
EXPORT int cudnnSetConvolution2dDescriptor(Convolution *d, int pad_h, int pad_w, int u, int v, int dilation_h, int dilation_w, int mode, int type) {
    return *d = {{pad_h, pad_w}, {u, v}, {dilation_h, dilation_w}, mode, type, 0}, OK;
}
EXPORT int cudnnSetConvolutionMathType(Convolution *d, int math) { return d->math = math, OK; }

EXPORT int cudnnGetConvolutionForwardAlgorithm_v7(void *, Tensor *x, Tensor *w, Convolution *c, Tensor *y, int asked, int *given, Proposal *to) {
    return propose(asked, given, to, {*x, *w, *y, *c});
}
EXPORT int cudnnGetConvolutionBackwardDataAlgorithm_v7(void *, Tensor *w, Tensor *y, Convolution *c, Tensor *x, int asked, int *given, Proposal *to) {
    return propose(asked, given, to, {*x, *w, *y, *c});
}
EXPORT int cudnnGetConvolutionBackwardFilterAlgorithm_v7(void *, Tensor *x, Tensor *y, Convolution *c, Tensor *w, int asked, int *given, Proposal *to) {
    return propose(asked, given, to, {*x, *w, *y, *c});
}
EXPORT int cudnnGetConvolutionForwardWorkspaceSize(void *, Tensor *x, Tensor *w, Convolution *c, Tensor *y, int algorithm, size_t *bytes) {
    return workspace_of(algorithm, bytes, {*x, *w, *y, *c});
}
EXPORT int cudnnGetConvolutionBackwardDataWorkspaceSize(void *, Tensor *w, Tensor *dy, Convolution *c, Tensor *dx, int algorithm, size_t *bytes) {
    return workspace_of(algorithm, bytes, {*dx, *w, *dy, *c});
}
EXPORT int cudnnGetConvolutionBackwardFilterWorkspaceSize(void *, Tensor *x, Tensor *dy, Convolution *c, Tensor *dw, int algorithm, size_t *bytes) {
    return workspace_of(algorithm, bytes, {*x, *dw, *dy, *c});
}
EXPORT int cudnnConvolutionForward(void *handle, const float *alpha, Tensor *tx, const void *x, Tensor *tw, const void *w, Convolution *c,
                                   int algorithm, void *workspace, size_t bytes, const float *beta, Tensor *ty, void *y) {
    return convolve(handle, "cuDNN forward", {*tx, *tw, *ty, *c}, algorithm, x, *tx, w, *tw, y, *ty, workspace, bytes, alpha, beta, forward);
}
EXPORT int cudnnConvolutionBackwardData(void *handle, const float *alpha, Tensor *tw, const void *w, Tensor *ty, const void *dy, Convolution *c,
                                        int algorithm, void *workspace, size_t bytes, const float *beta, Tensor *tx, void *dx) {
    if (*beta != 0 && *beta != 1) return bad("the gradient of a convolution's input must be written, or added to what is there");
    const float nothing = 0;
    auto work = [add = *beta == 1](const Pass &p, const void *w, const void *dy, void *dx) { backward_data(p, w, dy, dx, add); };
    return convolve(handle, "cuDNN backward data", {*tx, *tw, *ty, *c}, algorithm, w, *tw, dy, *ty, dx, *tx, workspace, bytes, alpha, &nothing, work);
}
EXPORT int cudnnConvolutionBackwardFilter(void *handle, const float *alpha, Tensor *tx, const void *x, Tensor *ty, const void *dy, Convolution *c,
                                          int algorithm, void *workspace, size_t bytes, const float *beta, Tensor *tw, void *dw) {
    return convolve(handle, "cuDNN backward filter", {*tx, *tw, *ty, *c}, algorithm, x, *tx, dy, *ty, dw, *tw, workspace, bytes, alpha, beta, backward_filter);
}
