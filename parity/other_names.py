"""Which tensor of another code base's file is which of kd's, for crates/kd-models/tests/fixtures/names.

    pip install --no-deps efficientnet-lite-pytorch      # the reference code of EfficientNet-Lite with lukemelas' names
    python other_names.py [--check]

Each line of a file is their name, then kd's, which is timm's `tf_efficientnet_lite0` or torchvision's MobileNetV2. Both code
bases list the tensors in the order of the layers; that the pairs mean the same is shown by equal logits.
"""

import argparse
from pathlib import Path

import timm
import torch
from torch import nn

import families

FOLDER = Path(__file__).parent.parent / "crates/kd-models/tests/fixtures/names"


def lukemelas() -> nn.Module:
    from efficientnet_lite_pytorch import EfficientNet

    return EfficientNet.from_name("efficientnet-lite0")


PAIRS = {
    "lukemelas-efficientnet_lite0": (lukemelas, "efficientnet_lite0"),
    "timm-mobilenet_v2_050": (lambda: timm.create_model("mobilenetv2_050"), "mobilenet_v2_050"),
}


def lines(theirs: nn.Module, name: str) -> str:
    ours = families.module(name, 1000)
    families.fixed_weights(theirs, "no", 1.0)
    other, own = theirs.state_dict(), ours.state_dict()
    names = list(zip(other, own, strict=True))
    ours.load_state_dict({b: other[a] for a, b in names})
    torch.manual_seed(0)
    images = torch.randn(2, 3, 224, 224)
    difference = (families.evaluated(theirs, images) - families.evaluated(ours, images)).abs().max()
    assert difference < 1e-4, f"{name}: logits differ by {difference}"
    return "".join(f"{a} {b}\n" for a, b in names if other[a].dim() > 0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true", help="compare with what is there")
    check = parser.parse_args().check
    FOLDER.mkdir(exist_ok=True)
    for name, (theirs, ours) in PAIRS.items():
        path, text = FOLDER / f"{name}.txt", lines(theirs(), ours)
        if check:
            assert path.read_text() == text, f"{path} differs"
        else:
            path.write_text(text)


if __name__ == "__main__":
    main()
