"""The methods' losses, written from their papers' formulas for make_fixtures.py: f64, one image or one pair at a time
where that is how the paper says it, so that they share nothing with the Rust code but the paper."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def kl(q: Tensor, p: Tensor) -> Tensor:
    """KL(q || p) of two vectors of probabilities."""
    return (q * (q.log() - p.log())).sum()


def standardized(z: Tensor) -> Tensor:
    """Sun et al. 2024, algorithm 1."""
    return (z - z.mean(1, keepdim=True)) / (z.std(1, unbiased=True, keepdim=True) + 1e-7)


def kd(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Hinton et al. 2015, T² KL, mean over images."""
    p, q = F.softmax(student / temperature, 1), F.softmax(teacher / temperature, 1)
    return temperature**2 * torch.stack([kl(q[i], p[i]) for i in range(len(p))]).mean()


def dkd(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, alpha: float, beta: float) -> Tensor:
    """Zhao et al. 2022, equation 7."""
    total = []
    for z, t, label in zip(student / temperature, teacher / temperature, labels):
        p, q = F.softmax(z, 0), F.softmax(t, 0)
        others = [j for j in range(len(z)) if j != label]
        target = kl(torch.stack([q[label], q[others].sum()]), torch.stack([p[label], p[others].sum()]))
        non_target = kl(F.softmax(t[others], 0), F.softmax(z[others], 0))
        total.append(alpha * target + beta * non_target)
    return temperature**2 * torch.stack(total).mean()


def pearson(a: Tensor, b: Tensor) -> Tensor:
    a, b = a - a.mean(), b - b.mean()
    return (a @ b) / (a.norm() * b.norm() + 1e-8)


def dist(student: Tensor, teacher: Tensor, temperature: float, beta: float, gamma: float) -> Tensor:
    """Huang et al. 2022, equations 8 to 10."""
    p, q = F.softmax(student / temperature, 1), F.softmax(teacher / temperature, 1)
    inter = torch.stack([1 - pearson(a, b) for a, b in zip(p, q)]).mean()
    intra = torch.stack([1 - pearson(a, b) for a, b in zip(p.T, q.T)]).mean()
    return temperature**2 * (beta * inter + gamma * intra)


def mlkd(student: Tensor, teacher: Tensor, temperatures: list[float], instance: float, batch: float, classes: float) -> Tensor:
    """Jin et al. 2023, equations 3 to 11, of one view and without masks."""
    total = torch.zeros(())
    for temperature in temperatures:
        p, q = F.softmax(student / temperature, 1), F.softmax(teacher / temperature, 1)
        images, count = p.shape
        of_batch = sum((p[i] @ p[j] - q[i] @ q[j]) ** 2 for i in range(images) for j in range(images)) / images
        of_classes = sum((p[:, i] @ p[:, j] - q[:, i] @ q[:, j]) ** 2 for i in range(count) for j in range(count)) / count
        total = total + instance * kd(student, teacher, temperature) + batch * of_batch + classes * of_classes
    return total


def ttm(student: Tensor, teacher: Tensor, gamma: float, weighted: bool) -> Tensor:
    """Zheng and Yang 2024: KL to the power of the teacher's probabilities, weighted by the power's sum or not."""
    total = []
    for z, t in zip(student, teacher):
        powers = F.softmax(t, 0) ** gamma
        total.append((powers.sum() if weighted else 1.0) * kl(powers / powers.sum(), F.softmax(z, 0)))
    return torch.stack(total).mean()


def same_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    size = min(student.shape[2], teacher.shape[2])
    return F.adaptive_avg_pool2d(student, size), F.adaptive_avg_pool2d(teacher, size)


def attention(student: Tensor, teacher: Tensor) -> Tensor:
    """Zagoruyko and Komodakis 2017, equation 2, as the mean of squares."""
    student, teacher = same_size(student, teacher)
    maps = [F.normalize(x.pow(2).mean(1).flatten(1)) for x in (student, teacher)]
    return (maps[0] - maps[1]).pow(2).mean()


def nst(student: Tensor, teacher: Tensor) -> Tensor:
    """Huang and Wang 2017, equation 4 with the polynomial kernel (d = 2, c = 0)."""
    student, teacher = same_size(student, teacher)
    total = []
    for s, t in zip(student, teacher):
        s, t = F.normalize(s.flatten(1)), F.normalize(t.flatten(1))
        mean_kernel = lambda a, b: torch.stack([(x @ y) ** 2 for x in a for y in b]).mean()
        total.append(mean_kernel(t, t) + mean_kernel(s, s) - 2 * mean_kernel(s, t))
    return torch.stack(total).mean()


def fsp(first: Tensor, last: Tensor, teacher_first: Tensor, teacher_last: Tensor) -> Tensor:
    """Yim et al. 2017, equations 1 and 2."""
    def flow(a: Tensor, b: Tensor) -> Tensor:
        a, b = same_size(a, b)
        return torch.einsum("bihw,bjhw->bij", a, b) / (a.shape[2] * a.shape[3])
    return (flow(first, last) - flow(teacher_first, teacher_last)).pow(2).mean()


def vid(mean: Tensor, alpha: Tensor, teacher: Tensor) -> Tensor:
    """Ahn et al. 2019, equations 5 and 6, by PyTorch's own Gaussian likelihood."""
    variance = (F.softplus(alpha) + 1e-5).view(1, -1, 1, 1).expand_as(mean)
    return F.gaussian_nll_loss(mean, teacher, variance, eps=1e-12)


def normed(x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """A convolution that keeps the map's size, and batch normalisation over the batch."""
    return F.batch_norm(F.conv2d(x, weight, padding=weight.shape[2] // 2), None, None, scale, shift, training=True)


def factor_transfer(student: Tensor, teacher: Tensor) -> Tensor:
    """Kim et al. 2018, equation 3 with p = 1."""
    return torch.stack([(s / s.norm() - t / t.norm()).abs().mean() for s, t in zip(student.flatten(1), teacher.flatten(1))]).mean()


def factor_transfer_whole(reconstruction: float, student: Tensor, *rest: Tensor) -> Tensor:
    """The same with translator and paraphraser (section 3); transposed convolutions of stride 1 as convolutions."""
    layers, teacher = rest[:-1], rest[-1]
    for i in range(3):
        student = F.leaky_relu(normed(student, *layers[3 * i : 3 * i + 3]), 0.1)
    x = teacher
    for i in range(6):
        x = F.leaky_relu(F.conv2d(x, *layers[9 + 2 * i : 11 + 2 * i], padding=1), 0.1)
        factor = x.detach() if i == 2 else factor if i > 2 else None
    return factor_transfer(student, factor) + reconstruction * F.mse_loss(x, teacher)


def activation_boundaries(student: Tensor, teacher: Tensor, margin: float) -> Tensor:
    """Heo et al. 2019, equation 4: the squared hinge on the side of the boundary where the teacher is."""
    total = sum(max(margin - s, s * 0) ** 2 if t > 0 else max(margin + s, s * 0) ** 2 for s, t in zip(student.flatten(), teacher.flatten()))
    return total / len(student)


def ofd(student: Tensor, teacher: Tensor) -> Tensor:
    """Heo et al. 2019 (overhaul), equations 1 to 5, with the margins of the batch."""
    total = []
    for channel in range(teacher.shape[1]):
        s, t = student[:, channel].flatten(), teacher[:, channel].flatten()
        margin = t[t < 0].mean() if (t < 0).any() else torch.zeros(())
        for a, b in zip(s, t):
            target = torch.maximum(b, margin)
            if b > 0 or a > target:
                total.append((a - target) ** 2)
    return torch.stack(total).sum() / len(student)


def hierarchical_context(student: Tensor, teacher: Tensor) -> Tensor:
    """Chen et al. 2021, section 3.3, with the weights 1, 1/2, 1/4, 1/8 by their sum."""
    terms = [(1.0, F.mse_loss(student, teacher))]
    for size in (4, 2, 1):
        if size < student.shape[2]:
            pooled = [F.adaptive_avg_pool2d(x, size) for x in (student, teacher)]
            terms.append((terms[-1][0] / 2, F.mse_loss(*pooled)))
    return sum(weight * term for weight, term in terms) / sum(weight for weight, _ in terms)


def reviewkd_whole(stages: int, *tensors: Tensor) -> Tensor:
    """Chen et al. 2021, figure 3: attention-based fusion from the last stage on."""
    vector = lambda x: x[:, :, None, None] if x.dim() == 2 else x
    students, teachers = [vector(x) for x in tensors[:stages]], [vector(x) for x in tensors[-stages:]]
    helpers = list(tensors[stages:-stages])
    total, behind = torch.zeros(()), None
    for student, teacher, i in reversed(list(zip(students, teachers, range(stages)))):
        own = helpers[8 * i : 8 * i + 8]
        x = normed(student, *own[:3])
        if behind is not None:
            y = F.interpolate(behind, x.shape[2:], mode="nearest")
            z = torch.sigmoid(F.conv2d(torch.cat([x, y], 1), own[6][:, :, None, None], own[7]))
            x = x * z[:, :1] + y * z[:, 1:]
        x = behind = F.interpolate(x, teacher.shape[2:], mode="nearest")
        total = total + hierarchical_context(normed(x, *own[3:6]), teacher)
    return total


def distances(x: Tensor) -> Tensor:
    """Park et al. 2019, equations 4 and 5."""
    n = len(x)
    d = torch.stack([torch.stack([(x[i] - x[j]).norm() if i != j else x.new_zeros(()) for j in range(n)]) for i in range(n)])
    return d / (d.sum() / (n * (n - 1)))


def rkd_distance(student: Tensor, teacher: Tensor) -> Tensor:
    return F.huber_loss(distances(student.flatten(1)), distances(teacher.flatten(1)))


def angles(x: Tensor) -> Tensor:
    """Park et al. 2019, equation 8: the cosine at j of i and k."""
    n = len(x)
    zero = torch.zeros_like(x[0])
    unit = lambda i, j: (x[i] - x[j]) / (x[i] - x[j]).norm() if i != j else zero
    return torch.stack([unit(i, j) @ unit(k, j) for j in range(n) for i in range(n) for k in range(n)])


def rkd_angle(student: Tensor, teacher: Tensor) -> Tensor:
    return F.huber_loss(angles(student.flatten(1)), angles(teacher.flatten(1)))


def similarity(student: Tensor, teacher: Tensor) -> Tensor:
    """Tung and Mori 2019, equations 2 to 4."""
    g = [F.normalize(x.flatten(1) @ x.flatten(1).T) for x in (student, teacher)]
    return (g[0] - g[1]).norm() ** 2 / len(student) ** 2


def congruence(student: Tensor, teacher: Tensor, gamma: float, order: int) -> Tensor:
    """Peng et al. 2019, equations 5, 8 and 9."""
    def kernel(x: Tensor) -> Tensor:
        x = F.normalize(x.flatten(1))
        terms = [(2 * gamma) ** p / math.factorial(p) * (x @ x.T) ** p for p in range(order + 1)]
        return math.exp(-2 * gamma) * sum(terms)
    return (kernel(student) - kernel(teacher)).pow(2).sum() / len(student) ** 2


def pkt(student: Tensor, teacher: Tensor) -> Tensor:
    """Passalis and Tefas 2018, equations 3, 4, 6 and 9."""
    def neighbours(x: Tensor) -> Tensor:
        x = x.flatten(1)
        k = (F.cosine_similarity(x[:, None], x[None], dim=2) + 1) / 2
        return k / k.sum(1, keepdim=True)
    p, q = neighbours(student), neighbours(teacher)
    return (q * (q.log() - p.log())).mean()


def crd_nce(similarities: Tensor, normalizer: float, images: int) -> Tensor:
    """Tian et al. 2020, equations 10, 11 and 19."""
    total = []
    for row in similarities:
        p, n = row / normalizer, len(row) - 1
        h = p / (p + n / images)
        total.append(-h[0].log() - (1 - h[1:]).log().sum())
    return torch.stack(total).mean()


def label_smoothing(student: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Szegedy et al. 2016, section 7."""
    log_p, classes = F.log_softmax(student, 1), student.shape[1]
    target = torch.full_like(log_p, smoothing / classes)
    target[torch.arange(len(labels)), labels] += 1 - smoothing
    return -(target * log_p).sum(1).mean()
