"""Writes what PyTorch computes to crates/*/tests/fixtures, for the Rust tests to agree with.

    python make_fixtures.py [--check] [--only TEXT]

--check compares with the files that are there instead of writing. README.md says what is in them.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from timm.utils import ModelEmaV3
from torch import Tensor, nn

import families
import methods
from networks import Network, ResNet, Student, Teacher

CRATES = Path(__file__).resolve().parent.parent / "crates"


def hashed(shape: tuple[int, ...], tag: int, scale: float = 1.0) -> Tensor:
    """f32 values in [-scale, scale) from a hash of their index: the Rust tests compute the same."""
    i = np.arange(np.prod(shape), dtype=np.uint32)
    with np.errstate(over="ignore"):
        u = (i + np.uint32(1)) * np.uint32(0x9E3779B1) + np.uint32(tag) * np.uint32(0x85EBCA77)
        u ^= u >> np.uint32(16)
        u *= np.uint32(0x85EBCA6B)
        u ^= u >> np.uint32(13)
        u *= np.uint32(0xC2B2AE35)
        u ^= u >> np.uint32(16)
    unit = (u >> np.uint32(8)).astype(np.float32) * np.float32(2**-23) - np.float32(1)
    return torch.from_numpy((unit * np.float32(scale)).reshape(shape))


# --- kd-ops ---------------------------------------------------------------------------------------


def convolutions() -> dict[str, Tensor]:
    # name: x shape, weight shape, stride, padding, dilation, relu
    cases = {
        "k3_p1": ((2, 3, 8, 8), (5, 3, 3, 3), 1, 1, 1, False),
        "k3_p1_relu": ((2, 3, 8, 8), (5, 3, 3, 3), 1, 1, 1, True),
        "k3_p1_odd": ((3, 4, 7, 9), (6, 4, 3, 3), 1, 1, 1, False),
        "k3_p1_wide_relu": ((2, 16, 12, 12), (24, 16, 3, 3), 1, 1, 1, True),
        "k3_p1_tiny": ((2, 3, 1, 2), (4, 3, 3, 3), 1, 1, 1, False),
        "k3_p0": ((2, 3, 6, 5), (4, 3, 3, 3), 1, 0, 1, False),
        "k3_s2_p1": ((2, 3, 9, 8), (4, 3, 3, 3), 2, 1, 1, False),
        "k3_p2_d2": ((2, 3, 9, 7), (4, 3, 3, 3), 1, 2, 2, False),
        "k1": ((2, 6, 5, 7), (4, 6, 1, 1), 1, 0, 1, False),
        "k1_s2": ((2, 6, 5, 7), (4, 6, 1, 1), 2, 0, 1, False),
        "k5_p2_relu": ((2, 3, 9, 11), (4, 3, 5, 5), 1, 2, 1, True),
        "k7_s3_p3": ((2, 3, 13, 13), (4, 3, 7, 7), 3, 3, 1, False),
        "k2x3_p1": ((2, 3, 6, 7), (4, 3, 2, 3), 1, 1, 1, False),
        "k3_p1_batch1_one_channel": ((1, 1, 5, 5), (1, 1, 3, 3), 1, 1, 1, False),
    }
    tensors = {}
    for tag, (name, (x_shape, w_shape, stride, padding, dilation, relu)) in enumerate(cases.items()):
        x = hashed(x_shape, 10 * tag + 1).requires_grad_()
        weight = hashed(w_shape, 10 * tag + 2).requires_grad_()
        bias = hashed(w_shape[:1], 10 * tag + 3).requires_grad_()
        y = F.conv2d(x, weight, bias, stride=stride, padding=padding, dilation=dilation)
        y = F.relu(y) if relu else y
        dy = hashed(tuple(y.shape), 10 * tag + 4)
        y.backward(dy)
        tensors |= {
            f"{name}.config": torch.tensor([stride, padding, dilation, int(relu)]),
            f"{name}.x": x, f"{name}.weight": weight, f"{name}.bias": bias,
            f"{name}.y": y, f"{name}.dy": dy,
            f"{name}.dx": x.grad, f"{name}.dweight": weight.grad, f"{name}.dbias": bias.grad,
        }
    return tensors


def grouped_convolutions() -> dict[str, Tensor]:
    # name: x shape, weight shape, groups, stride, padding (None: TensorFlow's "same"), dilation, relu
    cases = {
        "depthwise": ((2, 19, 8, 9), (19, 1, 3, 3), 19, 1, 1, 1, False),
        "depthwise_s2": ((2, 18, 9, 8), (18, 1, 3, 3), 18, 2, 1, 1, False),
        "depthwise_k5": ((1, 4, 6, 21), (4, 1, 5, 5), 4, 1, 2, 1, True),
        "depthwise_k5_s2": ((17, 3, 7, 6), (3, 1, 5, 5), 3, 2, 2, 1, False),
        "depthwise_k7_s2": ((1, 17, 9, 10), (17, 1, 7, 7), 17, 2, 3, 1, False),
        "depthwise_p0_d2": ((2, 4, 9, 8), (4, 1, 3, 3), 4, 1, 0, 2, False),
        "depthwise_same_s2": ((2, 9, 8, 11), (9, 1, 3, 3), 9, 2, None, 1, False),
        "depthwise_same_k5_s2": ((2, 9, 10, 10), (9, 1, 5, 5), 9, 2, None, 1, False),
        "depthwise_same_s1": ((2, 4, 6, 7), (4, 1, 5, 5), 4, 1, None, 1, False),
        "two_outputs_a_group": ((2, 5, 6, 7), (10, 1, 3, 3), 5, 1, 1, 1, False),
        "groups": ((3, 8, 7, 9), (12, 2, 3, 3), 4, 1, 1, 1, True),
        "groups_k1_s2": ((2, 6, 7, 6), (9, 2, 1, 1), 3, 2, 0, 1, False),
        "one_group_same": ((2, 3, 10, 13), (5, 3, 3, 3), 1, 2, None, 1, True),
        "one_group_same_k7_s2": ((2, 3, 12, 12), (4, 3, 7, 7), 1, 2, None, 1, False),
        "one_channel": ((2, 1, 6, 6), (1, 1, 3, 3), 1, 2, None, 1, False),
    }
    tensors = {}
    for tag, (name, case) in enumerate(cases.items()):
        x_shape, w_shape, groups, stride, padding, dilation, relu = case
        x = hashed(x_shape, 900 + 10 * tag).requires_grad_()
        weight = hashed(w_shape, 901 + 10 * tag).requires_grad_()
        bias = hashed(w_shape[:1], 902 + 10 * tag).requires_grad_()
        padded = x
        if padding is None:  # as TensorFlow's documentation of tf.nn has it: an odd zero stands behind the map
            zeros = [max((-(-side // stride) - 1) * stride + w_shape[-1] - side, 0) for side in x_shape[2:]]
            (top, left), (bottom, right) = ([z // 2 for z in zeros], [z - z // 2 for z in zeros])
            padded = F.pad(x, (left, right, top, bottom))
        y = F.conv2d(padded, weight, bias, stride, padding or 0, dilation, groups)
        y = F.relu(y) if relu else y
        dy = hashed(tuple(y.shape), 903 + 10 * tag)
        y.backward(dy)
        same = int(padding is None)
        tensors |= {
            f"{name}.config": torch.tensor([stride, padding or 0, dilation, int(relu), groups, same]),
            f"{name}.x": x, f"{name}.weight": weight, f"{name}.bias": bias,
            f"{name}.y": y, f"{name}.dy": dy,
            f"{name}.dx": x.grad, f"{name}.dweight": weight.grad, f"{name}.dbias": bias.grad,
        }
    return tensors


def max_pools() -> dict[str, Tensor]:
    # name: x shape, kernel, stride, padding
    cases = {
        "k2_s2": ((2, 3, 8, 8), 2, 2, 0),
        "k2_s2_odd": ((2, 3, 7, 9), 2, 2, 0),
        "k2_s2_ties": ((2, 3, 8, 8), 2, 2, 0),
        "k2_s2_constant": ((1, 2, 4, 4), 2, 2, 0),
        "k3_s2": ((2, 2, 9, 8), 3, 2, 0),
        "k3_s1_ties": ((1, 2, 6, 6), 3, 1, 0),
        "k2_s3": ((1, 2, 8, 8), 2, 3, 0),
        "k1_s1": ((1, 2, 3, 3), 1, 1, 0),
        "k3_s2_p1": ((2, 2, 9, 8), 3, 2, 1),
        "k3_s2_p1_ties": ((2, 2, 8, 7), 3, 2, 1),
        "k3_s2_p1_negative": ((2, 2, 6, 7), 3, 2, 1),
        "k5_s1_p2": ((1, 2, 3, 4), 5, 1, 2),
        "k2_s1_p1": ((1, 2, 1, 2), 2, 1, 1),
    }
    tensors = {}
    for tag, (name, (shape, kernel, stride, padding)) in enumerate(cases.items()):
        x = hashed(shape, 200 + 10 * tag)
        if "ties" in name:  # three values, so that most windows have equals
            x = torch.round(x)
        if "constant" in name:
            x = torch.zeros_like(x)
        if "negative" in name:  # padding is no zero
            x = x - 2
        x.requires_grad_()
        y = F.max_pool2d(x, kernel, stride, padding)
        dy = hashed(tuple(y.shape), 201 + 10 * tag)
        y.backward(dy)
        tensors |= {
            f"{name}.config": torch.tensor([kernel, stride, padding]),
            f"{name}.x": x, f"{name}.y": y, f"{name}.dy": dy, f"{name}.dx": x.grad,
        }
    return tensors


def conv_relu_pools() -> dict[str, Tensor]:
    """Convolution (3x3, padding 1), ReLU and 2x2 max-pool in a row."""
    cases = {
        "even": ((2, 3, 8, 8), 5),
        "odd": ((2, 4, 7, 9), 6),
        "wide": ((2, 16, 12, 12), 24),
        # Windows whose four values are all below zero: equal after the ReLU, and no gradient.
        "mostly_negative": ((2, 3, 8, 8), 5),
    }
    tensors = {}
    for tag, (name, (shape, outputs)) in enumerate(cases.items()):
        x = hashed(shape, 300 + 10 * tag).requires_grad_()
        weight = hashed((outputs, shape[1], 3, 3), 301 + 10 * tag).requires_grad_()
        bias = hashed((outputs,), 302 + 10 * tag)
        bias = (bias - 2.0 if name == "mostly_negative" else bias).requires_grad_()
        y = F.max_pool2d(F.relu(F.conv2d(x, weight, bias, padding=1)), 2, 2)
        dy = hashed(tuple(y.shape), 303 + 10 * tag)
        y.backward(dy)
        tensors |= {
            f"{name}.x": x, f"{name}.weight": weight, f"{name}.bias": bias,
            f"{name}.y": y, f"{name}.dy": dy,
            f"{name}.dx": x.grad, f"{name}.dweight": weight.grad, f"{name}.dbias": bias.grad,
        }
    return tensors


def linears() -> dict[str, Tensor]:
    cases = {"plain": (4, 7, 5, False), "relu": (4, 7, 5, True), "one": (1, 33, 10, False)}
    tensors = {}
    for tag, (name, (batch, inputs, outputs, relu)) in enumerate(cases.items()):
        x = hashed((batch, inputs), 400 + 10 * tag).requires_grad_()
        weight = hashed((outputs, inputs), 401 + 10 * tag).requires_grad_()
        bias = hashed((outputs,), 402 + 10 * tag).requires_grad_()
        y = F.linear(x, weight, bias)
        y = F.relu(y) if relu else y
        dy = hashed((batch, outputs), 403 + 10 * tag)
        y.backward(dy)
        tensors |= {
            f"{name}.config": torch.tensor([int(relu)]),
            f"{name}.x": x, f"{name}.weight": weight, f"{name}.bias": bias,
            f"{name}.y": y, f"{name}.dy": dy,
            f"{name}.dx": x.grad, f"{name}.dweight": weight.grad, f"{name}.dbias": bias.grad,
        }
    x = torch.tensor([-2.0, -0.0, 0.0, 1e-30, 3.0, float("inf")]).requires_grad_()
    dy = hashed((6,), 450)
    y = F.relu(x)
    y.backward(dy)
    tensors |= {"relu_only.x": x, "relu_only.y": y, "relu_only.dy": dy, "relu_only.dx": x.grad}
    below, above = np.nextafter(np.float32(6), np.float32([0, 7])).tolist()
    x = torch.tensor([-2.0, -0.0, 0.0, 1e-30, 3.0, below, 6.0, above, 7.0, float("inf")]).requires_grad_()
    dy = hashed((10,), 451)
    y = F.relu6(x)
    y.backward(dy)
    return tensors | {"relu6_only.x": x, "relu6_only.y": y, "relu6_only.dy": dy, "relu6_only.dx": x.grad}


PAIR = {"matrix": (3, 7), "bias": (4,)}


def adam() -> dict[str, Tensor]:
    # name: lr, beta1, beta2, eps, weight_decay
    cases = {
        "default": (1e-3, 0.9, 0.999, 1e-8, 0.0),
        "decay": (1e-2, 0.8, 0.99, 1e-6, 0.1),
    }
    steps, tensors = 5, {}
    for tag, (name, (lr, beta1, beta2, eps, weight_decay)) in enumerate(cases.items()):
        parameter = nn.Parameter(hashed((3, 7), 500 + 10 * tag))
        optimizer = torch.optim.Adam(
            [parameter], lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=weight_decay
        )
        tensors[f"{name}.config"] = torch.tensor([lr, beta1, beta2, eps, weight_decay], dtype=torch.float64)
        tensors[f"{name}.start"] = parameter.detach().clone()
        for step in range(steps):
            # From small to large, one gradient zero throughout.
            grad = hashed((3, 7), 501 + 10 * tag + step) * 10.0 ** (step - 3)
            grad[0, 0] = 0.0
            parameter.grad = grad
            optimizer.step()
            tensors[f"{name}.grad.{step}"] = grad
            tensors[f"{name}.parameter.{step}"] = parameter.detach().clone()
        state = optimizer.state[parameter]
        tensors[f"{name}.first"] = state["exp_avg"].clone()
        tensors[f"{name}.second"] = state["exp_avg_sq"].clone()
    return tensors


def adamw() -> dict[str, Tensor]:
    """AdamW on a matrix and a bias: with the decay on both, and with the bias in a group without decay, as timm makes them."""
    # name: lr, beta1, beta2, eps, weight_decay
    config = (1e-2, 0.9, 0.99, 1e-8, 0.3)
    lr, beta1, beta2, eps, weight_decay = config
    tensors = {}
    for tag, name in enumerate(("all", "matrices")):
        parameters = {key: nn.Parameter(hashed(shape, 540 + tag + 2 * n)) for n, (key, shape) in enumerate(PAIR.items())}
        groups = [{"params": [parameters["matrix"]]}, {"params": [parameters["bias"]]}]
        if name == "matrices":
            groups[1]["weight_decay"] = 0.0
        optimizer = torch.optim.AdamW(groups, lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=weight_decay)
        tensors[f"{name}.config"] = torch.tensor(config, dtype=torch.float64)
        for key, parameter in parameters.items():
            tensors[f"{name}.start.{key}"] = parameter.detach().clone()
        for step in range(4):
            for n, (key, parameter) in enumerate(parameters.items()):
                parameter.grad = hashed(PAIR[key], 545 + 2 * step + n) * 10.0 ** (step - 2)
                tensors[f"{name}.grad.{key}.{step}"] = parameter.grad.clone()
            optimizer.step()
            for key, parameter in parameters.items():
                tensors[f"{name}.parameter.{key}.{step}"] = parameter.detach().clone()
    return tensors


def averages() -> dict[str, Tensor]:
    """Averages of weights and running statistics over five steps: timm's ModelEmaV3 and PyTorch's AveragedModel."""
    tensors = {}
    model = nn.BatchNorm1d(5)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items() if value.is_floating_point()}
    averaged = {
        "ema": ModelEmaV3(model, decay=0.6),
        "ema_warmup": ModelEmaV3(model, decay=0.6, use_warmup=True),
        "mean": torch.optim.swa_utils.AveragedModel(model, use_buffers=True),
    }
    for step in range(5):
        state = {key: hashed(shape, 580 + 10 * step + n) for n, (key, shape) in enumerate(shapes.items())}
        model.load_state_dict(state | {"num_batches_tracked": torch.tensor(step)})
        for key, value in state.items():
            tensors[f"values.{key}.{step}"] = value
        for name, average in averaged.items():
            if name == "mean":
                average.update_parameters(model)
            else:
                average.update(model, step=step + 1)
            found = average.module.state_dict()
            tensors |= {f"{name}.{key}.{step}": found[key].clone() for key in shapes}
    return tensors


def clipping() -> dict[str, Tensor]:
    """Gradients before and after `clip_grad_norm_`."""
    tensors = {}
    shapes = {"a": (3, 7), "b": (300,), "c": (1,)}
    # name: size of the gradients, max_norm
    cases = {"smaller": (1e-3, 5.0), "larger": (3.0, 2.0), "huge": (1e15, 1.0), "zero": (0.0, 1.0)}
    for tag, (name, (scale, max_norm)) in enumerate(cases.items()):
        parameters = {key: nn.Parameter(torch.zeros(shape)) for key, shape in shapes.items()}
        for index, (key, parameter) in enumerate(parameters.items()):
            parameter.grad = hashed(shapes[key], 550 + 10 * tag + index, scale)
            tensors[f"{name}.grad.{key}"] = parameter.grad.clone()
        norm = nn.utils.clip_grad_norm_(parameters.values(), max_norm)
        tensors[f"{name}.max_norm"] = torch.tensor(max_norm, dtype=torch.float64)
        tensors[f"{name}.norm"] = norm
        tensors |= {f"{name}.clipped.{key}": parameter.grad for key, parameter in parameters.items()}
    return tensors


def batch_norms() -> dict[str, Tensor]:
    """Batch normalisation: two steps in training and one evaluation with what they left."""
    # name: x shape, momentum, eps, relu, residual
    cases = {
        "plain": ((3, 4, 5, 5), 0.1, 1e-5, False, False),
        "relu": ((2, 5, 4, 6), 0.1, 1e-5, True, False),
        "residual": ((2, 3, 6, 6), 0.3, 1e-3, False, True),
        "residual_relu": ((4, 3, 5, 4), 0.1, 1e-5, True, True),
        "pixel": ((6, 2, 1, 1), 0.1, 1e-5, False, False),
    }
    tensors = {}
    for tag, (name, (shape, momentum, eps, relu, residual)) in enumerate(cases.items()):
        channels = shape[1:2]
        norm = nn.BatchNorm2d(channels[0], eps=eps, momentum=momentum)
        with torch.no_grad():
            norm.weight.copy_(1 + hashed(channels, 800 + 20 * tag, 0.5))
            norm.bias.copy_(hashed(channels, 801 + 20 * tag, 0.5))
        tensors |= {
            f"{name}.config": torch.tensor([momentum, eps, float(relu), float(residual)], dtype=torch.float64),
            f"{name}.weight": norm.weight.detach().clone(), f"{name}.bias": norm.bias.detach().clone(),
        }
        for step, pass_ in enumerate(("first", "second", "evaluation")):
            case = f"{name}_{pass_}"
            norm.train(pass_ != "evaluation")
            norm.zero_grad()
            # Far from zero, as the sums of an untrained network can be.
            x = (3 + hashed(shape, 802 + 20 * tag + step, 2.0)).requires_grad_()
            r = hashed(shape, 806 + 20 * tag + step).requires_grad_()
            y = norm(x) + r if residual else norm(x)
            y = F.relu(y) if relu else y
            dy = hashed(shape, 810 + 20 * tag + step)
            y.backward(dy)
            tensors |= {
                f"{case}.x": x, f"{case}.y": y, f"{case}.dy": dy, f"{case}.dx": x.grad,
                f"{case}.dweight": norm.weight.grad.clone(), f"{case}.dbias": norm.bias.grad.clone(),
                f"{case}.running_mean": norm.running_mean.clone(), f"{case}.running_var": norm.running_var.clone(),
            }
            if residual:
                tensors |= {f"{case}.residual": r, f"{case}.dresidual": r.grad}
    x = hashed((2, 4, 5, 6), 990).requires_grad_()
    y = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
    dy = hashed(tuple(y.shape), 991)
    y.backward(dy)
    return tensors | {"shortcut.x": x, "shortcut.y": y, "shortcut.dy": dy, "shortcut.dx": x.grad}


def sgd() -> dict[str, Tensor]:
    # name: lr, momentum, nesterov, weight_decay
    cases = {
        "plain": (0.1, 0.0, False, 0.0),
        "decay": (0.1, 0.0, False, 0.01),
        "momentum": (0.05, 0.9, False, 0.0),
        "nesterov": (0.1, 0.9, True, 5e-4),
    }
    steps, tensors = 4, {}
    for tag, (name, (lr, momentum, nesterov, weight_decay)) in enumerate(cases.items()):
        parameter = nn.Parameter(hashed((3, 7), 560 + 10 * tag))
        optimizer = torch.optim.SGD(
            [parameter], lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay
        )
        tensors[f"{name}.config"] = torch.tensor([lr, momentum, float(nesterov), weight_decay], dtype=torch.float64)
        tensors[f"{name}.start"] = parameter.detach().clone()
        for step in range(steps):
            grad = hashed((3, 7), 561 + 10 * tag + step)
            parameter.grad = grad
            optimizer.step()
            tensors[f"{name}.grad.{step}"] = grad
            tensors[f"{name}.parameter.{step}"] = parameter.detach().clone()
        if momentum > 0:
            tensors[f"{name}.momentum"] = optimizer.state[parameter]["momentum_buffer"].clone()
    return tensors


# --- kd-loss --------------------------------------------------------------------------------------


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


# --- kd-models ------------------------------------------------------------------------------------


def fixed_weights(network: nn.Module) -> None:
    """PyTorch's bounds, values from the hash; the n-th parameter of the state dict has tag n.

    Batch normalisations have scales about 1, and buffers with tags from 500.
    """
    bound = 0.0
    with torch.no_grad():
        for tag, (name, parameter) in enumerate(network.named_parameters()):
            if parameter.dim() > 1:
                bound = 1.0 / parameter[0].numel() ** 0.5
            values = hashed(tuple(parameter.shape), tag, 0.5 if ".bn" in f".{name}" else bound)
            parameter.copy_(values + 1 if ".bn" in f".{name}" and name.endswith("weight") else values)
        buffers = [(name, buffer) for name, buffer in network.named_buffers() if buffer.dim() > 0]
        for tag, (name, buffer) in enumerate(buffers, 500):
            values = hashed(tuple(buffer.shape), tag, 0.5)
            buffer.copy_(values + 1 if name.endswith("var") else values)


def digest(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Sum, Euclidean norm (f64), and about 200 entries a fixed stride apart."""
    flat = tensor.detach().contiguous().flatten()
    stride = max(1, flat.numel() // 199)
    double = flat.double()
    return {
        f"{name}.sum_norm": torch.stack([double.sum(), double.norm()]),
        f"{name}.stride": torch.tensor([stride]),
        f"{name}.sample": flat[::stride].clone(),
    }


def network(kind: type[Network]) -> dict[str, Tensor]:
    tensors = {}
    model = kind(10, dropout=0.0)
    fixed_weights(model)

    images = hashed((3, 3, 32, 32), 1000, 2.0)
    x = images
    with torch.no_grad():
        for index, module in enumerate(model.features):
            x = module(x)
            tensors |= digest(f"features.{index}", x)
        x = x.flatten(1)
        for index, module in enumerate(model.classifier):
            x = module(x)
            if index < 2:
                tensors |= digest(f"classifier.{index}", x)
        tensors["logits"] = x

    # Three steps of Adam on one batch, dropout off. The batch is small and chosen: where a ReLU's
    # input is as near to zero as rounding reaches, the smallest gradients change sign with the order
    # of summation, and Adam makes a whole step of each. Here noise of 1e-6 of the activations changes
    # one weight in a million by 1e-4; with most batches of 16 it changes thousands by 1e-3.
    images, labels = hashed((4, 3, 32, 32), 1001, 2.0), torch.arange(4) * 7 % 10
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for step in range(3):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images)[0], labels)
        loss.backward()
        losses.append(loss.detach())
        if step == 0:
            for name, parameter in model.named_parameters():
                tensors |= digest(f"grad.{name}", parameter.grad)
        optimizer.step()
    tensors["losses"] = torch.stack(losses)
    for name, parameter in model.named_parameters():
        tensors |= digest(f"adam.{name}", parameter)
    return tensors


def resnet(blocks: int, batch: int = 1003, **options: object) -> dict[str, Tensor]:
    model = ResNet(blocks, **options)
    fixed_weights(model)
    images = hashed((3, 3, 32, 32), 1000, 2.0)
    tensors = {}
    with torch.no_grad():
        for name, values in model.eval().places(images).items():
            tensors |= {"logits": values} if name == "logits" else digest(name, values)

    # Three steps of SGD in training mode. Batch and rate are chosen as in `network`: noise of 5e-7 of each
    # convolution's output changes no weight by more than 2e-5; with most batches some change by 1e-4, because
    # the input of some ReLU is about zero.
    images, labels = hashed((2, 3, 32, 32), batch, 2.0), torch.arange(2) * 7 % 10
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, nesterov=True, weight_decay=5e-4)
    model.train()
    losses = []
    for step in range(3):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images)[0], labels)
        loss.backward()
        losses.append(loss.detach())
        if step == 0:
            for name, parameter in model.named_parameters():
                tensors |= short_digest(f"grad.{name}", parameter.grad)
        optimizer.step()
    tensors["losses"] = torch.stack(losses)
    for name, value in model.state_dict().items():
        if value.dim() > 0:
            tensors |= short_digest(f"after.{name}", value)
    with torch.no_grad():
        tensors["logits_after"] = model.eval()(images)[0]
    return tensors


def short_digest(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Sum, norm and sum of every other entry less the rest (f64), and the first and last entry."""
    double = tensor.detach().double().flatten()
    even = double[::2].sum() - double[1::2].sum()
    return {name: torch.stack([double.sum(), double.norm(), even, double[0], double[-1]])}


# --------------------------------------------------------------------------------------------------

FIXTURES = {
    "kd-ops/tests/fixtures/conv2d.safetensors": convolutions,
    "kd-ops/tests/fixtures/conv2d_groups.safetensors": grouped_convolutions,
    "kd-ops/tests/fixtures/max_pool2d.safetensors": max_pools,
    "kd-ops/tests/fixtures/conv2d_relu_max_pool2.safetensors": conv_relu_pools,
    "kd-ops/tests/fixtures/linear.safetensors": linears,
    "kd-ops/tests/fixtures/adam.safetensors": adam,
    "kd-ops/tests/fixtures/adamw.safetensors": adamw,
    "kd-ops/tests/fixtures/averages.safetensors": averages,
    "kd-ops/tests/fixtures/clipping.safetensors": clipping,
    "kd-ops/tests/fixtures/batch_norm.safetensors": batch_norms,
    "kd-ops/tests/fixtures/sgd.safetensors": sgd,
    "kd-loss/tests/fixtures/losses.safetensors": losses,
    "kd-loss/tests/fixtures/methods.safetensors": method_losses,
    "kd-models/tests/fixtures/teacher.safetensors": lambda: network(Teacher),
    "kd-models/tests/fixtures/student.safetensors": lambda: network(Student),
    "kd-models/tests/fixtures/resnet20.safetensors": lambda: resnet(3),
    "kd-models/tests/fixtures/resnet8_b.safetensors": lambda: resnet(1, 1037, projection=True),
    "kd-models/tests/fixtures/resnet8x4.safetensors": lambda: resnet(1, 1037, projection=True, channels=(32, 64, 128, 256)),
}
for family in families.NETWORKS:
    FIXTURES[f"kd-models/tests/fixtures/{family}.safetensors"] = lambda family=family: families.fixture(
        family, hashed, short_digest
    )


def near(there: Tensor, value: Tensor) -> bool:
    """The tests' own bound: between processors Adam's first steps, whose size hangs on a gradient's sign, differ by up to 3e-5."""
    finite = there.double().isfinite()
    scale = there.double()[finite].abs().max().item() if finite.any() else 0.0
    return torch.allclose(there.double(), value.double(), rtol=1e-5, atol=1e-4 * scale + 1e-6, equal_nan=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare, don't write")
    parser.add_argument("--only", default="", metavar="TEXT", help="only files whose path has this text")
    arguments = parser.parse_args()
    check = arguments.check
    torch.set_num_threads(1)
    bad = 0
    for name, make in FIXTURES.items():
        if arguments.only not in name:
            continue
        path = CRATES / name
        tensors = {key: value.detach().contiguous() for key, value in make().items()}
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, path)
            print(f"{name}: {len(tensors)} tensors, {path.stat().st_size} bytes")
            continue
        there = load_file(path)
        same = there.keys() == tensors.keys() and all(near(there[key], value) for key, value in tensors.items())
        print(f"{name}: {'agrees' if same else 'DIFFERS'}")
        bad += not same
    return min(bad, 1)


if __name__ == "__main__":
    sys.exit(main())
