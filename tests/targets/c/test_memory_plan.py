"""The arena planner against brute force."""

import itertools

import numpy as np
import pytest

from kdpipe.targets.c.memory_plan import ALIGNMENT, Buffer, lower_bound, plan_memory


def _random_buffers(seed: int, count: int, steps: int = 8) -> list[Buffer]:
    rng = np.random.default_rng(seed)
    buffers = []
    for index in range(count):
        first = int(rng.integers(0, steps))
        buffers.append(Buffer(str(index), int(rng.integers(0, 60)), first, int(rng.integers(first, steps))))
    return buffers


def _random_program(seed: int, count: int, largest: int = 60) -> list[Buffer]:
    """Return buffers of which some may begin where one begins that dies then."""
    rng = np.random.default_rng(seed)
    buffers: list[Buffer] = []
    for step in range(count):
        dying = [buffer.name for buffer in buffers if buffer.last == step]
        over = tuple(name for name in dying if rng.random() < 0.7)
        last = step + int(rng.integers(0, 3))
        buffers.append(Buffer(str(step), int(rng.integers(1, largest)), step, last, over))
    return buffers


def _may_lie(one: Buffer, at: int, other: Buffer, there: int) -> bool:
    """Return whether two offsets go together, by the definition."""
    if not one.overlaps(other):
        return True
    related = other.name in one.over or one.name in other.over
    return at + one.aligned_size <= there or there + other.aligned_size <= at or (related and at == there)


def _smallest_arena(buffers: list[Buffer]) -> int:
    """Return the size of the best plan, by trying all offsets."""

    def fits(size: int, placed: list[int]) -> bool:
        if len(placed) == len(buffers):
            return True
        buffer = buffers[len(placed)]
        return any(
            all(_may_lie(buffer, at, other, there) for other, there in zip(buffers, placed, strict=False))
            and fits(size, [*placed, at])
            for at in range(0, size - buffer.aligned_size + 1, ALIGNMENT)
        )

    return next(size for size in itertools.count(0, ALIGNMENT) if fits(size, []))


@pytest.mark.parametrize("seed", range(60))
def test_small_programs_get_the_best_plan(seed: int) -> None:
    buffers = _random_program(seed, count=7, largest=25)
    plan = plan_memory(buffers)
    assert plan.lower_bound <= plan.size == _smallest_arena(buffers)


@pytest.mark.parametrize("seed", range(40))
def test_only_what_may_begin_together_overlaps(seed: int) -> None:
    buffers = _random_program(seed, count=25)
    plan = plan_memory(buffers)
    assert all(offset % ALIGNMENT == 0 for offset in plan.offsets.values())
    assert max(plan.offsets[buffer.name] + buffer.aligned_size for buffer in buffers) == plan.size
    for one, other in itertools.combinations(buffers, 2):
        assert _may_lie(one, plan.offsets[one.name], other, plan.offsets[other.name])


def test_an_output_that_may_begin_where_its_input_does_is_counted_once() -> None:
    source, larger = Buffer("a", 10, 0, 1), Buffer("b", 33, 1, 2, over=("a",))
    assert lower_bound([source, larger]) == 36
    assert plan_memory([source, larger]).size == 36
    assert lower_bound([source, Buffer("b", 33, 1, 2)]) == 48


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
