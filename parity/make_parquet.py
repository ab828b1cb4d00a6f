"""Writes crates/kd-data/tests/fixtures/*.parquet: pictures as the hubs have them, by pyarrow. Needs pyarrow and Pillow."""

import io
import json
import pathlib

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

FOLDER = pathlib.Path(__file__).parent.parent / "crates/kd-data/tests/fixtures"
NAMES = ["cat", "dog", "elk"]


def picture(number):
    """Picture `number`: 12 x 9 pixels, red by its number, green and blue by the place."""
    image = Image.new("RGB", (12, 9))
    image.putdata([(number * 20, x * 9, y * 9) for y in range(9) for x in range(12)])
    into = io.BytesIO()
    image.save(into, "PNG")
    return into.getvalue()


def write(name, numbers, labels, image="image", label="label", kind=pa.int64(), features=True, **how):
    bytes_and_path = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pictures = [{"bytes": picture(number), "path": f"{number}.png"} for number in numbers]
    table = pa.table({image: pa.array(pictures, type=bytes_and_path), label: pa.array(labels, type=kind)})
    if features:
        about = {image: {"_type": "Image"}, label: {"names": NAMES, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": about}})})
    pq.write_table(table, FOLDER / name, **how)


write("hub-train-0.parquet", range(5), [0, 1, 2, 0, 1], compression="snappy", row_group_size=2)
write("hub-train-1.parquet", range(5, 8), [2, 0, 1], compression="zstd")
write("hub-test.parquet", range(8, 10), [1, 2], image="img", label="fine_label")
write("hub-unlabelled.parquet", range(3), [-1, -1, None], compression="snappy")
write("hub-plain.parquet", range(3), [0, 1, 0], kind=pa.int32(), features=False, compression="none", data_page_version="2.0")
pq.write_table(pa.table({"text": ["a"]}), FOLDER / "hub-text.parquet")
