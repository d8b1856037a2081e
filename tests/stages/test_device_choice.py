"""A device or a board, a clock, and what does not go together."""

from pathlib import Path

import pytest

from kdpipe.stages.device_choice import Clock, DeviceChoice, choose_device
from kdpipe.targets.errors import UsageError


def test_a_board_gives_core_clock_and_limits() -> None:
    assert choose_device(board="nucleo-l4r5zi") == DeviceChoice(
        "cortex-m4", "nucleo-l4r5zi", Clock(120, 1.29), {"flash_kib": 2048, "ram_kib": 640}
    )
    slower = choose_device("cortex-m4", board="nucleo-l4r5zi", clock_mhz=80, wait_state_factor=1.1)
    assert slower.clock == Clock(80, 1.1)


def test_a_device_has_a_clock_only_if_it_is_given() -> None:
    assert choose_device() == DeviceChoice("host")
    assert choose_device("cortex-m3") == DeviceChoice("cortex-m3")
    assert choose_device("cortex-m3", clock_mhz=72).clock == Clock(72, 1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"board": "arduino-duo"}, "Did you mean arduino-due"),
        ({"device": "cortex-m0plus", "board": "arduino-due"}, "has a cortex-m3, not a cortex-m0plus"),
        ({"clock_mhz": 100.0}, "host measures its latency itself"),
        ({"wait_state_factor": 1.5}, "host measures its latency itself"),
        ({"device": "cortex-m4", "wait_state_factor": 1.5}, "no clock"),
        ({"boards": Path("boards.toml")}, "no board"),
    ],
)
def test_what_does_not_go_together_is_refused(arguments: dict, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        choose_device(**arguments)
    assert message in str(caught.value)
