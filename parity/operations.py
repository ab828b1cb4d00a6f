"""PyTorch's values and gradients of kd-ops' operations, optimisers and averages."""

import numpy as np
import torch
import torch.nn.functional as F
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from hashed import hashed


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
