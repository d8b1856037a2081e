"""What one run of a firmware executes, apart for each of the calls that its program consists of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kdpipe.targets.devices.cycle_model import BlockCost

Block = tuple[int, int]
"""Address and bytes of a basic block."""


@dataclass(frozen=True)
class Cost:
    """What one run cost.

    Args:
        instructions: executed, exactly; those that an IT instruction skips are counted, as they take their cycle.
        cycles: estimated, or None where the core has no model.
        calls: the same for each function that the program called, in order: from the return of the one before to its
            own, with all that it called in turn. What follows the last return is part of the last. They add up to the
            whole.
    """

    instructions: int
    cycles: int | None
    calls: tuple[Cost, ...] = ()


@dataclass
class _Part:
    blocks: Counter[Block] = field(default_factory=Counter)
    taken: int = 0


class ExecutionCount:
    """Counts a run, basic block by basic block.

    Args:
        block_cost: what running once through a block costs.
        taken_branch: cycles that a taken branch adds, or None where cycles can't be told.
        program: address ranges of the functions whose calls are told apart.
    """

    def __init__(
        self, block_cost: Callable[[Block], BlockCost], taken_branch: int | None, program: Sequence[range]
    ) -> None:
        self._block_cost = block_cost
        self._taken_branch = taken_branch
        self._program = program
        self._parts = [_Part()]
        self._end: int | None = None
        self._inside = self._entered = False
        self.instructions = 0

    def enter(self, block: Block) -> None:
        """Count `block`, which runs next."""
        address, size = block
        inside = any(address in function for function in self._program)
        if inside and not self._inside:
            if self._entered:
                self._parts.append(_Part())
            self._entered = True
        self._inside = inside
        part = self._parts[-1]
        part.blocks[block] += 1
        if self._end is not None and address != self._end:
            part.taken += 1
        self._end = address + size
        self.instructions += self._block_cost(block).instructions

    def cost(self) -> Cost:
        """Return what was counted, once the run has returned."""
        # the return to the caller is a taken branch as well
        self._parts[-1].taken += 1
        costs = [self._cost_of(part) for part in self._parts]
        *calls, rest = costs
        if calls:
            calls[-1] = total_cost([calls[-1], rest])
        total = total_cost(costs)
        return Cost(total.instructions, total.cycles, tuple(calls))

    def _cost_of(self, part: _Part) -> Cost:
        costs = [(self._block_cost(block), count) for block, count in part.blocks.items()]
        instructions = sum(cost.instructions * count for cost, count in costs)
        if self._taken_branch is None:
            return Cost(instructions, None)
        cycles = sum((cost.cycles or 0) * count for cost, count in costs)
        return Cost(instructions, cycles + part.taken * self._taken_branch)


def mean_cost(costs: Sequence[Cost]) -> Cost:
    """Return the mean of at least one run's costs, each number rounded by itself; None where one run has none."""
    cycles = [cost.cycles for cost in costs if cost.cycles is not None]
    calls = zip(*(cost.calls for cost in costs), strict=True)
    return Cost(
        round(sum(cost.instructions for cost in costs) / len(costs)),
        round(sum(cycles) / len(cycles)) if len(cycles) == len(costs) else None,
        tuple(mean_cost(parts) for parts in calls),
    )


def total_cost(costs: Sequence[Cost]) -> Cost:
    """Return the sum, without its parts; None where one has none."""
    cycles = [cost.cycles for cost in costs if cost.cycles is not None]
    return Cost(sum(cost.instructions for cost in costs), sum(cycles) if len(cycles) == len(costs) else None)
