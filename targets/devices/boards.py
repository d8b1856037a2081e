"""Boards by name: core, clock, flash and RAM, from boards.toml and from a file of the user's own."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from kdpipe.targets.devices.registry import DEVICES
from kdpipe.targets.errors import UsageError, did_you_mean

_BUILT_IN = Path(__file__).with_name("boards.toml")


class Board(BaseModel):
    """A board, as a table of boards.toml describes it.

    Args:
        title: its maker's name for it.
        core: the device that stands for it, a name of `kdpipe ls devices`.
        clock_mhz: of the core.
        flash_kib: what a firmware may take of flash.
        ram_kib: what it may take of RAM, stack included.
        wait_state_factor: how many times as long as the cycle model says the board takes.
        source: of these figures.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str = ""
    core: str
    clock_mhz: float = Field(gt=0, allow_inf_nan=False)
    flash_kib: float = Field(gt=0, allow_inf_nan=False)
    ram_kib: float = Field(gt=0, allow_inf_nan=False)
    wait_state_factor: float = Field(1.0, ge=1, allow_inf_nan=False)
    source: str = ""

    @field_validator("core")
    @classmethod
    def _is_emulated(cls, core: str) -> str:
        cores = [name for name in DEVICES if DEVICES[name].emulated]
        if core not in cores:
            raise ValueError(f"unknown core {core!r}. {did_you_mean(core, cores)}")
        return core


def load_boards(own: Path | None = None) -> dict[str, Board]:
    """Return the boards by name.

    Args:
        own: a file of further boards, in the form of boards.toml; its boards replace those of the same name.

    Raises:
        UsageError: `own` can't be read or describes a board wrongly; names the file, the board and the key.
    """
    boards = _read(_BUILT_IN)
    return boards if own is None else {**boards, **_read(own)}


def find_board(name: str, own: Path | None = None) -> Board:
    """Return the board `name`; see `load_boards`.

    Raises:
        UsageError: there is no such board, or as `load_boards`.
    """
    boards = load_boards(own)
    if name not in boards:
        raise UsageError(f"unknown board {name!r}", remedy=did_you_mean(name, boards))
    return boards[name]


def _read(path: Path) -> dict[str, Board]:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"can't read the boards ({error.strerror or error})", where=str(path)) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"not a TOML file of boards ({error})", where=str(path)) from None
    return {name: _board(path, name, table) for name, table in document.items()}


def _board(path: Path, name: str, table: object) -> Board:
    if not isinstance(table, Mapping):
        raise UsageError(
            f"{name!r} is not a table",
            where=str(path),
            remedy=f"Write [{name}] and below it core, clock_mhz, flash_kib and ram_kib",
        )
    try:
        return Board.model_validate(table)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(word) for word in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise UsageError(f"{key}: {message}", where=f"{path}, board {name}") from None
