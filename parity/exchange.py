"""Weights go both ways: ours into PyTorch, PyTorch's into ours, with the same logits.

    cargo build -p kd-run
    .venv/bin/python parity/exchange.py --kd target/debug/kd

The images are noise in CIFAR-10's layout, made here; no accuracy means anything.
"""

import argparse
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

import families
from networks import ResNet, Student, Teacher

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
TOLERANCE = 1e-4
CLASSES = "airplane automobile bird cat deer dog frog horse ship truck"


def make_data(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Six files of 10,000 records (label, 3072 bytes); the last one's images and labels."""
    folder.mkdir()
    random = np.random.default_rng(0)
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    for name in names:
        records = random.integers(0, 256, (10_000, 3073), dtype=np.uint8)
        records[:, 0] = np.arange(10_000) % 10
        records.tofile(folder / name)
    (folder / "batches.meta.txt").write_text(CLASSES.replace(" ", "\n") + "\n")
    images = torch.from_numpy(records[:, 1:].reshape(-1, 3, 32, 32).copy())
    return images, torch.from_numpy(records[:, 0].astype(np.int64))


def normalized(images: torch.Tensor) -> torch.Tensor:
    return (images.float() / 255 - MEAN) / STD


@torch.no_grad()
def logits(network: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    network.eval()
    outputs = [network(normalized(part)) for part in images.split(500)]
    return torch.cat([output[0] if isinstance(output, tuple) else output for output in outputs])


def train_teacher(images: torch.Tensor, labels: torch.Tensor) -> Teacher:
    torch.manual_seed(0)
    teacher = Teacher()
    optimizer = torch.optim.Adam(teacher.parameters(), lr=1e-3)
    for part, label in list(zip(images.split(64), labels.split(64)))[:8]:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(teacher(normalized(part))[0], label).backward()
        optimizer.step()
    return teacher


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kd", type=Path, required=True, help="the binary kd")
    kd = parser.parse_args().kd.resolve()

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        images, labels = make_data(folder / "cifar-10-batches-bin")

        def run(*arguments: object) -> None:
            subprocess.run([kd, *map(str, arguments), "--data", folder, "--dataset", "cifar10"], check=True)

        def compare(what: str, network: torch.nn.Module, weights: Path, name: str = "") -> None:
            name = name or ("resnet8" if isinstance(network, ResNet) else type(network).__name__.lower())
            run("eval", "--weights", weights, "--model", name, "--logits", folder / "logits")
            ours = load_file(folder / "logits")
            assert torch.equal(ours["labels"], labels), "the images came in another order"
            difference = (ours["logits"] - logits(network, images)).abs().max().item()
            print(f"{what}: largest difference of {ours['logits'].numel()} logits {difference:.1e}")
            assert difference < TOLERANCE, what

        few = ("--train-limit", 512, "--test-limit", 100, "--epochs", 1, "--out", folder / "runs")

        teacher = train_teacher(images, labels)
        theirs = folder / "pytorch.safetensors"
        save_file(teacher.state_dict(), theirs)
        compare("PyTorch's teacher, taken by kd", teacher, theirs)

        for method in ("kd", "cosine", "regressor"):
            run("distill", "--method", method, "--teacher", theirs, *few)
            student = Student()
            ours = folder / "runs" / f"{method}.safetensors"
            student.load_state_dict(load_file(ours), strict=True)
            compare(f"student of {method}, taken by PyTorch", student, ours)

        run("train", "--model", "teacher", *few)
        teacher = Teacher()
        ours = folder / "runs" / "teacher.safetensors"
        teacher.load_state_dict(load_file(ours), strict=True)
        compare("kd's teacher, taken by PyTorch", teacher, ours)

        # Running statistics too; PyTorch's file has num_batches_tracked, ours does not.
        torch.manual_seed(0)
        resnet = ResNet(1)
        for part in images[:256].split(64):
            resnet(normalized(part))
        save_file(resnet.state_dict(), theirs)
        compare("PyTorch's ResNet-8, taken by kd", resnet, theirs)
        run("train", "--model", "resnet8", *few)
        resnet = ResNet(1)
        ours = folder / "runs" / "resnet8.safetensors"
        resnet.load_state_dict(load_file(ours), strict=True)
        compare("kd's ResNet-8, taken by PyTorch", resnet, ours)

        # torchvision's and timm's modules, on small pictures.
        for name in ("resnet18", "mobilenet_v2_035", "efficientnet_lite0"):
            torch.manual_seed(0)
            network = families.module(name, 10)
            for part in images[:256].split(64):
                network(normalized(part))
            theirs = folder / f"{name}.pth"
            torch.save(network.state_dict(), theirs)
            compare(f"PyTorch's {name}, taken by kd", network, theirs, name)
            run("train", "--model", name, *few)
            network = families.module(name, 10)
            ours = folder / "runs" / f"{name}.safetensors"
            tensors = load_file(ours)
            network.load_state_dict(tensors, strict=True)
            compare(f"kd's {name}, taken by PyTorch", network, ours, name)
            again = {key: value for key, value in network.state_dict().items() if value.dim() > 0}
            assert again.keys() == tensors.keys(), "other names"
            assert all(torch.equal(again[key], value) for key, value in tensors.items()), "other values"
            save_file(again, theirs.with_suffix(".safetensors"))
            compare(f"kd's {name}, back from PyTorch", network, theirs.with_suffix(".safetensors"), name)


if __name__ == "__main__":
    main()
