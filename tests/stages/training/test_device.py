import pytest
import torch

from kdpipe.stages.training.device import choose_device, limited_threads
from kdpipe.targets.errors import UsageError


def test_threads_are_limited_and_put_back_even_after_an_error() -> None:
    before = torch.get_num_threads()
    seen = []

    def fail() -> None:
        with limited_threads(before + 1):
            seen.append(torch.get_num_threads())
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail()
    assert (seen, torch.get_num_threads()) == ([before + 1], before)
    with limited_threads(None):
        assert torch.get_num_threads() == before


def test_devices_by_name() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(UsageError, match="Did you mean cuda"):
        choose_device("cuda0")
