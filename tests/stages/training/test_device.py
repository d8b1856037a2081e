import pytest
import torch

from kdpipe.stages.training.device import choose_device, limited_threads
from kdpipe.targets.errors import UsageError


def test_threads_are_limited_and_put_back_even_after_an_error() -> None:
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), limited_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        _ = 1 / 0
    assert torch.get_num_threads() == before
    with limited_threads(None):
        assert torch.get_num_threads() == before


def test_devices_by_name() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(UsageError, match="Did you mean cuda"):
        choose_device("cuda0")
