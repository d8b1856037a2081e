"""Networks of torchvision as teacher and as student."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from kdpipe.stages.artifacts import NetworkDescription, Samples, build_network, load_network, save_samples
from kdpipe.stages.base import Artifact
from kdpipe.stages.distill import STAGE as DISTILL
from kdpipe.stages.distill import DistillParams
from kdpipe.stages.teachers import STAGE as TEACHERS
from kdpipe.stages.teachers import TeachersParams


@pytest.mark.skipif(find_spec("torchvision") is None, reason="torchvision is not installed")
def test_a_checkpoint_of_a_torchvision_network_teaches_another(tmp_path, space, context):
    """With the prefix of DataParallel, its own normalization, and taps by pattern and by default."""
    images = type(space)((3, 32, 32), ("a", "b"), (0.5,) * 3, (0.25,) * 3)
    member = {"model": "torchvision:mobilenet_v2", "width_mult": 0.25}
    torch.manual_seed(0)
    network = build_network(NetworkDescription(member["model"], {"width_mult": 0.25}, images))
    state = {f"module.{key}": value for key, value in network.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "teacher.pt")
    params = TeachersParams(
        members=[{**member, "checkpoint": str(tmp_path / "teacher.pt"), "mean": images.mean, "std": images.std}],
        input_shape=images.shape,
        classes=images.classes,
    )
    TEACHERS.run(params, {}, context("teachers"))
    (tmp_path / "samples").mkdir()
    save_samples(tmp_path / "samples", Samples(torch.randn(12, 3, 32, 32), torch.zeros(12, 2), images))
    inputs = {
        "teachers": Artifact("ensemble", tmp_path / "teachers" / "ensemble"),
        "samples": Artifact("samples", tmp_path / "samples"),
    }
    values = {"teachers": "t", "samples": "s", "epochs": 1, "batch_size": 6, "lr": 1e-3}
    losses = {"kd": {}, "attention": {}, "rkd": {}}
    student = {"model": "torchvision:shufflenet_v2_x0_5"}
    outcome = DISTILL.run(DistillParams(**values, losses=losses, model=student), inputs, context("a"))
    assert set(losses) < set(outcome.history["student"][0])
    loaded, description = load_network(tmp_path / "a" / "network")
    assert description.model == "torchvision:shufflenet_v2_x0_5"
    assert loaded(torch.randn(1, 3, 32, 32)).shape == (1, 2)
    taps = {"student_tap": "stage*", "teacher_taps": [["features.6", "features.13", "features.18"]]}
    DISTILL.run(DistillParams(**values, **taps, losses=losses, model=student), inputs, context("b"))
