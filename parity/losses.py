"""PyTorch's values and gradients of kd-loss' methods."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import methods
from hashed import hashed


def losses() -> dict[str, Tensor]:
    """Values and gradients in f64 of f32 inputs."""
    tensors: dict[str, Tensor] = {}
    labels = torch.tensor([3, 0, 9, 9, 1, 5, 2, 7])
    tensors["labels"] = labels
    # Some rare classes, one that no label has (8) and one that several have (9).
    class_weights = torch.tensor([0.5, 3.0, 1.0, 0.1, 2.0, 7.5, 1.0, 0.25, 20.0, 0.75], dtype=torch.float64)
    tensors["class_weights"] = class_weights
    # The labels of what each image was mixed with, one of them its own, and the shares of the images themselves.
    partners = torch.tensor([4, 0, 2, 1, 8, 9, 3, 6])
    shares = torch.tensor([0.5, 0.25, 1.0, 0.0, 0.9, 0.7, 0.1, 0.6])
    tensors |= {"partners": partners, "shares": shares}
    rows = shares.double()[:, None]
    mixed = rows * F.one_hot(labels, 10) + (1 - rows) * F.one_hot(partners, 10)
    logits = {
        "small": (hashed((8, 10), 600, 3.0), hashed((8, 10), 601, 5.0)),
        "equal": (hashed((8, 10), 602, 3.0), hashed((8, 10), 602, 3.0)),
        "large": (hashed((8, 10), 603, 80.0), hashed((8, 10), 604, 80.0)),
        # A gap that the softmax of f32 and f64 alike rounds to 0 and 1.
        "extreme": (torch.sign(hashed((8, 10), 605)) * 1e4, torch.sign(hashed((8, 10), 606)) * 1e4),
    }

    def record(name: str, loss, *inputs: Tensor) -> None:
        inputs = [value.double().requires_grad_() for value in inputs]
        value = loss(*inputs)
        value.backward()
        tensors[f"{name}.value"] = value.detach()
        for position, grad in enumerate(inputs):
            tensors[f"{name}.grad.{position}"] = grad.grad

    for name, (student, teacher) in logits.items():
        tensors[f"{name}.student"] = student
        tensors[f"{name}.teacher"] = teacher
        record(f"{name}.cross_entropy", lambda z: F.cross_entropy(z, labels), student)
        for smoothing in (0.1, 1.0):
            record(
                f"{name}.smoothed_{smoothing}",
                lambda z: F.cross_entropy(z, labels, label_smoothing=smoothing),
                student,
            )
        for smoothing in (0.0, 0.1, 1.0):
            weighted = nn.CrossEntropyLoss(weight=class_weights, label_smoothing=smoothing)
            record(f"{name}.weighted_{smoothing}", lambda z: weighted(z, labels), student)
        for smoothing in (0.0, 0.1):
            record(
                f"{name}.mixed_{smoothing}",
                lambda z: F.cross_entropy(z, mixed, label_smoothing=smoothing),
                student,
            )
        for own, teachers in ((1.0, 4.0), (4.0, 1.0), (2.0, 2.0)):
            record(
                f"{name}.kd_{own}_{teachers}",
                lambda z: own**2 * F.kl_div(
                    F.log_softmax(z / own, 1), F.log_softmax(teacher.double() / teachers, 1),
                    reduction="batchmean", log_target=True,
                ),
                student,
            )
        for temperature in (0.5, 1.0, 2.0, 4.0, 20.0):
            t = teacher.double()

            def kl(z: Tensor) -> Tensor:
                return temperature**2 * F.kl_div(
                    F.log_softmax(z / temperature, 1), F.log_softmax(t / temperature, 1),
                    reduction="batchmean", log_target=True,
                )

            record(f"{name}.kd_{temperature}", kl, student)
            if temperature == 2.0:
                record(
                    f"{name}.kd_with_labels",
                    lambda z: 0.75 * F.cross_entropy(z, labels) + 0.25 * kl(z),
                    student,
                )

    ones = torch.ones(3)
    # name: student features, teacher features
    for name, student, teacher in (
        ("cosine_equal", hashed((3, 12), 610), hashed((3, 12), 611)),
        ("cosine_pooled", hashed((3, 4, 2, 2), 612), hashed((3, 8, 2, 2), 613)),
        ("cosine_pooled3", hashed((3, 5), 614), hashed((3, 15), 615)),
        ("cosine_same", hashed((3, 12), 616), hashed((3, 12), 616)),
    ):
        pool = teacher[0].numel() // student[0].numel()
        pooled = F.avg_pool1d(teacher.double().flatten(1), pool) if pool > 1 else teacher.double()
        tensors[f"{name}.student"], tensors[f"{name}.teacher"] = student, teacher
        record(name, lambda s: nn.CosineEmbeddingLoss()(s.flatten(1), pooled, ones), student)

    student, teacher = hashed((2, 4, 5, 5), 620), hashed((2, 6, 5, 5), 621)
    weight, bias = hashed((6, 4, 3, 3), 622, 1 / 6), hashed((6,), 623, 1 / 6)
    for name, tensor in (("student", student), ("teacher", teacher), ("weight", weight), ("bias", bias)):
        tensors[f"regressor.{name}"] = tensor
    record(
        "regressor",
        lambda s, w, b: nn.MSELoss()(F.conv2d(s, w, b, padding=1), teacher.double()),
        student, weight, bias,
    )
    return tensors


def method_losses() -> dict[str, Tensor]:
    """Values of the methods' losses and gradients with respect to what the student gives, in f64."""
    tensors: dict[str, Tensor] = {}

    def record(name: str, loss, inputs: list[Tensor], others: list[Tensor] = []) -> None:
        wanted = [value.double().requires_grad_() for value in inputs]
        value = loss(*wanted, *[value.double() if value.is_floating_point() else value for value in others])
        value.backward()
        tensors[f"{name}.value"] = value.detach()
        for i, (given, value) in enumerate(zip(inputs, wanted)):
            tensors[f"{name}.input.{i}"], tensors[f"{name}.grad.{i}"] = given.clone(), value.grad
        for i, given in enumerate(others, len(inputs)):
            tensors[f"{name}.input.{i}"] = given.clone()

    labels = torch.tensor([3, 0, 9, 9, 1, 5])
    for name, scale in (("", 1.0), ("large.", 12.0)):
        s, t = hashed((6, 10), 700, 3.0 * scale), hashed((6, 10), 701, 5.0 * scale)
        record(f"{name}kd_standardized", lambda s, t: methods.kd(methods.standardized(s), methods.standardized(t), 2.0), [s], [t])
        record(f"{name}dkd", lambda s, t, y: methods.dkd(s, t, y, 4.0, 1.0, 8.0), [s], [t, labels])
        record(f"{name}dkd_other", lambda s, t, y: methods.dkd(s, t, y, 1.5, 0.5, 2.0), [s], [t, labels])
        record(
            f"{name}dkd_standardized",
            lambda s, t, y: methods.dkd(methods.standardized(s), methods.standardized(t), y, 2.0, 1.0, 8.0),
            [s], [t, labels],
        )
        record(f"{name}dist", lambda s, t: methods.dist(s, t, 1.0, 1.0, 1.0), [s], [t])
        record(f"{name}dist_other", lambda s, t: methods.dist(s, t, 4.0, 2.0, 0.5), [s], [t])
        for other, temperatures, weights, gammas in (
            ("", [4.0, 3.0, 5.0, 2.0, 6.0], (1.0, 1.0, 1.0), (0.1, 0.2)),
            ("_other", [1.0, 2.5], (0.5, 2.0, 3.0), (0.7, 0.7)),
        ):
            record(f"{name}mlkd{other}", lambda s, t: methods.mlkd(s, t, temperatures, *weights), [s], [t])
            record(f"{name}ttm{other}", lambda s, t: methods.ttm(s, t, gammas[0], False), [s], [t])
            record(f"{name}wttm{other}", lambda s, t: methods.ttm(s, t, gammas[1], True), [s], [t])
    record("label_smoothing", lambda s, y: methods.label_smoothing(s, y, 0.1), [s], [labels])

    # Maps after a ReLU have zeros; the teacher has other channels and, in the second case, another size.
    maps = {
        "": (F.relu(hashed((4, 5, 4, 4), 710)), F.relu(hashed((4, 7, 4, 4), 711))),
        "smaller.": (F.relu(hashed((3, 5, 2, 2), 712)), F.relu(hashed((3, 2, 4, 4), 713))),
        "larger.": (F.relu(hashed((3, 3, 8, 8), 714)), F.relu(hashed((3, 4, 4, 4), 715))),
    }
    for name, (s, t) in maps.items():
        record(f"{name}attention_transfer", methods.attention, [s], [t])
        record(f"{name}nst", methods.nst, [s], [t])
        record(f"{name}similarity_preserving", methods.similarity, [s], [t])
    record(
        "fsp", methods.fsp,
        [hashed((2, 3, 8, 8), 720), hashed((2, 4, 4, 4), 721)], [hashed((2, 3, 6, 6), 722), hashed((2, 4, 6, 6), 723)],
    )
    for kernel in (1, 3):
        layer = [hashed((4, 3, 4, 5), 750), hashed((2, 3, kernel, kernel), 751), hashed((2,), 752), hashed((2,), 753)]
        record(
            f"conv_norm_{kernel}", lambda x, w, a, b, y: (methods.normed(x, w, a, b) * y).sum(), layer, [hashed((4, 2, 4, 5), 754)],
        )
    maps = [hashed((3, 4, 4, 4), 755, 3.0), hashed((3, 4, 4, 4), 756, 2.0)]
    record("factor_transfer", methods.factor_transfer, maps[:1], maps[1:])
    record("activation_boundaries", lambda s, t: methods.activation_boundaries(s, t, 1.0), maps[:1], maps[1:])
    record("activation_boundaries_other", lambda s, t: methods.activation_boundaries(s, t, 0.4), maps[:1], [F.relu(maps[1])])
    record("ofd", methods.ofd, maps[:1], maps[1:])
    record("ofd_behind_relu", methods.ofd, maps[:1], [F.relu(maps[1])])
    for name, size in (("", 8), ("_5", 5), ("_1", 1)):
        record(f"hierarchical_context{name}", methods.hierarchical_context, [hashed((2, 3, size, size), 757)], [hashed((2, 3, size, size), 758)])
    layers = lambda shapes, first: [hashed(shape, first + i, 0.6) for i, shape in enumerate(shapes)]
    norm = lambda inputs, outputs, kernel: [(outputs, inputs, kernel, kernel), (outputs,), (outputs,)]
    conv = lambda inputs, outputs: [(outputs, inputs, 3, 3), (outputs,)]
    record(
        "factor_transfer_whole", lambda *x: methods.factor_transfer_whole(0.3, *x),
        [hashed((3, 3, 4, 4), 760), *layers(
            norm(3, 3, 3) + norm(3, 2, 3) + norm(2, 2, 3) + conv(4, 4) + conv(4, 2) + conv(2, 2) + conv(2, 2) + conv(2, 4) + conv(4, 4), 761,
        )],
        [hashed((3, 4, 4, 4), 759)],
    )
    record(
        "reviewkd_whole", lambda *x: methods.reviewkd_whole(3, *x),
        [hashed((3, 2, 4, 4), 790), hashed((3, 3, 4, 4), 791), hashed((3, 4), 792), *layers(
            norm(2, 4, 1) + norm(4, 3, 3) + [(2, 8), (2,)] + norm(3, 4, 1) + norm(4, 2, 3) + [(2, 8), (2,)] + norm(4, 4, 1) + norm(4, 5, 3), 793,
        )],
        [hashed((3, 3, 8, 8), 820), hashed((3, 2, 2, 2), 821), hashed((3, 5), 822)],
    )
    record("vid", methods.vid, [hashed((2, 3, 4, 4), 724), hashed((3,), 725, 4.0)], [hashed((2, 3, 4, 4), 726)])

    for name, (s, t) in {
        "": (hashed((6, 5), 730), hashed((6, 8), 731)),
        "positive.": (hashed((5, 7), 732).abs(), hashed((5, 7), 733).abs()),
    }.items():
        record(f"{name}rkd_distance", methods.rkd_distance, [s], [t])
        record(f"{name}rkd_angle", methods.rkd_angle, [s], [t])
        record(f"{name}pkt", methods.pkt, [s], [t])
        record(f"{name}correlation_congruence", lambda s, t: methods.congruence(s, t, 0.4, 2), [s], [t])
        record(f"{name}correlation_congruence_other", lambda s, t: methods.congruence(s, t, 1.5, 4), [s], [t])
    record("crd_nce", lambda x: methods.crd_nce(x, 40.0, 50), [hashed((4, 9), 740).exp() * 10])
    return tensors
