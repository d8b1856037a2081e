from __future__ import annotations

import pytest
import torch
from torch import nn

from kdpipe.stages.data.batches import TensorBatches
from kdpipe.stages.training.averaging import WeightAverage
from kdpipe.stages.training.loop import train
from kdpipe.stages.training.resume import GeneratorState, Resume
from kdpipe.stages.training.schedules import cosine


class Loop:
    """A network with batch norm and dropout, an optimizer with momentum, and shuffled noisy batches."""

    def __init__(self, folder, seed=0):
        torch.manual_seed(seed)
        self.network = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1))
        self.order = torch.Generator().manual_seed(3)
        x = torch.randn(32, 3, generator=torch.Generator().manual_seed(1))
        self.batches = TensorBatches((x, x.sum(dim=1, keepdim=True)), 8, self.order)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=0.1)
        self.resume = Resume(folder, "loop", {"network": self.network, "batches": GeneratorState(self.order)})
        self.reported = []

    def run(self, epochs=5, stop_after=None):
        def report(done, row):
            self.reported.append(done)
            if done == stop_after:
                raise KeyboardInterrupt

        def step(batch):
            return {"square": (self.network(batch[0]) - batch[1]).square().mean()}

        torch.manual_seed(11)
        return train(self.batches, step, self.optimizer, cosine, epochs=epochs, report=report, resume=self.resume)


def test_a_broken_loop_goes_on_to_the_same_bits(tmp_path):
    whole = Loop(tmp_path / "whole")
    rows = whole.run()
    for stop in (1, 3):
        with pytest.raises(KeyboardInterrupt):
            Loop(tmp_path / f"broken{stop}").run(stop_after=stop)
        again = Loop(tmp_path / f"broken{stop}", seed=42)
        assert again.run() == rows
        assert again.reported == list(range(stop, 6))
        for key, value in whole.network.state_dict().items():
            assert torch.equal(value, again.network.state_dict()[key])


def test_a_finished_loop_is_not_run_again(tmp_path):
    rows = Loop(tmp_path).run()
    again = Loop(tmp_path, seed=9)
    assert again.run() == rows
    assert again.reported == [5]


@pytest.mark.parametrize("damage", [lambda b: b[:-10], lambda b: b[:200] + b"?" + b[201:], lambda b: b""])
def test_a_damaged_state_is_not_used(tmp_path, damage):
    rows = Loop(tmp_path).run()
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    again = Loop(tmp_path)
    assert again.run() == rows
    assert again.reported == [1, 2, 3, 4, 5]


def test_a_state_of_other_parts_is_not_used(tmp_path):
    Loop(tmp_path).run()
    other = Loop(tmp_path)
    other.resume.watch("more", nn.Linear(1, 1))
    other.run()
    assert other.reported == [1, 2, 3, 4, 5]


def test_averages_by_hand():
    network = nn.BatchNorm1d(1)
    average = WeightAverage(network, 0.5)
    with torch.no_grad():
        network.weight.fill_(3.0)
    network.num_batches_tracked.fill_(7)
    average.update()  # decay min(0.5, 1/10): 0.1 * 1 + 0.9 * 3
    assert average.average()["weight"].item() == pytest.approx(2.8)
    assert average.average()["num_batches_tracked"].item() == 7
    for _ in range(20):
        average.update()
    assert average.average()["weight"].item() == pytest.approx(3.0, abs=1e-5)
    assert network.weight.item() == 3
