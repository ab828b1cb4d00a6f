"""Writes files of torch.save to crates/kd-models/tests/fixtures/torch: what people have, and what is not weights.

    python make_torch_files.py

Most tensors are views of one short storage, element [i, j, ...] being its element i + j + ... So the files are small, and
strides other than row-major are read. `hashed` of make_fixtures.py fills the storage; tests/common computes the same.
"""

from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor, nn

from make_fixtures import hashed
from networks import ResNet, Student, head

OUT = Path(__file__).resolve().parent.parent / "crates/kd-models/tests/fixtures/torch"
STORAGE = (300,)


def views(model: nn.Module, storage: Tensor) -> OrderedDict[str, Tensor]:
    """The model's state dict with views of `storage` in the place of its values, all positive for the variances' sake."""
    state = OrderedDict()
    for name, tensor in model.state_dict().items():
        counts = name.endswith("num_batches_tracked")
        state[name] = tensor if counts else storage.as_strided(tensor.shape, [1] * tensor.dim())
    return state


def small_student() -> nn.Module:
    """The tutorial's student for images of 4x4 pixels and two classes."""
    student = Student()
    student.classifier = head(16, 256, 2, 0.1)
    return student


def under(prefix: str, state: dict[str, Tensor], **renamed: str) -> OrderedDict[str, Tensor]:
    """The same tensors with `prefix` before their names and other names of first modules."""
    def name(old: str) -> str:
        first, _, rest = old.partition(".")
        return f"{prefix}{renamed.get(first, first)}.{rest}"
    return OrderedDict((name(old), tensor) for old, tensor in state.items())


def akamaster(state: dict[str, Tensor]) -> OrderedDict[str, Tensor]:
    """The same tensors with that project's name of a shortcut with weights."""
    return OrderedDict((name.replace(".downsample.", ".shortcut."), tensor) for name, tensor in state.items())


def files() -> dict[str, object]:
    storage = hashed(STORAGE, 1, 0.5) + 1.0
    other = hashed(STORAGE, 2, 0.5) + 1.0
    student, resnet, projected = small_student(), ResNet(1), ResNet(1, projection=True)
    contiguous = OrderedDict((name, tensor.contiguous()) for name, tensor in views(student, storage).items())
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    parameter.sum().backward()
    optimizer.step()
    wide = storage.double()
    beyond = views(student, wide)
    beyond["classifier.3.bias"] = torch.tensor([1.0, 1e300], dtype=torch.float64)
    return {
        "student.pth": contiguous,
        "half.pt": views(student, storage.half()),
        "bfloat16.bin": views(student, storage.bfloat16()),
        "double.pth": views(student, wide),
        "beyond.pth": beyond,
        "integers.pth": views(student, (storage * 10).long()),
        "parameters.pt": OrderedDict((n, nn.Parameter(t)) for n, t in views(student, storage).items()),
        # As RepDistiller's train_teacher.py saves, of nn.DataParallel.
        "checkpoint.pth": {
            "epoch": 240,
            "model": under("module.", views(resnet, storage), linear="fc"),
            "best_acc": 0.9,
            "optimizer": optimizer.state_dict(),
        },
        # As RepDistiller's train_teacher.py and train_student.py save, and chenyaofo's pytorch-cifar-models.
        "option_b.pth": {"epoch": 240, "model": views(projected, storage), "best_acc": torch.tensor(70.5)},
        "option_b.pt": views(projected, storage),
        # As akamaster's pytorch_resnet_cifar10 saves its option B, of nn.DataParallel.
        "option_b.th": {
            "state_dict": under("module.", akamaster(views(projected, storage)), fc="linear"), "best_prec1": 91.5,
        },
        # As Lightning saves a module that has both networks.
        "lightning.ckpt": {
            "state_dict": under("student.", views(student, storage)) | under("teacher.", views(resnet, other)),
            "hyper_parameters": {"lr": 0.1},
        },
        "two.pth": {"model": views(student, storage), "model_ema": views(student, other)},
        "same_twice.pth": {"model": views(student, storage), "state_dict": views(student, storage)},
        "object.pth": nn.Linear(2, 2),
        "nothing.pth": {"epoch": 3, "names": ["a", "b"]},
    }


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    for name, content in files().items():
        torch.save(content, OUT / name)
    for name in ("student.pth", "half.pt", "checkpoint.pth", "integers.pth", "object.pth"):
        torch.save(files()[name], OUT / f"legacy_{name}", _use_new_zipfile_serialization=False)
    torch.jit.script(nn.Linear(2, 2)).save(str(OUT / "script.pt"))
    for path in sorted(OUT.iterdir()):
        print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
