"""What `kd export --onnx` writes, checked by onnx and run in onnxruntime beside PyTorch.

    cargo build -p kd-run
    .venv/bin/python parity/onnx_export.py --kd target/debug/kd [--weights runs/tutorial/kd.safetensors --data data]
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from safetensors.torch import load_file, save_file

from exchange import logits, normalized
from networks import ResNet, Student, Teacher

TOLERANCE = 1e-4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kd", type=Path, required=True, help="the binary kd")
    parser.add_argument("--weights", type=Path, help="a student's weights, for the accuracy of int8")
    parser.add_argument("--data", type=Path, help="folder of test_batch.bin, for the same")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)

        def export(name: str, weights: Path, *flags: str) -> onnxruntime.InferenceSession:
            path = folder / "network.onnx"
            subprocess.run([arguments.kd.resolve(), "export", "--weights", weights, "--model", name, "--onnx", path, *flags], check=True, stdout=subprocess.DEVNULL)
            onnx.checker.check_model(onnx.load(path), full_check=True)
            print(f"{name} {' '.join(flags)}: {path.stat().st_size} bytes")
            return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

        torch.manual_seed(0)
        resnet = ResNet(3)
        with torch.no_grad():  # running statistics and scales that matter
            for _ in range(30):
                resnet(normalized(torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)))
            for name, parameter in resnet.named_parameters():
                if "bn" in name:
                    parameter.add_(torch.rand_like(parameter) - 0.5)
        for name, network in {"teacher": Teacher(), "student": Student(), "resnet20": resnet}.items():
            weights = folder / "weights.safetensors"
            save_file(network.state_dict(), weights)
            for flags in ((), ("--float",), ("--int8",)):
                session = export(name, weights, *flags)
                for batch in (1, 5):
                    images = torch.randint(0, 256, (batch, 3, 32, 32), dtype=torch.uint8)
                    given = images.numpy().astype(np.float32) / 255 if "--float" in flags else images.numpy()
                    found = session.run(["logits"], {"images": given})[0]
                    difference = np.abs(found - logits(network, images).numpy()).max()
                    print(f"  batch {batch}: largest difference {difference:.1e}")
                    assert "--int8" in flags or difference < TOLERANCE

        if arguments.weights and arguments.data:
            records = np.fromfile(arguments.data / "test_batch.bin", np.uint8).reshape(-1, 3073)
            images, labels = records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0]
            student = Student()
            student.load_state_dict(load_file(arguments.weights), strict=True)
            expected = logits(student, torch.from_numpy(images.copy())).numpy()
            for flags in ((), ("--int8",)):
                session = export("student", arguments.weights, *flags)
                print("  classes", json.loads(session.get_modelmeta().custom_metadata_map["classes"]))
                found = session.run(["logits"], {"images": images})[0]
                print(f"  accuracy {(found.argmax(1) == labels).mean():.4f}, PyTorch {(expected.argmax(1) == labels).mean():.4f}, largest difference {np.abs(found - expected).max():.1e}")


if __name__ == "__main__":
    main()
