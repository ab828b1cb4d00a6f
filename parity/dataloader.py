"""How many pictures a second torchvision's DataLoader makes into training batches: the peer of kd-data's example `throughput`.

    .venv/bin/python parity/dataloader.py clothing 2     # a folder with train/CLASS/* in it, and the number of workers
"""

import sys
import time

import torch
from torch.utils.data import DataLoader
from torchvision import datasets, transforms


def main() -> None:
    folder, workers = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(1)
    made = transforms.Compose([
        transforms.RandomResizedCrop(224),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ])
    loader = DataLoader(
        datasets.ImageFolder(f"{folder}/train", made), 32, shuffle=True, num_workers=workers, persistent_workers=True
    )
    for _ in range(3):
        started, images = time.time(), 0
        for batch, _ in loader:
            images += len(batch)
        print(f"{images} pictures, {images / (time.time() - started):.0f} a second")


if __name__ == "__main__":
    main()
