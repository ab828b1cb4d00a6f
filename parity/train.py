"""Trains the tutorial's networks in PyTorch on CIFAR-10's binary files: the figures to compare with.

    python train.py --data data/cifar-10-batches-bin --json pytorch.json [--epochs 10] [--seed 0]
                    [--runs teacher,student,kd,cosine,regressor] [--threads 2] [--keep-teacher-outputs]

Settings as in the tutorial: Adam at 1e-3, batch 128, no augmentation, dropout 0.1; temperature 2 with weight
0.25, labels 0.75; cosine and regressor 0.25, labels 0.75. Of one seed, all student runs share the initial
weights, the order of the images and the dropout masks. Finished runs in the JSON file are not run again.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks import Network, Student, Teacher

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH, RATE, TEMPERATURE, LABELS = 128, 1e-3, 2.0, 0.75
RUNS = ("teacher", "student", "kd", "cosine", "regressor")
RECORD = 1 + 3 * 32 * 32


def load(folder: Path, names: list[str]) -> tuple[Tensor, Tensor]:
    """Images u8 [N, 3, 32, 32] in channels_last, labels i64 [N]."""
    parts = []
    for name in names:
        raw = np.fromfile(folder / name, dtype=np.uint8)
        if raw.size != 10_000 * RECORD:
            sys.exit(f"{folder / name}: {raw.size} bytes; expected {10_000 * RECORD}")
        parts.append(raw.reshape(-1, RECORD))
    raw = np.concatenate(parts)
    if raw[:, 0].max() > 9:
        sys.exit(f"{folder}: label {raw[:, 0].max()}; expected 0 to 9")
    images = torch.from_numpy(raw[:, 1:].reshape(-1, 3, 32, 32))
    labels = torch.from_numpy(raw[:, 0].astype(np.int64))
    return images.contiguous(memory_format=torch.channels_last), labels


def normalize(images: Tensor) -> Tensor:
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (MEAN, STD))
    return (images.float() / 255 - mean) / std


@torch.no_grad()
def evaluate(model: Network, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Mean loss and accuracy."""
    model.eval()
    loss, correct = 0.0, 0
    for x, y in zip(images.split(500), labels.split(500)):
        logits, _ = model(normalize(x))
        loss += F.cross_entropy(logits, y, reduction="sum").item()
        correct += (logits.argmax(1) == y).sum().item()
    return loss / len(labels), correct / len(labels)


@torch.no_grad()
def answer(teacher: Network, images: Tensor) -> tuple[Tensor, Tensor]:
    teacher.eval()
    return teacher(normalize(images))


def distillation_loss(
    run: str, logits: Tensor, features: Tensor, regressor: nn.Module, answers: tuple[Tensor, Tensor]
) -> Tensor:
    teacher_logits, teacher_features = answers
    if run == "kd":
        return TEMPERATURE**2 * F.kl_div(
            F.log_softmax(logits / TEMPERATURE, 1), F.log_softmax(teacher_logits / TEMPERATURE, 1),
            reduction="batchmean", log_target=True,
        )
    if run == "cosine":
        pooled = F.avg_pool1d(teacher_features.flatten(1), 2)
        return F.cosine_embedding_loss(features.flatten(1), pooled, torch.ones(len(pooled)))
    return F.mse_loss(regressor(features), teacher_features)


def train(run: str, options, train_set, test_set, teacher: Network | None) -> tuple[Network, dict]:
    images, labels = train_set
    torch.manual_seed(options.seed)
    model = (Teacher if run == "teacher" else Student)()
    # After the student, so that its weights are the same in all runs.
    regressor = nn.Conv2d(16, 32, 3, padding=1)
    model, regressor = (m.to(memory_format=torch.channels_last) for m in (model, regressor))
    learned = [*model.parameters(), *(regressor.parameters() if run == "regressor" else [])]
    optimizer = torch.optim.Adam(learned, lr=RATE)
    first_norm = model.features[0].weight.norm().item()

    kept = None
    if teacher is not None and options.keep_teacher_outputs:
        parts = [answer(teacher, part) for part in images.split(500)]
        kept = tuple(torch.cat(part).contiguous() for part in zip(*parts))

    epochs, start = [], time.perf_counter()
    for epoch in range(options.epochs):
        order = torch.randperm(
            len(labels), generator=torch.Generator().manual_seed(options.seed * 1000 + epoch)
        )
        # For the dropout masks.
        torch.manual_seed(options.seed * 1000 + epoch)
        model.train()
        total, batches, correct, begun = 0.0, 0, 0, time.perf_counter()
        for chosen in order.split(BATCH):
            x, y = images[chosen], labels[chosen]
            logits, features = model(normalize(x))
            loss = F.cross_entropy(logits, y)
            if teacher is not None:
                answers = tuple(k[chosen] for k in kept) if kept else answer(teacher, x)
                method = distillation_loss(run, logits, features, regressor, answers)
                loss = LABELS * loss + (1 - LABELS) * method
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total, batches = total + loss.item(), batches + 1
            correct += (logits.argmax(1) == y).sum().item()
        seconds = time.perf_counter() - begun
        test_loss, test_accuracy = evaluate(model, *test_set)
        epochs.append({
            "epoch": epoch + 1, "train_loss": total / batches, "train_accuracy": correct / len(labels),
            "test_loss": test_loss, "test_accuracy": test_accuracy, "seconds": seconds,
            "images_per_second": len(labels) / seconds,
        })
        print(
            f"{run} {epoch + 1}/{options.epochs}: loss {total / batches:.4f}, "
            f"test accuracy {test_accuracy:.4f}, {seconds:.1f} s", flush=True,
        )
    return model, {
        "name": run, "model": "teacher" if run == "teacher" else "student",
        "parameters": sum(p.numel() for p in model.parameters()), "first_norm": first_norm,
        "test_accuracy": epochs[-1]["test_accuracy"],
        "best_test_accuracy": max(epoch["test_accuracy"] for epoch in epochs),
        "train_loss": [epoch["train_loss"] for epoch in epochs],
        "seconds": time.perf_counter() - start, "epochs": epochs,
    }


def write_whole(path: Path, write) -> None:
    """Writes aside and renames, so that no half-written file is ever taken for a whole one."""
    aside = path.with_name(path.name + ".partial")
    write(aside)
    os.replace(aside, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder with the .bin files")
    parser.add_argument("--json", type=Path, required=True, help="results; the teacher's weights go beside it")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--runs", default=",".join(RUNS), help="of " + ",".join(RUNS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--keep-teacher-outputs", action="store_true",
        help="ask the teacher once for each image and keep its answers (410 MB)",
    )
    options = parser.parse_args()
    runs = options.runs.split(",")
    if unknown := set(runs) - set(RUNS):
        parser.error(f"unknown runs {', '.join(sorted(unknown))}; they are {', '.join(RUNS)}")
    if options.epochs < 1:
        parser.error("--epochs must be at least 1")
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)

    settings = {"epochs": options.epochs, "seed": options.seed, "batch_size": BATCH, "lr": RATE,
                "temperature": TEMPERATURE, "labels": LABELS}
    results = {"format": 1, "torch": torch.__version__, "settings": settings, "runs": []}
    if options.json.exists():
        results = json.loads(options.json.read_text())
        if results["settings"] != settings:
            sys.exit(f"{options.json}: made with {results['settings']}, not {settings}; name another file")
    done = {run["name"] for run in results["runs"]}

    train_set = load(options.data, [f"data_batch_{i}.bin" for i in range(1, 6)])
    test_set = load(options.data, ["test_batch.bin"])
    teacher_path = options.json.with_suffix(".teacher.pt")
    teacher = None
    for run in runs:
        if run in done:
            print(f"{run}: done before, test accuracy "
                  f"{next(r['test_accuracy'] for r in results['runs'] if r['name'] == run):.4f}")
            continue
        if run not in ("teacher", "student") and teacher is None:
            if not teacher_path.exists():
                sys.exit(f"{teacher_path} is missing: run the teacher first (--runs teacher,{run})")
            teacher = Teacher().to(memory_format=torch.channels_last)
            teacher.load_state_dict(torch.load(teacher_path, weights_only=True))
        needed = teacher if run not in ("teacher", "student") else None
        model, result = train(run, options, train_set, test_set, needed)
        if run == "teacher":
            write_whole(teacher_path, lambda path: torch.save(model.state_dict(), path))
        result["threads"] = options.threads
        results["runs"].append(result)
        write_whole(options.json, lambda path: path.write_text(json.dumps(results, indent=1) + "\n"))


if __name__ == "__main__":
    main()
