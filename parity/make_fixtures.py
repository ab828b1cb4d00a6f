"""Writes what PyTorch computes to crates/*/tests/fixtures, for the Rust tests to agree with.

    python make_fixtures.py [--check] [--only TEXT]

--check compares with the files that are there instead of writing. README.md says what is in them.
"""

import argparse
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import families
from ensembles import ensembles
from hashed import digest, hashed, short_digest
from losses import losses, method_losses
from networks import Network, ResNet, Student, Teacher
from operations import (
    adam,
    adamw,
    averages,
    batch_norms,
    clipping,
    conv_relu_pools,
    convolutions,
    grouped_convolutions,
    linears,
    max_pools,
    sgd,
)

CRATES = Path(__file__).resolve().parent.parent / "crates"


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
    "kd-loss/tests/fixtures/ensembles.safetensors": ensembles,
    "kd-models/tests/fixtures/teacher.safetensors": lambda: network(Teacher),
    "kd-models/tests/fixtures/student.safetensors": lambda: network(Student),
    "kd-models/tests/fixtures/resnet20.safetensors": lambda: resnet(3),
    "kd-models/tests/fixtures/resnet8_b.safetensors": lambda: resnet(1, 1037, projection=True),
    "kd-models/tests/fixtures/resnet8x4.safetensors": lambda: resnet(1, 1037, projection=True, channels=(32, 64, 128, 256)),
}
for family in families.NETWORKS:
    FIXTURES[f"kd-models/tests/fixtures/{family}.safetensors"] = lambda family=family: families.fixture(family)


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
