"""How the stages of a pipeline hang together: the checks of the references, and the order of execution."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from kdpipe.pipeline.problems import KeyPath
from kdpipe.pipeline.references import Reference
from kdpipe.targets.errors import did_you_mean

REAL_DATA = "split"
"""The kind of artifact that holds real data, which a data-free stage is never handed."""


@dataclass(frozen=True)
class Wire:
    """One reference in a pipeline file.

    Args:
        path: where it stands.
        field: the input field that it is for.
        index: its place in the field's list; None where the field takes one.
        reference: what it names.
        accepts: the kinds that the field takes.
    """

    path: KeyPath
    field: str
    index: int | None
    reference: Reference
    accepts: tuple[str, ...]


Complaint = tuple[KeyPath, str, str | None]


def check_wiring(
    wires: Mapping[str, Sequence[Wire]], outputs: Mapping[str, Mapping[str, str] | None], data_free: Collection[str]
) -> Iterator[Complaint]:
    """Yield (path, message, remedy) for each reference that leads nowhere, fits nowhere, or closes a cycle.

    Args:
        wires: by stage, its references.
        outputs: by stage, the kinds of its outputs by name; None where its parameters are wrong.
        data_free: the stages that must not be handed real data.
    """
    for stage, references in wires.items():
        for wire in references:
            complaint = _dangling(wire, outputs)
            if complaint is None:
                complaint = _misfit(wire, outputs[wire.reference.stage], stage in data_free)
            if complaint is not None:
                yield wire.path, *complaint
    yield from _cycles(wires)


def _dangling(wire: Wire, outputs: Mapping[str, Mapping[str, str] | None]) -> tuple[str, str | None] | None:
    """Return what is wrong with the stage and output that a reference names."""
    reference = wire.reference
    if reference.stage not in outputs:
        what = "data source" if reference.stage.startswith("data.") else "stage"
        name = reference.stage.removeprefix("data.")
        known = [k.removeprefix("data.") for k in outputs if k.startswith("data.") == (what == "data source")]
        return f"{reference} names an unknown {what} {name!r}", did_you_mean(name, known)
    known_outputs = outputs[reference.stage]
    if known_outputs is None:
        return None
    choice = ", ".join(f"${{{reference.stage}.{name}}}" for name in known_outputs)
    if not known_outputs:
        return f"{reference.stage!r} has no outputs", None
    if reference.output is None and len(known_outputs) > 1:
        return f"{reference} is ambiguous: {reference.stage!r} has several outputs", f"Write one of {choice}"
    if reference.output is not None and reference.output not in known_outputs:
        return f"{reference.stage!r} has no output {reference.output!r}", f"It has {choice}"
    return None


def kinds_by_field(
    wires: Sequence[Wire], outputs: Mapping[str, Mapping[str, str] | None]
) -> dict[str, tuple[str, ...]]:
    """Return the kinds of what each input field is handed, as far as the references lead somewhere."""
    kinds: dict[str, tuple[str, ...]] = {}
    for wire in wires:
        known = outputs.get(wire.reference.stage)
        if known is not None and _dangling(wire, outputs) is None:
            kind = known[wire.reference.output] if wire.reference.output is not None else next(iter(known.values()))
            kinds[wire.field] = (*kinds.get(wire.field, ()), kind)
    return kinds


def _misfit(wire: Wire, known: Mapping[str, str] | None, data_free: bool) -> tuple[str, str | None] | None:
    """Return what is wrong with handing the named output to the field."""
    if known is None:
        return None
    reference = wire.reference
    kind = next(iter(known.values())) if reference.output is None else known[reference.output]
    accepted = " or ".join(wire.accepts)
    if data_free and kind == REAL_DATA:
        return f"{reference} hands real data to a data-free stage", f"{wire.field!r} takes {accepted}"
    if kind not in wire.accepts:
        fitting = [f"${{{reference.stage}.{name}}}" for name, other in known.items() if other in wire.accepts]
        hint = f": {', '.join(fitting)}" if fitting else ""
        return f"{reference} is of kind {kind}", f"{wire.field!r} takes {accepted}{hint}"
    return None


def _cycles(wires: Mapping[str, Sequence[Wire]]) -> Iterator[Complaint]:
    """Yield one complaint for each cycle that a depth-first search closes."""
    finished: set[str] = set()
    for start in wires:
        if start in finished:
            continue
        trail = [start]
        pending = [iter(wires[start])]
        while trail:
            wire = next(pending[-1], None)
            if wire is None:
                finished.add(trail.pop())
                pending.pop()
                continue
            target = wire.reference.stage
            if target in trail:
                cycle = [*trail[trail.index(target) :], target]
                arrows = " -> ".join(reversed(cycle))
                yield wire.path, f"the stages form a cycle: {arrows}", "Take one of its inputs from elsewhere"
            elif target in wires and target not in finished:
                trail.append(target)
                pending.append(iter(wires[target]))


def execution_order(needs: Mapping[str, Collection[str]]) -> list[str]:
    """Return the stages, each after those it needs; otherwise in the order in which they are given.

    >>> execution_order({"b": ["a"], "c": [], "a": []})
    ['c', 'a', 'b']
    """
    order: list[str] = []
    waiting = dict.fromkeys(needs)
    while waiting:
        name = next((name for name in waiting if all(need not in waiting for need in needs[name])), None)
        if name is None:
            raise ValueError(f"the stages form a cycle: {', '.join(waiting)}")
        del waiting[name]
        order.append(name)
    return order


def with_ancestors(names: Collection[str], needs: Mapping[str, Collection[str]]) -> set[str]:
    """Return `names` and everything that they need, directly or not."""
    found: set[str] = set()
    pending = list(names)
    while pending:
        name = pending.pop()
        if name not in found:
            found.add(name)
            pending += needs[name]
    return found
