"""Numbers that the Rust tests compute, too, and short records of large tensors."""

import numpy as np
import torch
from torch import Tensor


def hashed(shape: tuple[int, ...], tag: int, scale: float = 1.0) -> Tensor:
    """f32 values in [-scale, scale) from a hash of their index: the Rust tests compute the same."""
    i = np.arange(np.prod(shape), dtype=np.uint32)
    with np.errstate(over="ignore"):
        u = (i + np.uint32(1)) * np.uint32(0x9E3779B1) + np.uint32(tag) * np.uint32(0x85EBCA77)
        u ^= u >> np.uint32(16)
        u *= np.uint32(0x85EBCA6B)
        u ^= u >> np.uint32(13)
        u *= np.uint32(0xC2B2AE35)
        u ^= u >> np.uint32(16)
    unit = (u >> np.uint32(8)).astype(np.float32) * np.float32(2**-23) - np.float32(1)
    return torch.from_numpy((unit * np.float32(scale)).reshape(shape))


def digest(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Sum, Euclidean norm (f64), and about 200 entries a fixed stride apart."""
    flat = tensor.detach().contiguous().flatten()
    stride = max(1, flat.numel() // 199)
    double = flat.double()
    return {
        f"{name}.sum_norm": torch.stack([double.sum(), double.norm()]),
        f"{name}.stride": torch.tensor([stride]),
        f"{name}.sample": flat[::stride].clone(),
    }


def short_digest(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Sum, norm and sum of every other entry less the rest (f64), and the first and last entry."""
    double = tensor.detach().double().flatten()
    even = double[::2].sum() - double[1::2].sum()
    return {name: torch.stack([double.sum(), double.norm(), even, double[0], double[-1]])}
