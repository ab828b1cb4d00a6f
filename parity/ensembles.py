"""Soft targets of several teachers, from the papers' formulas."""

import torch
import torch.nn.functional as F
from torch import Tensor

from hashed import hashed


def ensembles() -> dict[str, Tensor]:
    """The logarithms of the combined probabilities at the temperature behind the name, in f64, of three teachers' f32 logits."""
    labels = torch.tensor([3, 0, 9, 9, 1, 5, 2, 7])
    tensors: dict[str, Tensor] = {"labels": labels}
    rows = torch.arange(len(labels))
    for size, scale, tag in (("small", 3.0, 700), ("large", 30.0, 710)):
        teachers = [hashed((8, 10), tag + k, scale) for k in range(3)]
        tensors |= {f"{size}.{k}": logits for k, logits in enumerate(teachers)}
        z = torch.stack(teachers).double()
        tensors[f"{size}.logits_1"] = F.log_softmax(z.mean(0), dim=1)
        # The cross-entropy of each teacher with each label.
        error = torch.stack([F.cross_entropy(logits, labels, reduction="none") for logits in z])
        # Confidence-aware multi-teacher distillation (Zhang et al. 2022), equation 2.
        # 1 - exp(L_k) / sum of all is the sum of the others over that of all, which keeps the digits of a small weight.
        others = [error[[j for j in range(3) if j != k]].exp().sum(0) for k in range(3)]
        weights = torch.stack(others) / error.exp().sum(0) / 2
        for temperature in (1, 4):
            p = F.softmax(z / temperature, dim=2)
            tensors[f"{size}.probabilities_{temperature}"] = p.mean(0).log()
            tensors[f"{size}.confidence_{temperature}"] = (weights[:, :, None] * p).sum(0).log()
        tensors[f"{size}.choice_1"] = F.log_softmax(z[error.argmin(0), rows], dim=1)
    return tensors
