"""Writes small JPEG files of every ordinary kind, and the pixels that Pillow (libjpeg-turbo) decodes them to.

    .venv/bin/python parity/make_jpegs.py     # writes crates/kd-data/tests/fixtures/jpegs
"""

from pathlib import Path

import numpy as np
from PIL import Image

FOLDER = Path(__file__).resolve().parent.parent / "crates/kd-data/tests/fixtures/jpegs"


def picture(width: int, height: int) -> Image.Image:
    """Waves with noise on every sixth pixel, so that chroma changes quickly, and slowly."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([x * 7 + y * 3, x * 2 + y * 11, 255 - x * 5 + y], -1).astype(np.uint8)
    noise = np.random.default_rng(1).integers(0, 255, pixels[::3, ::2].shape)
    pixels[::3, ::2] = noise
    return Image.fromarray(pixels)


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    kinds = {
        "420": {"subsampling": 2},
        "422": {"subsampling": 1, "quality": 95},
        "444": {"subsampling": 0},
        "420-progressive": {"subsampling": 2, "progressive": True},
        "422-progressive": {"subsampling": 1, "progressive": True, "quality": 95},
        "420-restarts": {"subsampling": 2, "restart_marker_blocks": 2, "optimize": True},
        "420-coarse": {"subsampling": 2, "quality": 10},
    }
    for name, kind in kinds.items():
        for width, height in [(37, 29), (4, 3)]:
            path = FOLDER / f"{name}-{width}x{height}.jpg"
            picture(width, height).save(path, **{"quality": 80, **kind})
            Image.open(path).convert("RGB").save(path.with_suffix(".png"), optimize=True)
    path = FOLDER / "grey-37x29.jpg"
    picture(37, 29).convert("L").save(path, quality=80)
    Image.open(path).convert("RGB").save(path.with_suffix(".png"), optimize=True)


if __name__ == "__main__":
    main()
