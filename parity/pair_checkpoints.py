"""Writes checkpoints of teachers of the published CIFAR-100 pairs with fresh weights, as RepDistiller and mdistiller save them.

    python pair_checkpoints.py FOLDER

`cargo xtask soak pairs --python PYTHON` calls it and lets kd take each as a teacher.
"""

import sys
from pathlib import Path

import torch
from torch import nn

from networks import ResNet
from small_networks import MODULES

CLASSES = 100


def save(path: Path, content: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)


def repdistiller(model: nn.Module) -> dict[str, object]:
    """What train_teacher.py saves every 40 epochs."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    return {"epoch": 240, "model": model.state_dict(), "accuracy": torch.tensor(75.61), "optimizer": optimizer.state_dict()}


def mdistiller(model: nn.Module) -> dict[str, object]:
    """What engine/trainer.py saves of the student alone."""
    return {"model": model.state_dict()}


def main() -> None:
    folder = Path(sys.argv[1])
    torch.manual_seed(0)
    save(folder / "wrn_40_2_vanilla/ckpt_epoch_240.pth", repdistiller(MODULES["wrn-40-2"](CLASSES)))
    save(folder / "resnet56_vanilla/ckpt_epoch_240.pth", repdistiller(ResNet(9, CLASSES, projection=True)))
    save(folder / "vgg13/student_best", mdistiller(MODULES["vgg13"](CLASSES)))
    save(folder / "ResNet50/student_best", mdistiller(MODULES["resnet50-cifar"](CLASSES)))


if __name__ == "__main__":
    main()
