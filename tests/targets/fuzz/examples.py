"""Things that are made of picked integers: drawn independently, and shrunk by hypothesis where they fail."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from hypothesis import HealthCheck, Phase, given, reject, settings
from hypothesis import strategies as st
from hypothesis.database import InMemoryExampleDatabase, choices_to_bytes

from kdpipe.targets.errors import GraphError

T = TypeVar("T")
Pick = Callable[[int, int], int]
"""`pick(low, high)`: an integer of [low, high], the first being the simplest."""
Build = Callable[[Pick], T]
"""Makes a thing of picked integers, or raises GraphError where they make none that is allowed."""


@dataclass(frozen=True, eq=False)
class Example(Generic[T]):
    """A drawn thing, and the integers that it was made of, as hypothesis stores them."""

    value: T
    choices: bytes


def draw_examples(build: Build[T], count: int, number: int) -> list[Example[T]]:
    """Return the `count` examples of the slice `number`, always the same ones.

    What hypothesis itself draws in a row varies one example a few times; these have nothing in common.
    """
    rng = np.random.default_rng(number)
    found: list[Example[T]] = []
    while len(found) < count:
        choices: list[int] = []

        def pick(low: int, high: int, choices: list[int] = choices) -> int:
            choices.append(int(rng.integers(low, high + 1)))
            return choices[-1]

        with contextlib.suppress(GraphError):
            found.append(Example(build(pick), choices_to_bytes(choices)))
    return found


def shrink(build: Build[T], example: Example[T], fails: Callable[[T], bool]) -> T:
    """Return the smallest thing that hypothesis finds, from `example` on, for which `fails` is still true."""
    key, database = b"example", InMemoryExampleDatabase()
    # Hypothesis shrinks what it stored as found on the way; what stands under the key itself it takes for shrunk.
    database.save(key + b".secondary", example.choices)
    smallest = example.value

    @st.composite
    def things(draw: Callable[[st.SearchStrategy[int]], int]) -> T:
        try:
            return build(lambda low, high: draw(st.integers(low, high)))
        except GraphError:
            reject()

    class StillFailsError(Exception):
        pass

    @settings(
        database=database,
        phases=[Phase.reuse, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        deadline=None,
    )
    @given(things())
    def check(thing: T) -> None:
        nonlocal smallest
        if fails(thing):
            smallest = thing
            raise StillFailsError

    check._hypothesis_internal_database_key = key
    # At the end the smallest one is run once more, and its error raised.
    with contextlib.suppress(StillFailsError):
        check()
    return smallest
