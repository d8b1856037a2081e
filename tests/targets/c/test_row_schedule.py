"""Turns of layers by rows, against a replay that keeps every row apart."""

import numpy as np
import pytest

from kdpipe.targets.c.row_schedule import Reading, RowChain, RowLayer, fold_turns, schedule_rows


def random_layers(seed: int) -> list[RowLayer]:
    """Draw layers of which each reads the input "x", of 12 rows, or earlier ones."""
    rng = np.random.default_rng(seed)
    heights = {"x": 12}
    layers: list[RowLayer] = []
    for number in range(int(rng.integers(1, 7))):
        names = [str(name) for name in rng.choice([*heights][-3:], int(rng.integers(1, 3)))]
        source = names[0]
        stride, before, span = int(rng.integers(1, 4)), int(rng.integers(0, 3)), int(rng.integers(1, 5))
        if any(heights[name] != heights[source] for name in names) or rng.random() < 0.6:
            names = names[:1]
        else:
            stride, before, span = 1, 0, 1
        height = max(1, (heights[source] + before - span) // stride + 1)
        readings = [Reading(name, heights[name], stride, before, span) for name in dict.fromkeys(names)]
        keeps, step = bool(rng.random() < 0.5), int(rng.integers(1, 4))
        layers.append(RowLayer(f"t{number}", height, 1 if keeps else step, tuple(readings), keeps))
        heights[f"t{number}"] = height
    return layers


def replay(layers: list[RowLayer]) -> None:
    """Run the turns on memory that remembers which row lies where."""
    schedule = schedule_rows(layers)
    rings = {"x": 12, **schedule.rings}
    heights = {"x": 12} | {layer.name: layer.height for layer in layers}
    memory = {name: [-1] * rings[name] for name in heights}
    memory["x"] = list(range(12))
    done = [0] * len(layers)
    seen: dict[tuple[int, str], set[int]] = {}
    for number in schedule.turns:
        layer = layers[number]
        first, last = done[number], min(layer.height, done[number] + layer.step)
        for reading in layer.readings:
            known = seen.setdefault((number, reading.tensor), set())
            for row in range(first, last):
                top = row * reading.stride - reading.before
                for y in range(max(0, top), min(heights[reading.tensor], top + reading.span)):
                    there = memory[reading.tensor][y % rings[reading.tensor]] == y
                    assert there or (layer.keeps and y in known), (layer.name, row, reading.tensor, y)
                    known.add(y)
        start = first % rings[layer.name]
        assert start + last - first <= rings[layer.name], "a step's rows lie one after the other"
        memory[layer.name][start : start + last - first] = range(first, last)
        done[number] = last
    assert done == [layer.height for layer in layers]


@pytest.mark.parametrize("seed", range(300))
def test_every_row_is_there_when_it_is_read(seed: int) -> None:
    replay(random_layers(seed))


@pytest.mark.parametrize("seed", range(300))
def test_what_stays_behind_overwrites_nothing_that_is_still_read(seed: int) -> None:
    rng = np.random.default_rng(seed)
    layers = random_layers(seed)
    chain = RowChain(0, tuple(layers))
    target = int(rng.integers(0, len(layers)))
    row_bytes = int(rng.integers(1, 5)), int(rng.integers(1, 5))
    if not chain.stays_behind("x", layers[target].name, row_bytes):
        return
    done = [0] * len(layers)
    overwritten = 0
    known: dict[int, set[int]] = {}
    for number in chain.schedule.turns:
        layer = layers[number]
        first, done[number] = done[number], min(layer.height, done[number] + layer.step)
        if number == target and not layer.keeps:
            # It may read its last row after it has written the others.
            overwritten = max(overwritten, done[number] * row_bytes[1])
        for reading in layer.readings:
            if reading.tensor == "x":
                for row in range(first, done[number]):
                    top = row * reading.stride - reading.before
                    for y in range(max(0, top), min(12, top + reading.span)):
                        own = known.setdefault(number, set())
                        assert y * row_bytes[0] >= overwritten or (layer.keeps and y in own)
                        own.add(y)
        if number == target:
            overwritten = max(overwritten, done[number] * row_bytes[1])


def test_a_residual_block_holds_a_few_rows() -> None:
    """The second convolution's window is three rows of the first one's output, and the sum waits for it."""
    window = {"stride": 1, "before": 1, "span": 3}
    layers = [
        RowLayer("a", 32, 1, (Reading("x", 32, **window),)),
        RowLayer("b", 32, 1, (Reading("a", 32, **window),)),
        RowLayer("sum", 32, 1, (Reading("x", 32), Reading("b", 32)), elementwise=True),
    ]
    assert schedule_rows(layers).rings == {"a": 3, "b": 1, "sum": 32}
    # When row y of the sum is written, the first convolution goes on with its row y + 2, above which it reads y + 1.
    assert RowChain(0, tuple(layers)).stays_behind("x", "sum", (512, 512))
    assert not RowChain(0, tuple(layers)).stays_behind("x", "sum", (512, 513))


def test_a_kernel_that_keeps_rows_reads_each_once() -> None:
    window = {"stride": 1, "before": 1, "span": 3}
    layers = [
        RowLayer("a", 32, 1, (Reading("x", 32, **window),), keeps=True),
        RowLayer("b", 32, 1, (Reading("a", 32, **window),), keeps=True),
        RowLayer("sum", 32, 1, (Reading("x", 32), Reading("b", 32)), elementwise=True),
    ]
    assert schedule_rows(layers).rings == {"a": 2, "b": 1, "sum": 32}


def test_the_least_advanced_result_is_next() -> None:
    """Two layers that read one tensor, of which neither reads the other, go through it side by side."""
    layers = [
        RowLayer("a", 16, 1, (Reading("x", 16),)),
        RowLayer("b", 16, 1, (Reading("a", 16),)),
        RowLayer("c", 8, 1, (Reading("a", 16, stride=2),)),
    ]
    assert schedule_rows(layers).rings["a"] == 2


@pytest.mark.parametrize("seed", range(40))
def test_folded_turns_are_the_turns(seed: int) -> None:
    turns = schedule_rows(random_layers(seed)).turns
    folded = fold_turns(turns)
    assert folded.unfolded() == turns
    assert len(folded.listed) + folded.again * (folded.last - folded.first + 1) == len(turns)


def test_most_turns_are_one_round() -> None:
    folded = fold_turns([0, 0, 1, 2, *[0, 1, 2] * 30, 1, 2])
    assert (folded.listed, folded.again) == ((0, 0, 1, 2, 1, 2), 30)
