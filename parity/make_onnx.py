"""Writes crates/kd-run/tests/cli/fixtures/teacher.onnx, a network of PyTorch's, and beside it what ONNX Runtime computes with it for pictures of
one colour each, normalised with mean 0.5 and deviation 0.25. Needs torch and onnxruntime."""

import json
import pathlib
import warnings

import numpy as np
import onnxruntime
import torch

FOLDER = pathlib.Path(__file__).parent.parent / "crates/kd-run/tests/cli/fixtures"
COLOURS = [[10, 200, 90], [255, 0, 128], [0, 0, 0], [77, 77, 250]]


class Teacher(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3, stride=4, padding=1)
        self.linear = torch.nn.Linear(4, 2)

    def forward(self, images):
        maps = torch.relu(self.conv(images))
        return self.linear(maps.mean((2, 3))), maps


def main():
    warnings.filterwarnings("ignore")
    torch.manual_seed(3)
    path = FOLDER / "teacher.onnx"
    dynamic = {name: {0: "batch"} for name in ["images", "logits", "maps"]}
    torch.onnx.export(
        Teacher().eval(), (torch.randn(1, 3, 32, 32),), str(path), dynamo=False, opset_version=17,
        input_names=["images"], output_names=["logits", "maps"], dynamic_axes=dynamic,
    )
    colours = (np.array(COLOURS, np.float32) / 255 - 0.5) / 0.25
    images = np.broadcast_to(colours[:, :, None, None], (len(COLOURS), 3, 32, 32)).astype(np.float32)
    logits = onnxruntime.InferenceSession(str(path)).run(["logits"], {"images": images})[0]
    values = {"colours": COLOURS, "logits": logits.tolist()}
    (FOLDER / "teacher-onnx.json").write_text(json.dumps(values) + "\n")


if __name__ == "__main__":
    main()
