"""Several processes' batch norms, as threads that meet at every sum."""

from __future__ import annotations

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from kdpipe.stages.training.synchronized_norm import synchronized_norms

COUNT = 3


class Meeting:
    """A sum over threads: each calls it in the same order."""

    def __init__(self):
        self.barrier = threading.Barrier(COUNT, timeout=60)
        self.given = [None] * COUNT

    def sum(self, rank):
        def total(tensor):
            self.given[rank] = tensor.detach().clone()
            self.barrier.wait()
            result = torch.stack(list(self.given)).sum(dim=0)
            self.barrier.wait()
            return result

        return total

    def gather(self, rank):
        def stack(tensor):
            parts = torch.zeros(COUNT, *tensor.shape)
            parts[rank] = tensor
            return self.sum(rank)(parts)

        return stack


def on_a_thread(meeting, rank, norm, x, weights):
    with synchronized_norms([norm], meeting.gather(rank), meeting.sum(rank)):
        y = norm(x)
        (y * weights).sum().backward()
        norm.eval()
        return y, norm(x) if norm.track_running_stats else None


def test_statistics_that_are_not_to_be_tracked_stay_as_they_are():
    """As while a network looks at images as its own teacher."""
    norm = nn.BatchNorm2d(3)
    before = copy.deepcopy(norm.state_dict())
    with synchronized_norms([norm], lambda tensor: tensor[None], lambda tensor: tensor):
        norm.track_running_stats = False
        norm(torch.randn(4, 3, 2, 2))
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: nn.BatchNorm2d(3), (7, 3, 4, 5)),
        (lambda: nn.BatchNorm2d(3, momentum=None, eps=1e-2), (7, 3, 2, 2)),
        (lambda: nn.BatchNorm2d(3, affine=False), (7, 3, 2, 2)),
        (lambda: nn.BatchNorm1d(3, track_running_stats=False), (7, 3)),
    ],
)
def test_parts_of_a_batch_make_the_same_outputs_gradients_and_statistics_as_the_whole(make, shape):
    generator = torch.Generator().manual_seed(0)
    x = 3 + 2 * torch.randn(shape, generator=generator)
    weights = torch.randn(shape, generator=generator)
    whole = make()
    if whole.affine:
        with torch.no_grad():
            whole.weight.copy_(torch.tensor([0.5, -1.0, 2.0]))
    norms = [copy.deepcopy(whole) for _ in range(COUNT)]
    x.requires_grad_()
    y = whole(x)
    (y * weights).sum().backward()
    whole.eval()

    cuts = [slice(0, 4), slice(4, 6), slice(6, 7)]  # the last one has a single row
    parts = [x.detach()[cut].clone().requires_grad_() for cut in cuts]
    meeting = Meeting()
    with ThreadPoolExecutor(COUNT) as pool:
        jobs = [
            pool.submit(on_a_thread, meeting, rank, norms[rank], parts[rank], weights[cuts[rank]])
            for rank in range(COUNT)
        ]
        results = [job.result() for job in jobs]
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(torch.cat([result[0] for result in results]), y, **close)
    torch.testing.assert_close(torch.cat([part.grad for part in parts]), x.grad, **close)
    if whole.track_running_stats:
        torch.testing.assert_close(torch.cat([result[1] for result in results]), whole(x), **close)
    for name, parameter in whole.named_parameters():
        grads = [dict(norm.named_parameters())[name].grad for norm in norms]
        torch.testing.assert_close(torch.stack(grads).sum(dim=0), parameter.grad, **close)
    for name, buffer in whole.named_buffers():
        for norm in norms:
            torch.testing.assert_close(dict(norm.named_buffers())[name], buffer, **close)
    assert all("forward" not in vars(norm) for norm in norms)
