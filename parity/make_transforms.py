"""Writes what torchvision's transforms make of one picture: resize, centre crop, crop and scale, by PIL.

    .venv/bin/python parity/make_transforms.py     # writes crates/kd-data/tests/fixtures/transforms

The picture is computed here and in crates/kd-data/tests/transforms.rs: noise over waves, so that every pixel counts.
"""

from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

FOLDER = Path(__file__).resolve().parent.parent / "crates/kd-data/tests/fixtures/transforms"
MODES = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}


def picture(width: int, height: int) -> Image.Image:
    """Byte `i` (row by row, pixel by pixel, red, green, blue) is the top byte of `i` times a constant, halved, on a ramp."""
    i = np.arange(height * width * 3, dtype=np.uint64)
    noise = ((i * 2654435761) % 2**32) >> 24
    ramp = (i // 3 % width * 127) // width
    return Image.fromarray((noise // 2 + ramp).astype(np.uint8).reshape(height, width, 3))


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for mode, interpolation in MODES.items():
        for width, height, resize, size in [(61, 47, 24, 24), (40, 75, 33, 28), (17, 13, 32, 24), (90, 64, 64, 31)]:
            scaled = F.resize(picture(width, height), resize, interpolation, antialias=True)
            F.center_crop(scaled, size).save(FOLDER / f"{mode}-{width}x{height}-{resize}-{size}.png")
        for top, left, height, width, size in [(3, 5, 30, 41, 24), (10, 0, 9, 13, 24)]:
            cut = F.resized_crop(picture(61, 47), top, left, height, width, [size, size], interpolation, antialias=True)
            cut.save(FOLDER / f"{mode}-crop-{top}-{left}-{height}-{width}-{size}.png")


if __name__ == "__main__":
    main()
