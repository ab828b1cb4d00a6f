"""Writes pictures of waves and beside each what torchvision's Resize and CenterCrop make of it as a PIL picture.

    .venv/bin/python parity/make_crops.py [--check]     # crates/kd-data/tests/fixtures/crops

Names: NAME.png, and NAME-RESIZE-SIZE-FILTER.png. Up to version 12 Pillow scales along the lines first, as kd does; version 13
scales some pictures along the columns first, which rounds otherwise: by one grey level in these.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from make_pictures import pattern

FOLDER = Path(__file__).resolve().parent.parent / "crates/kd-data/tests/fixtures/crops"
PICTURES = {"wide": (97, 70), "tall": (41, 83), "small": (9, 12)}
CASES = [(32, 28), (33, 24), (50, 49), (70, 61)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true", help="compare with what is there")
    check = parser.parse_args().check
    FOLDER.mkdir(exist_ok=True)
    for name, (width, height) in PICTURES.items():
        picture = Image.fromarray(pattern(width, height, 3))
        made = {f"{name}.png": picture}
        for resize, size in CASES:
            for how in ("bilinear", "bicubic"):
                scale = Resize(resize, InterpolationMode[how.upper()])
                made[f"{name}-{resize}-{size}-{how}.png"] = Compose([scale, CenterCrop(size)])(picture)
        for file, result in made.items():
            if check:
                there = np.asarray(Image.open(FOLDER / file))
                assert np.array_equal(there, np.asarray(result)), f"{file} differs"
            else:
                result.save(FOLDER / file)


if __name__ == "__main__":
    main()
