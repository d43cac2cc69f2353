"""Seeds made from several numbers, so that what is drawn depends on what it is drawn for, and on nothing that happened before."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray


def seed_of(*numbers: int) -> int:
    """A seed from 0 to below 2**63 for these numbers; neighbours share nothing."""
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def seeds_of(indices: NDArray[np.int64], *numbers: int) -> NDArray[np.uint64]:
    """One seed for each index ``[B]`` together with the same other numbers: ``[B]`` uint64.

    The mixing function is SplitMix64 (Steele et al., "Fast splittable pseudorandom number generators", figure 17).
    """
    with np.errstate(over="ignore"):
        z = np.uint64(seed_of(*numbers)) + (indices.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed: NDArray[np.uint64] = z ^ (z >> np.uint64(31))
    return mixed
