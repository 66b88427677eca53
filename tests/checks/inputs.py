"""Random inputs for cases, the same on every machine for the same seed."""

import torch


def normal(*shape, seed, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def integers(low, high, *shape, seed):
    """From low to high - 1."""
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))


def different(low, high, number, *, seed):
    """Like integers, no two of them alike."""
    generator = torch.Generator().manual_seed(seed)
    return low + torch.randperm(high - low, generator=generator)[:number]


def ragged_mask(lengths, side="right", dtype=torch.float32):
    """(B, T): a row of `lengths[b]` ones, padded with zeros on that side."""
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)).to(dtype)
    return mask if side == "right" else mask.flip(1)
