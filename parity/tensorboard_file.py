"""Opens what `kd train --tensorboard` writes in the real TensorBoard, stopped and gone on with in between.

    python parity/tensorboard_file.py --kd target/debug/kd        (pip install tensorboard)

Every scalar that TensorBoard's EventAccumulator reads must be the one in events.jsonl: step, value, time;
no step twice, neither for one that opens the files afterwards nor for one that had them open all along.
Without the tensorboard package it says SKIPPED and ends with code 77: that is not a pass.
"""

import argparse
import json
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np

SKIPPED = 77
LINE = (
    "train --model student --dataset synthetic --train-limit 400 --test-limit 100 --epochs 4 --batch-size 2"
    " --checkpoint-every 60 --tensorboard --plain"
).split()


def expected(events):
    """tag -> [(step, value, time)] from events.jsonl."""
    scalars = {}
    for line in events.read_text().splitlines():
        event = json.loads(line)
        if event["event"] == "step":
            own = {"train/step_loss": event["loss"]}
            step = event["step"]
        elif event["event"] == "epoch":
            names = {
                "train/loss": "train_loss",
                "train/accuracy": "train_accuracy",
                "train/images_per_second": "images_per_second",
                "test/loss": "test_loss",
                "test/accuracy": "test_accuracy",
            }
            own = {tag: event[name] for tag, name in names.items()}
            own |= {f"parts/{name}": value for name, value in event["parts"].items()}
            step = event["epoch"]
        else:
            continue
        for tag, value in own.items():
            scalars.setdefault(tag, []).append((step, float(np.float32(value)), event["time"]))
    return scalars


def read(accumulator):
    accumulator.Reload()
    tags = accumulator.Tags()
    names = set(tags["scalars"]) | set(tags["tensors"])
    found = {}
    for tag in names:
        found[tag] = [(e.step, e.value, e.wall_time) for e in accumulator.Scalars(tag)]
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kd", default="target/debug/kd")
    options = parser.parse_args()
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError:
        print("SKIPPED: no package tensorboard here", file=sys.stderr)
        sys.exit(SKIPPED)
    kd = str(pathlib.Path(options.kd).resolve())
    with tempfile.TemporaryDirectory() as folder:
        run = pathlib.Path(folder, "out/student")
        process = subprocess.Popen(
            [kd, *LINE, "--out", str(run.parent)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        # Until it has gone beyond a checkpoint by some steps.
        while not any(run.glob("checkpoints/step-*00120*")):
            if process.poll() is not None:
                sys.exit("the run ended before it could be stopped")
            time.sleep(0.01)
        time.sleep(0.3)
        process.send_signal(signal.SIGKILL)
        process.wait()
        everything = {"scalars": 0, "tensors": 0}
        open_all_along = EventAccumulator(str(run), size_guidance=everything)
        before = read(open_all_along)
        if not before.get("train/step_loss"):
            sys.exit(f"TensorBoard sees no step in the stopped run: {before}")
        subprocess.run(
            [kd, *LINE, "--out", str(run.parent)],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wanted = expected(run / "events.jsonl")
        opened_after = EventAccumulator(str(run), size_guidance=everything)
        for name, accumulator in (("opened after", opened_after), ("open all along", open_all_along)):
            found = read(accumulator)
            if found != wanted:
                sys.exit(f"{name}: TensorBoard has {found}\nexpected {wanted}")
            print(f"{name}: {sum(map(len, found.values()))} scalars in {len(found)} tags, as in events.jsonl")


if __name__ == "__main__":
    main()
