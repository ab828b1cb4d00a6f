"""torchvision's and timm's modules for kd's networks of the same names, those of small_networks.py, and what the fixtures hold of them.

    python families.py      # multiply-adds of the convolutions and linear layers, counted over the modules
"""

import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from hashed import hashed, short_digest
from small_networks import MODULES

CLASSES = 7
# Name: images, the tag of their hash, the norm at the end of a residual branch, the middle of the norms' scales. Sizes are
# such that strides and "same" paddings round. With most images the input of some ReLU is as near to zero as rounding reaches,
# and the gradients of a whole network change by percents; these are chosen: noise of 3e-7 of each convolution's output
# changes no gradient by more than 0.5 % of its norm (the resnet18's by 4e-6).
NETWORKS = {
    "resnet18": ((4, 3, 64, 50), 1005, "bn2", 2.0),
    "resnet50": ((4, 3, 64, 50), 1024, "bn3", 2.0),
    "mobilenet_v2_035": ((3, 3, 50, 40), 1038, "conv.3", 2.0),
    "efficientnet_lite0": ((3, 3, 50, 40), 1010, "bn3", 1.0),
    "wrn-16-2": ((3, 3, 16, 12), 1040, "conv2", 1.0),
    "vgg8": ((3, 3, 16, 12), 1040, "none", 1.0),
    "resnet50-cifar": ((3, 3, 16, 12), 1041, "bn3", 1.0),
    "mobilenetv2-cifar": ((3, 3, 32, 40), 1055, "7", 1.0),
    "shufflenetv1": ((3, 3, 32, 24), 1075, "bn3", 1.0),
    "shufflenetv2": ((3, 3, 32, 24), 1066, "none", 1.0),
}


def module(name: str, classes: int, drop_rate: float | None = None) -> nn.Module:
    """torchvision's, timm's or small_networks.py's module for kd's name."""
    if name in MODULES:
        return MODULES[name](classes)
    if name.startswith("efficientnet_lite"):
        drop = {} if drop_rate is None else {"drop_rate": drop_rate}
        model = timm.create_model(f"tf_{name}", num_classes=classes, **drop)
        for norm in model.modules():  # TensorFlow's decay is 0.99; timm leaves PyTorch's momentum
            if isinstance(norm, nn.BatchNorm2d):
                norm.momentum = 0.01
        return model
    if name.startswith("mobilenet_v2"):
        width = float(name.removeprefix("mobilenet_v2").removeprefix("_") or 100) / 100
        drop = {} if drop_rate is None else {"dropout": drop_rate}
        return torchvision.models.mobilenet_v2(num_classes=classes, width_mult=width, **drop)
    return getattr(torchvision.models, name)(num_classes=classes)


def tag(name: str) -> int:
    """FNV-1a, 32 bits, of a tensor's name."""
    value = 0x811C9DC5
    for byte in name.encode():
        value = (value ^ byte) * 0x01000193 % 2**32
    return value


def fixed_weights(model: nn.Module, last: str, middle: float) -> None:
    """Values from the hash of each tensor's name: of normalisations scales of half to one and a half times `middle` (with 2
    ReLU6 cuts off), shifts and means about 0, variances about 1; uniform in the bounds of 1/sqrt(fan_in) elsewhere. Scales and
    shifts at the end of a residual branch, named `last`, are a fifth, which keeps rounding from growing."""
    of_norms = {
        f"{name}.{what}"
        for name, norm in model.named_modules()
        if isinstance(norm, nn.BatchNorm2d)
        for what in ("weight", "bias", "running_mean", "running_var")
    }
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.dim() == 0:
                continue
            shape = tuple(value.shape)
            if name not in of_norms:
                fan_in = value[0].numel() if value.dim() > 1 else shape[0]
                value.copy_(hashed(shape, tag(name), fan_in**-0.5))
            elif name.endswith("weight"):
                value.copy_(middle + hashed(shape, tag(name), middle / 2))
            else:
                value.copy_(hashed(shape, tag(name), 0.5) + (1 if name.endswith("var") else 0))
            if name.endswith((f".{last}.weight", f".{last}.bias")):
                value.mul_(0.2)


def fixture(name: str) -> dict[str, Tensor]:
    """Evaluation, two steps of SGD in training, and evaluation with what they left."""
    torch.manual_seed(0)
    model = module(name, CLASSES, drop_rate=0.0)
    shape, images_tag, last, middle = NETWORKS[name]
    fixed_weights(model, last, middle)
    images, labels = hashed(shape, images_tag, 2.0), torch.arange(shape[0]) * 3 % CLASSES
    tensors = {"logits": evaluated(model, images)}
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-5, momentum=0.9)
    model.train()
    losses = []
    for step in range(2):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        losses.append(loss.detach())
        if step == 0:
            for parameter, value in model.named_parameters():
                tensors |= short_digest(f"grad.{parameter}", value.grad)
        optimizer.step()
    tensors["losses"] = torch.stack(losses)
    for tensor, value in model.state_dict().items():
        if value.dim() > 0:
            tensors |= short_digest(f"after.{tensor}", value)
    return tensors | {"logits_after": evaluated(model, images)}


def evaluated(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(images)


def multiply_adds(name: str, side: int) -> int:
    """Of the forward pass of one picture."""
    model, total = module(name, 1000), 0

    def count(layer: nn.Module, _, output: Tensor) -> None:
        nonlocal total
        total += output[0].numel() * layer.weight[0].numel()

    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)
    evaluated(model, torch.zeros(1, 3, side, side))
    return total


if __name__ == "__main__":
    for network, size in {
        "resnet18": 224, "resnet34": 224, "resnet50": 224, "mobilenet_v2": 224, "mobilenet_v2_035": 224,
        "efficientnet_lite0": 224, "efficientnet_lite1": 240, "efficientnet_lite2": 260, "efficientnet_lite3": 280,
        "efficientnet_lite4": 300,
    }.items():
        print(f"{network} {size}: {multiply_adds(network, size):,}")
