"""Randomness: one seed a stage, from which every other is derived."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager


def derive_seed(seed: int, *names: str | int) -> int:
    """Return a seed in [0, 2**31) for a part of a stage, unlike and independent of every other part's.

    >>> derive_seed(0, "teacher", 1) == derive_seed(0, "teacher", 1) != derive_seed(0, "teacher", 2)
    True
    """
    text = "\0".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") % 2**31


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run with torch's global generators at `seed` and deterministic kernels; both are put back afterwards.

    What draws from torch's global generators (a new network's weights, dropout) is then a function of the seed.
    """
    import torch

    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    benchmark = torch.backends.cudnn.benchmark
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        # warn_only: a few CUDA kernels have no deterministic form, and a slow one is better than none
        torch.use_deterministic_algorithms(True, warn_only=True)
        # filling is for operations that read memory before they write it; it costs a pass over every new tensor
        torch.utils.deterministic.fill_uninitialized_memory = False
        torch.backends.cudnn.benchmark = False
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
            torch.utils.deterministic.fill_uninitialized_memory = fill
            torch.backends.cudnn.benchmark = benchmark
