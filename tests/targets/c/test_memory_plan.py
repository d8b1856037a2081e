"""The arena planner against brute force."""

import itertools

import numpy as np
import pytest

from kdpipe.targets.c.memory_plan import ALIGNMENT, Buffer, plan_memory


def _random_buffers(seed: int, count: int, steps: int = 8) -> list[Buffer]:
    rng = np.random.default_rng(seed)
    buffers = []
    for index in range(count):
        first = int(rng.integers(0, steps))
        buffers.append(Buffer(str(index), int(rng.integers(0, 60)), first, int(rng.integers(first, steps))))
    return buffers


@pytest.mark.parametrize("seed", range(50))
def test_no_byte_is_used_twice_at_one_step(seed: int) -> None:
    buffers = _random_buffers(seed, count=12)
    plan = plan_memory(buffers)
    for step in range(8):
        used: set[int] = set()
        for buffer in buffers:
            if buffer.first <= step <= buffer.last:
                offset = plan.offsets[buffer.name]
                own = set(range(offset, offset + buffer.size))
                assert not own & used
                assert max(own, default=0) < max(1, plan.size)
                assert offset % ALIGNMENT == 0
                used |= own
        assert len(used) <= plan.lower_bound


@pytest.mark.parametrize("seed", range(20))
def test_size_is_at_least_the_bound_and_at_most_the_sum(seed: int) -> None:
    buffers = _random_buffers(seed, count=10)
    plan = plan_memory(buffers)
    assert plan.lower_bound <= plan.size <= sum(-(-buffer.size // ALIGNMENT) * ALIGNMENT for buffer in buffers)


def test_bound_is_what_lives_at_the_fullest_step() -> None:
    plan = plan_memory([Buffer("a", 8, 0, 1), Buffer("b", 16, 1, 2), Buffer("c", 4, 2, 3)])
    assert plan.lower_bound == 24
    assert plan.size == 24


def test_a_chain_needs_its_two_largest_neighbours() -> None:
    sizes = [64, 256, 128, 32]
    plan = plan_memory([Buffer(str(step), size, step, step + 1) for step, size in enumerate(sizes)])
    assert plan.size == max(a + b for a, b in itertools.pairwise(sizes))


def test_nothing_to_place() -> None:
    plan = plan_memory([])
    assert (plan.size, plan.lower_bound, dict(plan.offsets)) == (0, 0, {})


def test_plans_are_reproducible() -> None:
    assert plan_memory(_random_buffers(3, 12)) == plan_memory(_random_buffers(3, 12))
