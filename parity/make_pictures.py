"""Writes picture files of every kind that kd-data reads, and beside each what Pillow makes of it in 32x32.

    .venv/bin/python parity/make_pictures.py     # writes crates/kd-data/tests/fixtures/pictures

The pictures are smooth patterns computed here, so that JPEG decoders agree to a few steps.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

FOLDER = Path(__file__).resolve().parent.parent / "crates/kd-data/tests/fixtures/pictures"
ORIENTATION = 0x0112


def pattern(width: int, height: int, channels: int, top: int = 255) -> np.ndarray:
    """Waves of another direction and length in each channel, 0 to `top`."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    waves = [np.sin(x / (5 + 2 * c) + y / (11 - 2 * c) + c) for c in range(channels)]
    return np.rint((np.stack(waves, -1) + 1) / 2 * top).astype(np.uint16 if top > 255 else np.uint8)


def expected(path: Path) -> Image.Image:
    """Upright, on white, the middle square, bilinear with antialiasing."""
    picture = ImageOps.exif_transpose(Image.open(path))
    if picture.mode.startswith("I;16"):
        picture = Image.fromarray(((np.asarray(picture).astype(np.uint32) + 128) // 257).astype(np.uint8))
    if picture.mode in ("LA", "RGBA") or "transparency" in picture.info:
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture.convert("RGBA"))
    picture = picture.convert("RGB")
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return picture.crop((left, top, left + side, top + side)).resize((32, 32), Image.Resampling.BILINEAR)


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)

    def save(name: str, picture: Image.Image, **options) -> None:
        picture.save(FOLDER / name, **options)
        expected(FOLDER / name).save(FOLDER / (name + ".expected"), format="PNG")

    save("same-size.png", Image.fromarray(pattern(32, 32, 3)))
    save("wide.png", Image.fromarray(pattern(70, 50, 3)))
    save("tiny.png", Image.fromarray(pattern(9, 14, 3)))
    save("grey.png", Image.fromarray(pattern(20, 64, 1)[..., 0]))
    save("grey-16-bit.png", Image.fromarray(pattern(40, 36, 1, 65535)[..., 0]))
    save("grey-alpha.png", Image.fromarray(pattern(40, 40, 2), "LA"))
    save("alpha.png", Image.fromarray(pattern(66, 34, 4)))
    palette = Image.fromarray(pattern(48, 48, 3)).quantize(16)
    save("palette-transparent.png", palette, transparency=3)
    colour = Image.fromarray(pattern(100, 60, 3))
    for value in range(1, 9):
        exif = Image.Exif()
        exif[ORIENTATION] = value
        save(f"orientation-{value}.jpg", colour, quality=95, subsampling=0, exif=exif)
    save("progressive.jpg", colour, quality=95, subsampling=0, progressive=True)
    save("grey.jpg", colour.convert("L"), quality=95)
    save("cmyk.jpg", colour.convert("CMYK"), quality=95)


if __name__ == "__main__":
    main()
