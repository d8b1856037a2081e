"""A failing graph as a person needs it: small, printed, and in a file that runs again."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from fuzz.drawn_graphs import build_graph
from fuzz.examples import Example, shrink
from fuzz.runtimes import RefusedError

from kdpipe.targets.errors import UnsupportedError
from kdpipe.targets.graph import Conv2d, IntegerGraph, Linear
from kdpipe.targets.graph_files import save_graph

Check = Callable[[IntegerGraph], None]
"""Raises where a target breaks its promise."""


def failure_report(example: Example[IntegerGraph], name: str, check: Check, directory: Path) -> str:
    """Shrink a failing example, store it in a new folder of `directory`, and say what it is and how to run it again."""

    def fails(graph: IntegerGraph) -> bool:
        try:
            check(graph)
        except (RefusedError, UnsupportedError):
            return False
        except Exception:  # whatever it is, a user would see it
            return True
        return False

    graph = shrink(build_graph, example, fails)
    try:
        check(graph)
        said = "it passes when it is run again"
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
    directory.mkdir(parents=True, exist_ok=True)
    place = next(place for number in range(10**6) if not (place := directory / f"{number:03}").exists())
    place.mkdir()
    save_graph(graph, place)
    return f"{name}: {said}\n{describe(graph)}\nAgain: pytest tests/targets/fuzz --replay {place}"


def describe(graph: IntegerGraph) -> str:
    """Return a graph as text, constants included."""
    with np.printoptions(threshold=64):
        lines = [f"{graph.rounding}, {graph.input_name}: {graph.input}"]
        for node in graph.nodes:
            fields = {key: value for key, value in vars(node.op).items() if key not in ("weight", "bias")}
            lines.append(f"{node.name} = {type(node.op).__name__}({', '.join(node.inputs)}) {fields} -> {node.output}")
            if isinstance(node.op, Conv2d | Linear):
                weight = node.op.weight
                lines.append(f"    {weight.bits} bits {weight.values.tolist()}")
                lines.append(f"    scales {weight.scales.tolist()}, bias {node.op.bias.tolist()}")
    return "\n".join(lines)
