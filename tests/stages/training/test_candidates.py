from __future__ import annotations

import copy

import torch
from torch import nn

from kdpipe.stages.training.candidates import Candidates, agreement


def test_the_best_of_those_kept_and_the_latest_of_equal_ones():
    network = nn.Linear(1, 2, bias=False)
    images = torch.linspace(-1, 1, 10).view(10, 1)
    said = torch.cat([images, -images], dim=1)
    good, bad = torch.tensor([[1.0], [-1.0]]), torch.tensor([[-1.0], [1.0]])
    candidates = Candidates(network, 4)
    for epoch, weight in enumerate((2 * good, good, bad, 3 * good, bad), start=1):
        network.weight.data = weight.clone()
        candidates.add(epoch)
    assert candidates.latest == 5
    again = Candidates(network, 4)
    again.load_state_dict(copy.deepcopy(candidates.state_dict()))
    for each in (candidates, again):
        network.weight.data = bad.clone()
        assert agreement(network, images, said) == 0
        assert each.choose(images, said) == (4, 1.0)
        assert torch.equal(network.weight.data, 3 * good)


def test_forgotten_states_are_no_candidates():
    network = nn.Linear(1, 2, bias=False)
    images = torch.tensor([[1.0]])
    candidates = Candidates(network, 1)
    for epoch, weight in ((1, [[1.0], [0.0]]), (2, [[0.0], [1.0]])):
        network.weight.data = torch.tensor(weight)
        candidates.add(epoch)
    assert candidates.choose(images, torch.tensor([[1.0, 0.0]])) == (2, 0.0)
