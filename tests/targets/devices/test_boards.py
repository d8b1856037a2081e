"""Boards: the built-in table, a user's own, and everything that can be wrong with one."""

from pathlib import Path

import pytest

from kdpipe.targets.devices.boards import Board, find_board, load_boards
from kdpipe.targets.devices.cortex_m import CORES
from kdpipe.targets.errors import UsageError


def test_a_dozen_boards_of_every_core_with_their_sources() -> None:
    boards = load_boards()
    assert len(boards) >= 12
    assert {board.core for board in boards.values()} == set(CORES)
    assert all(board.source and board.title for board in boards.values())
    # what is not published is not made up
    assert [name for name, board in boards.items() if board.wait_state_factor != 1] == ["nucleo-l4r5zi"]


def test_own_boards_are_added_and_take_the_place_of_built_in_ones(tmp_path: Path) -> None:
    own = tmp_path / "boards.toml"
    table = 'core = "cortex-m3"\nclock_mhz = 24\nflash_kib = 64\nram_kib = 8\n'
    own.write_text(f"[mine]\n{table}[arduino-due]\n{table}")
    assert find_board("mine", own) == Board(core="cortex-m3", clock_mhz=24, flash_kib=64, ram_kib=8)
    assert find_board("arduino-due", own).clock_mhz == 24
    assert find_board("arduino-due").clock_mhz == 84


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[mine", "not a TOML file of boards"),
        ("mine = 3", "'mine' is not a table"),
        ('[mine]\ncore = "cortex-m4"\nclock_mhz = 0\nflash_kib = 1\nram_kib = 1', "clock_mhz"),
        ('[mine]\ncore = "cortex-m4"\nclock_mhz = 1\nflash_kib = 1', "ram_kib"),
        ('[mine]\ncore = "cortex-m5"\nclock_mhz = 1\nflash_kib = 1\nram_kib = 1', "Did you mean"),
        ('[mine]\ncore = "host"\nclock_mhz = 1\nflash_kib = 1\nram_kib = 1', "unknown core 'host'"),
        ('[mine]\ncore = "cortex-m4"\nclock = 1\nclock_mhz = 1\nflash_kib = 1\nram_kib = 1', "clock"),
        ('[mine]\ncore = "cortex-m4"\nclock_mhz = inf\nflash_kib = 1\nram_kib = 1', "clock_mhz"),
    ],
)
def test_a_wrong_table_is_refused_with_file_and_key(text: str, message: str, tmp_path: Path) -> None:
    own = tmp_path / "boards.toml"
    own.write_text(text)
    with pytest.raises(UsageError, match=r"boards\.toml") as caught:
        load_boards(own)
    assert message in str(caught.value)


def test_a_missing_file_and_an_unknown_board(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere\.toml"):
        load_boards(tmp_path / "nowhere.toml")
    with pytest.raises(UsageError, match="Did you mean nucleo-l4r5zi"):
        find_board("nucleo-l4r5z")
