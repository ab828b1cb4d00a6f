"""Writes what torchvision's RandAugment, TrivialAugmentWide and ColorJitter make of one picture, by PIL.

    .venv/bin/python parity/make_augment.py     # writes crates/kd-data/tests/fixtures/augment

`augment.txt` has a line for each change, `augment.png` the pictures one below the other. The picture is that of `make_transforms.py`.
"""

from pathlib import Path

import numpy as np
from make_transforms import picture
from PIL import Image
from torchvision.transforms import InterpolationMode, RandAugment, TrivialAugmentWide
from torchvision.transforms import functional as F
from torchvision.transforms.autoaugment import _apply_op

FOLDER = Path(__file__).resolve().parent.parent / "crates/kd-data/tests/fixtures/augment"
WIDTH, HEIGHT = 33, 26
JITTERS = [
    ([0, 1, 2, 3], [1.3, 0.7, 1.25, 0.09]),
    ([3, 2, 1, 0], [0.6, 1.4, 0.2, -0.31]),
    ([2, 0, 3, 1], [1.0, 1.9, 0.0, 0.5]),
    ([1, 3, 0, 2], [2.5, 0.0, 1.75, 0.0]),
]


def jittered(image: Image.Image, order: list[int], amounts: list[int]) -> Image.Image:
    changes = [F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue]
    for which in order:
        if which != 3 or amounts[which] != 0:
            image = changes[which](image, amounts[which] / 65536)
    return image


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    plain, lines, pictures = picture(WIDTH, HEIGHT), [], []
    spaces = [
        ("narrow", RandAugment()._augmentation_space(31, (HEIGHT, WIDTH)), [5, 9, 30]),
        ("wide", TrivialAugmentWide()._augmentation_space(31), [1, 14, 20, 30]),
    ]
    for space, operations, levels in spaces:
        for name, (magnitudes, signed) in operations.items():
            for level in levels if magnitudes.ndim > 0 else levels[:1]:
                for sign in "+-" if signed else "+":
                    magnitude = float(magnitudes[level].item()) if magnitudes.ndim > 0 else 0.0
                    value = -magnitude if sign == "-" else magnitude
                    lines.append(f"{space} {name} {level} {sign}")
                    pictures.append(_apply_op(plain, name, value, InterpolationMode.NEAREST, None))
    for order, amounts in JITTERS:
        steps = [round(amount * 65536) for amount in amounts]
        lines.append(" ".join(map(str, ["jitter", *order, *steps])))
        pictures.append(jittered(plain, order, steps))
    (FOLDER / "augment.txt").write_text("\n".join(lines) + "\n")
    Image.fromarray(np.concatenate([np.array(one) for one in pictures])).save(FOLDER / "augment.png", optimize=True)
    print(f"{len(lines)} pictures")


if __name__ == "__main__":
    main()
