"""The multiple-choice knapsack against every combination."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdpipe.stages.quantization.knapsack import Option, choose

LOSS = st.one_of(st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.floats(0, 1e6), st.floats(1e-12, 1e-3))
GROUPS = st.lists(
    st.lists(st.builds(Option, st.integers(0, 40), LOSS), min_size=1, max_size=4),
    min_size=1,
    max_size=5,
)


def totals(groups, choice):
    options = [group[at] for group, at in zip(groups, choice, strict=True)]
    return sum(option.size for option in options), math.fsum(option.loss for option in options)


def least_loss(groups, capacity):
    every = (totals(groups, choice) for choice in itertools.product(*(range(len(group)) for group in groups)))
    return min((loss for size, loss in every if size <= capacity), default=None)


@given(groups=GROUPS, room=st.floats(-0.2, 1.2))
@settings(max_examples=400, deadline=None, derandomize=True)
def test_it_finds_what_brute_force_finds(groups, room) -> None:
    least = sum(min(option.size for option in group) for group in groups)
    most = sum(max(option.size for option in group) for group in groups)
    capacity = int(least + room * (most - least))
    expected = least_loss(groups, capacity)
    if expected is None:
        with pytest.raises(ValueError, match=f"take {least}, more than {capacity}"):
            choose(groups, capacity)
        return
    size, loss = totals(groups, choose(groups, capacity))
    assert size <= capacity
    assert loss == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_of_equal_losses_the_smaller_size_is_taken() -> None:
    assert choose([[Option(9, 1.0), Option(5, 1.0), Option(7, 1.0)]], 9) == (1,)
    assert choose([[Option(4, 0.0), Option(3, 1.0)], [Option(8, 0.5), Option(2, 0.5)]], 6) == (0, 1)


@pytest.mark.parametrize("share", [0.03, 0.4, 0.9])
def test_sizes_of_a_large_network_in_odd_budgets(share: float) -> None:
    """200 layers of millions of weights: the bound must keep the partial choices few. No choice is better by a swap."""
    draw = random.Random(7)  # noqa: S311
    groups = []
    for _ in range(200):
        weights, scale = draw.randrange(100, 2_000_000), 10 ** draw.uniform(-5, 0)
        groups.append(
            [Option((weights * bits + 7) // 8, scale * 4.0**-bits * draw.uniform(0.5, 2)) for bits in (2, 3, 4, 8)]
        )
    least = sum(group[0].size for group in groups)
    capacity = int(least + share * (sum(group[-1].size for group in groups) - least))
    choice = choose(groups, capacity)
    size, _ = totals(groups, choice)
    assert size <= capacity
    for group, at in zip(groups, choice, strict=True):
        assert not [o for o in group if o.loss < group[at].loss and size - group[at].size + o.size <= capacity]
    for (first, a), (second, b) in itertools.pairwise(zip(groups, choice, strict=True)):
        taken = first[a].loss + second[b].loss
        room = capacity - size + first[a].size + second[b].size
        assert all(x.loss + y.loss >= taken - 1e-15 for x in first for y in second if x.size + y.size <= room)
