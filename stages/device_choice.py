"""Where a validation runs: a device by its name, or by the name of a board with its clock and its memories."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from kdpipe.stages.base import TargetRecord
from kdpipe.targets.devices.registry import DEVICES
from kdpipe.targets.errors import UsageError

DEFAULT_DEVICE = "host"


@dataclass(frozen=True)
class Clock:
    """What estimated cycles become milliseconds by.

    Args:
        mhz: of the core.
        wait_state_factor: how many times as long as the cycle model says, which knows no flash wait states.
    """

    mhz: float
    wait_state_factor: float = 1.0

    def milliseconds(self, cycles: float) -> float:
        """Return the estimated duration of `cycles`.

        >>> Clock(120, 1.25).milliseconds(960_000)
        10.0
        """
        return cycles * self.wait_state_factor / (self.mhz * 1e3)


@dataclass(frozen=True)
class DeviceChoice:
    """A device, and what is known about the board around it.

    Args:
        device: a name of `kdpipe ls devices`.
        board: its name, if one was given.
        clock: if one is known.
        limits: of the board's memories: gates, by their names.
    """

    device: str
    board: str | None = None
    clock: Clock | None = None
    limits: Mapping[str, float] = field(default_factory=dict)

    def complete(self, record: TargetRecord) -> TargetRecord:
        """Return what was found on the device with what the board adds to it."""
        return replace(record, board=self.board, limits=dict(self.limits))


def choose_device(
    device: str | None = None,
    *,
    board: str | None = None,
    boards: Path | None = None,
    clock_mhz: float | None = None,
    wait_state_factor: float | None = None,
) -> DeviceChoice:
    """Return where to run, from what was named.

    Args:
        device: a name of `kdpipe ls devices`; the board's core if None, the host without a board.
        board: a name of `kdpipe ls boards`, or of `boards`.
        boards: a file of further boards.
        clock_mhz: instead of the board's.
        wait_state_factor: instead of the board's.

    Raises:
        UsageError: the board is unknown or has another core, or a clock is given that nothing is estimated by.
    """
    if board is None:
        device = DEFAULT_DEVICE if device is None else device
        if boards is not None:
            raise UsageError("a file of boards is given, but no board", remedy="Name one of them with --board")
        return DeviceChoice(device, clock=_clock(device, clock_mhz, wait_state_factor))
    from kdpipe.targets.devices.boards import find_board

    found = find_board(board, boards)
    if device not in (None, found.core):
        raise UsageError(
            f"the board {board} has a {found.core}, not a {device}", remedy="Give the board or the device, not both"
        )
    return DeviceChoice(
        found.core,
        board,
        Clock(clock_mhz or found.clock_mhz, wait_state_factor or found.wait_state_factor),
        {"flash_kib": found.flash_kib, "ram_kib": found.ram_kib},
    )


def _clock(device: str, mhz: float | None, wait_state_factor: float | None) -> Clock | None:
    given = "clock" if mhz is not None else "wait-state factor" if wait_state_factor is not None else None
    if given is None:
        return None
    if not DEVICES[device].emulated:
        raise UsageError(
            f"a {given} is given, but {device} measures its latency itself",
            remedy="Choose an emulated core, or leave it out",
        )
    if mhz is None:
        raise UsageError("a wait-state factor is given, but no clock", remedy="Give the clock too, in MHz")
    return Clock(mhz, wait_state_factor or 1.0)
