"""What `kd quantize` writes, checked by onnx and run in onnxruntime beside kd's own computation of the same network.

    .venv/bin/python parity/quantized.py --kd target/release/kd --weights runs/tutorial/student.safetensors --data data
"""

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from safetensors.numpy import load_file


def answers(path: Path, images: np.ndarray, precise: bool) -> tuple[np.ndarray, float]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if precise:
        options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    start = time.perf_counter()
    logits = [session.run(["logits"], {"images": batch})[0] for batch in np.array_split(images, max(1, len(images) // 100))]
    return np.concatenate(logits), time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kd", type=Path, required=True, help="the binary kd")
    parser.add_argument("--weights", type=Path, required=True, help="weights that kd wrote")
    parser.add_argument("--data", type=Path, required=True, help="folder of test_batch.bin")
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[], help="further flags of kd quantize")
    arguments = parser.parse_args()
    records = np.fromfile(arguments.data / "test_batch.bin", np.uint8).reshape(-1, 3073)
    images, labels = records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        whole = folder / "whole.onnx"
        subprocess.run([arguments.kd.resolve(), "export", "--weights", arguments.weights, "--onnx", whole], check=True, stdout=subprocess.DEVNULL)
        logits, seconds = answers(whole, images, False)
        print(f"f32: accuracy {(logits.argmax(1) == labels).mean():.4f}, {seconds:.2f} s on one thread")
        for bits in (7, 8):
            path, own = folder / f"int{bits}.onnx", folder / f"logits{bits}.safetensors"
            line = [arguments.kd.resolve(), "quantize", "--weights", arguments.weights, "--data", arguments.data, "--onnx", path, "--logits", own, "--weight-bits", str(bits), "--json", *arguments.flags]
            found = json.loads(subprocess.run(line, check=True, stdout=subprocess.PIPE).stdout)
            onnx.checker.check_model(onnx.load(path), full_check=True)
            here = load_file(own)["logits"]
            print(f"{bits}-bit weights: {path.stat().st_size} bytes; kd: f32 {found['accuracy']['float']:.4f}, int8 {found['accuracy']['int8']:.4f}")
            for precise in (False, True):
                logits, seconds = answers(path, images, precise)
                same = (logits.argmax(1) == here.argmax(1)).mean()
                print(f"  onnxruntime{', x64quantprecision' if precise else ''}: accuracy {(logits.argmax(1) == labels).mean():.4f}, same class as kd {same:.4f}, largest difference {np.abs(logits - here).max():.3f}, {seconds:.2f} s")
                assert same >= 0.99 or (bits == 8 and not precise), same


if __name__ == "__main__":
    main()
