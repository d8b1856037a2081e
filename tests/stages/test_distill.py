from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from kdpipe.stages.artifacts import (
    NetworkDescription,
    Samples,
    build_network,
    load_ensemble,
    load_network,
    save_ensemble,
    save_network,
    save_samples,
    save_split,
)
from kdpipe.stages.base import Artifact
from kdpipe.stages.distill import STAGE, DistillParams
from kdpipe.stages.knowledge.output_cache import cache_outputs
from kdpipe.stages.knowledge.registry import LOSSES
from kdpipe.stages.knowledge.taps import Taps
from kdpipe.stages.knowledge.teacher_outputs import teacher_outputs, unflatten
from kdpipe.stages.training.ensemble import TeacherEnsemble
from kdpipe.stages.training.metrics import accuracy, predict
from kdpipe.stages.training.parameters import OptimizationParams
from kdpipe.stages.training.teachers import train_classifier
from kdpipe.targets.errors import DataError, NetworkError, TrainingError

FAST = {
    "teachers": "t",
    "samples": "s",
    "model": {"model": "cnn", "channels": [4, 6]},
    "losses": {"kd": {}, "feed": {}},
    "epochs": 3,
    "batch_size": 32,
}


@pytest.fixture
def inputs(tmp_path, space, make_bars):
    """Two teachers that know bars, and the same images as samples without labels."""
    members = []
    for index, width in enumerate((4, 6)):
        description = NetworkDescription("cnn", {"channels": (width, 2 * width)}, space)
        torch.manual_seed(index)
        network = build_network(description)
        params = OptimizationParams(epochs=4, batch_size=32)
        train_classifier(network, make_bars(300, index), params, seed=0, pixels=0, device=torch.device("cpu"))
        members.append((network, description))
    for name in ("ensemble", "network", "samples", "split"):
        (tmp_path / name).mkdir()
    save_network(tmp_path / "network", *members[1])
    save_ensemble(tmp_path / "ensemble", members)
    split = make_bars(320, 5)
    save_split(tmp_path / "split", split)
    logits = predict(TeacherEnsemble(members), split.normalized())
    save_samples(tmp_path / "samples", Samples(split.normalized(), logits, space))
    return {
        "teachers": Artifact("ensemble", tmp_path / "ensemble"),
        "samples": Artifact("samples", tmp_path / "samples"),
    }


def run(inputs, folder, **change):
    return STAGE.run(DistillParams(**{**FAST, **change}), inputs, folder)


def test_a_student_learns_without_labels(inputs, context, make_bars):
    folder = context()
    outcome = run(inputs, folder, epochs=12)
    student, description = load_network(folder.root / "network")
    test = make_bars(300, 9)
    assert accuracy(predict(student, test.normalized()), test.labels) > 0.9
    assert outcome.metrics["agreement"] > 0.9
    # the translators are dropped: the artifact holds the student alone
    assert set(student.state_dict()) == set(build_network(description).state_dict())
    rows = outcome.history["student"]
    assert rows[-1]["feed"] < rows[0]["feed"]
    assert rows[-1]["kd"] < rows[0]["kd"]


def test_a_split_may_be_given_and_its_labels_are_used(inputs, context, tmp_path, make_bars):
    # labels that contradict the teachers show which are used
    split = make_bars(320, 5)
    wrong = type(split)(split.name, split.images, (split.labels + 1) % 3, split.space)
    save_split(tmp_path / "split", wrong)
    inputs = {**inputs, "samples": Artifact("split", tmp_path / "split")}
    folder = context()
    outcome = run(inputs, folder, losses={"ce": {}}, epochs=6)
    assert outcome.metrics["agreement"] < 0.3
    student, _ = load_network(folder.root / "network")
    test = make_bars(300, 9)
    assert accuracy(predict(student, test.normalized()), (test.labels + 1) % 3) > 0.8


def test_the_same_seed_makes_the_same_bytes(inputs, context):
    folders = [context(name, seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    for index, folder in enumerate(folders):
        torch.manual_seed(index)
        run(inputs, folder, epochs=1)
    a, b, c = [(folder.root / "network" / "weights.safetensors").read_bytes() for folder in folders]
    assert a == b != c


def test_cached_outputs_train_the_same_student(inputs, context):
    a, b = context("cached"), context("anew")
    once = run(inputs, a, epochs=2)
    often = run(inputs, b, epochs=2, cache_mib=0)
    assert [outcome.metrics["teacher_passes"] for outcome in (once, often)] == [1, 2]
    assert once.metrics["teacher_outputs_mib"] == 320 * 4 * (6 + 16 * 20) / 2**20
    assert often.metrics["teacher_outputs_mib"] == 0
    (line,) = a.lines
    assert "which saves about" in line
    # two teachers' 3 logits, and maps of 8 and 12 channels at 4x4, of 320 images
    assert line.startswith(f"the teachers' outputs are cached: {320 * 4 * (6 + 16 * 20) / 2**20:.1f} MiB in ")
    assert b.lines == ["the teachers' outputs are computed for each batch"]
    first, second = (load_network(folder.root / "network")[0].state_dict() for folder in (a, b))
    for key, value in first.items():
        torch.testing.assert_close(value, second[key], rtol=1e-3, atol=1e-3)


def test_the_cache_is_what_the_teachers_say(inputs, tmp_path):
    teachers = TeacherEnsemble.load(inputs["teachers"].path)
    images = torch.randn(10, 1, 8, 8)
    taps = (Taps("features", ("features.0", "features"), embedding=True), Taps("features.0"))
    kept = cache_outputs(tmp_path, "0", teachers, taps, images, limit_mib=1, batch_size=4)
    tensors = kept.tensors
    assert kept.seconds > 0
    assert kept.mib == sum(path.stat().st_size for path in tmp_path.glob("teacher-outputs-0/*.bin")) / 2**20
    assert len(tensors) == 1 + 3 + 1  # logits; two maps, of which one serves twice, and the embedding; one map
    cached, anew = unflatten(tensors, taps), teacher_outputs(teachers, taps, images)
    torch.testing.assert_close(cached.logits, anew.logits)
    torch.testing.assert_close(cached.features, anew.features)
    torch.testing.assert_close(cached.layers, anew.layers)
    torch.testing.assert_close(cached.embeddings, anew.embeddings)
    assert [len(layers) for layers in anew.layers] == [2, 0]
    # an earlier run's are taken as they are, and written by nobody
    again = cache_outputs(tmp_path, "0", teachers, taps, torch.zeros(0, 1, 8, 8), limit_mib=1)
    again.tensors[0].zero_()
    assert again.seconds == 0
    third = cache_outputs(tmp_path, "0", teachers, taps, torch.zeros(0, 1, 8, 8), limit_mib=1)
    assert torch.equal(third.tensors[0], tensors[0])
    assert [path.name for path in tmp_path.glob("teacher-outputs-*")] == ["teacher-outputs-0"]
    assert cache_outputs(tmp_path, "1", teachers, taps, images, limit_mib=0) is None
    assert not list(tmp_path.glob("teacher-outputs-*"))


def test_outputs_that_a_kill_cut_short_are_computed_anew(inputs, tmp_path):
    teachers = TeacherEnsemble.load(inputs["teachers"].path)
    images = torch.randn(10, 1, 8, 8)
    taps = (Taps(), Taps())

    calls = 0

    def kill(module, given):
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt

    handle = teachers.networks[0].register_forward_pre_hook(kill)
    with pytest.raises(KeyboardInterrupt):
        cache_outputs(tmp_path, "0", teachers, taps, images, limit_mib=1, batch_size=4)
    handle.remove()
    assert [path.name for path in tmp_path.glob("teacher-outputs-*")] == ["teacher-outputs-0.partial"]
    kept = cache_outputs(tmp_path, "0", teachers, taps, images, limit_mib=1, batch_size=4)
    torch.testing.assert_close(unflatten(kept.tensors, taps).logits, teacher_outputs(teachers, taps, images).logits)


def test_the_average_is_another_student_than_the_last(inputs, context):
    folders = [context(name) for name in ("last", "ema", "none")]
    for folder, change in zip(folders, ({}, {"checkpoint": "ema"}, {"checkpoint": "ema", "ema_decay": 0}), strict=True):
        run(inputs, folder, losses={"kd": {}}, **change)
    last, ema, none = [(folder.root / "network" / "weights.safetensors").read_bytes() for folder in folders]
    assert ema != last == none


def test_an_interrupted_average_goes_on_to_the_same_bytes(inputs, context):
    whole, broken = context("whole"), context("broken")
    change = {"losses": {"kd": {}}, "checkpoint": "ema"}
    run(inputs, whole, **change)

    def interrupt(done, *rest, **metrics):
        if done == 2:
            raise KeyboardInterrupt

    broken.progress, kept = interrupt, broken.progress
    with pytest.raises(KeyboardInterrupt):
        run(inputs, broken, **change)
    broken.progress = kept
    run(inputs, broken, **change)
    assert [report[0] for report in broken.reports] == [2, 3]
    assert broken.lines[-1].endswith("MiB of an earlier run")
    first, second = [(folder.root / "network" / "weights.safetensors").read_bytes() for folder in (whole, broken)]
    assert first == second


def test_augmentation_asks_the_teachers_anew(inputs, context):
    folder = context()
    run(inputs, folder, epochs=1, shift=1)
    assert folder.lines == ["the teachers' outputs are computed for each batch"]


def test_taps_by_path(inputs, context):
    run(inputs, context("by path"), epochs=1, student_tap="features.2", teacher_taps=["features.0", "features"])
    for name, change, words in (
        ("a", {"student_tap": "featurs"}, "Did you mean features"),
        ("b", {"teacher_taps": ["features"]}, "1 modules for 2 teachers"),
        ("c", {"teacher_taps": ["features", "fc"]}, "not a feature map"),
    ):
        with pytest.raises(NetworkError, match=words):
            run(inputs, context(name), epochs=1, **change)


def test_response_losses_ask_for_no_tap(inputs, context):
    # a tap that can't be found does not matter when no loss looks at features
    run(inputs, context(), epochs=1, losses={"kd": {"temperature": 2}}, student_tap="nowhere")


def test_images_that_the_teachers_do_not_know(inputs, context, tmp_path, space):
    other = type(space)((1, 4, 4), space.classes, space.mean, space.std)
    save_samples(tmp_path / "samples", Samples(torch.zeros(4, 1, 4, 4), torch.zeros(4, 3), other))
    with pytest.raises(DataError, match=r"\[1, 4, 4\] for networks that see \[1, 8, 8\]"):
        run(inputs, context())
    fewer = type(space)(space.shape, ("a", "b"), space.mean, space.std)
    save_samples(tmp_path / "samples", Samples(torch.zeros(4, 1, 8, 8), torch.zeros(4, 2), fewer))
    with pytest.raises(DataError, match="2 classes, the networks 3"):
        run(inputs, context("again"))


def test_a_loss_that_is_not_finite_is_named(inputs, context):
    with pytest.raises(TrainingError, match=r"loss term '(kd|feed)' is (nan|inf)"):
        run(inputs, context(), lr=100, schedule="constant", losses={"kd": {"weight": 1e30}, "feed": {}})


@pytest.mark.parametrize(
    ("losses", "place", "words"),
    [
        ({"kdd": {}}, ("losses",), "unknown loss 'kdd'. Did you mean kd?"),
        ({"kd": {"temprature": 2}}, ("losses", "kd", "temprature"), "Did you mean temperature?"),
        ({"feed": {"weight": -1}}, ("losses", "feed", "weight"), "greater than or equal to 0"),
        ({}, ("losses",), "at least 1"),
    ],
)
def test_losses_are_checked_at_their_place(losses, place, words):
    with pytest.raises(ValidationError) as caught:
        DistillParams(**{**FAST, "losses": losses})
    (error,) = caught.value.errors()
    assert error["loc"] == place
    assert words in error["msg"]


def test_an_empty_value_means_defaults():
    parameters = DistillParams(**{**FAST, "losses": {"kd": None}}).loss_parameters()
    assert parameters["kd"].temperature == 4


def test_every_loss_trains_a_student_on_synthesized_images(inputs, context):
    """Taps, shapes, preparation and batches fit all losses together but two, which ask more of the student."""
    losses = {name: {} for name in LOSSES if name not in {"fsp", "simkd"}}
    losses["factor-transfer"] = {"paraphraser_epochs": 30, "paraphraser_lr": 1e-2, "reconstruction": 0.9}
    losses["crd"] = {"negatives": 16}
    folder = context()
    outcome = run(inputs, folder, losses=losses, epochs=1, lr=1e-4)
    assert set(losses) < set(outcome.history["student"][0])
    assert 0 < outcome.metrics["factor-transfer_reconstruction_1"] < 0.9
    student, description = load_network(folder.root / "network")
    assert set(student.state_dict()) == set(build_network(description).state_dict())


def test_the_default_layers_are_the_last_map_at_each_resolution(inputs, context):
    one = {**inputs, "teachers": Artifact("network", inputs["teachers"].path.parent / "network")}
    # the teacher's layers have 6 and 12 channels at 8x8 and 4x4
    run(one, context("fits"), epochs=1, losses={"fsp": {}}, model={"model": "cnn", "channels": [6, 12]})
    with pytest.raises(NetworkError, match=r"the student's have \[6, 10\], teacher 0's \[6, 12\]"):
        run(one, context("does not"), epochs=1, losses={"fsp": {}}, model={"model": "cnn", "channels": [6, 10]})
    # of a student with three resolutions the deepest two are compared
    run(one, context("deeper"), epochs=1, losses={"fsp": {}}, model={"model": "cnn", "channels": [4, 6, 12]})


def test_layers_by_pattern(inputs, context):
    attention = {"attention": {}}
    run(inputs, context("a"), epochs=1, losses=attention, student_tap="features.*", teacher_taps=["features.*"] * 2)
    for name, student, teachers, words in (
        (
            "b",
            ["features.0", "features.3"],
            ["features.0"] * 2,
            "the student has 2 layers to compare, the teachers 1, 1",
        ),
        ("c", "feature.*", ["features.*"] * 2, "no module like 'feature.\\*'. Did you mean features"),
    ):
        with pytest.raises(NetworkError, match=words):
            run(inputs, context(name), epochs=1, losses=attention, student_tap=student, teacher_taps=teachers)


def test_one_network_may_be_the_teacher(inputs, context):
    one = {**inputs, "teachers": Artifact("network", inputs["teachers"].path.parent / "network")}
    outcome = run(one, context(), epochs=12)
    assert outcome.metrics["agreement"] > 0.9
    with pytest.raises(NetworkError, match="2 modules for 1 teachers"):
        run(one, context("two"), epochs=1, teacher_taps=["features", "features"])


def test_a_weight_goes_to_its_end_by_epoch(inputs, context):
    """Gradual soft loss reducing: the soft loss falls out, the hard one comes in."""
    losses = {"kd": {"weight": 1, "weight_end": 0}, "ce": {"weight": 0, "weight_end": 1}}
    rows = run(inputs, context(), losses=losses, epochs=5).history["student"]
    assert rows[0]["ce"] == 0 < rows[0]["kd"]
    assert rows[-1]["kd"] == 0 < rows[-1]["ce"]
    assert all(row["kd"] > 0 and row["ce"] > 0 for row in rows[1:-1])


def test_a_weight_is_warmed_up_by_epoch(inputs, context):
    """Images in the same order and a learning rate of next to nothing, so that only the weight changes the term."""
    losses = {"dkd": {"weight_warmup": 0.5}, "kd": {}}
    rows = run(inputs, context(), losses=losses, epochs=4, lr=1e-12).history["student"]
    assert [row["dkd"] / rows[-1]["dkd"] for row in rows] == pytest.approx([0.5, 1, 1, 1], rel=0.05)
    assert [row["kd"] / rows[-1]["kd"] for row in rows] == pytest.approx([1, 1, 1, 1], rel=0.05)


def test_generations_teach_each_other(inputs, context):
    """Each generation after the first learns from the one before alone, and the last is the stage's network."""
    folder, alone = context("three"), context("one")
    outcome = run(inputs, folder, epochs=6, generations=3)
    assert list(outcome.history) == ["student-1", "student-2", "student-3"]
    assert STAGE.outputs(DistillParams(**{**FAST, "generations": 3})) == {"network": "network", "ensemble": "ensemble"}
    assert STAGE.outputs(DistillParams(**FAST)) == {"network": "network"}
    members = [network.state_dict() for network, _ in load_ensemble(folder.root / "ensemble")]
    assert len(members) == 3
    for key, value in load_network(folder.root / "network")[0].state_dict().items():
        assert torch.equal(value, members[2][key])
        assert key.endswith("num_batches_tracked") or not torch.equal(value, members[1][key])
    # the first is the student that there would be without the others
    run(inputs, alone, epochs=6)
    for key, value in load_network(alone.root / "network")[0].state_dict().items():
        assert torch.equal(value, members[0][key])
    assert [done for done, total, _, _ in folder.reports] == list(range(1, 19))
    assert {total for _, total, _, _ in folder.reports} == {18}
    assert outcome.metrics["agreement_3"] == outcome.metrics["agreement"] > 0.8


def test_a_student_with_the_teachers_classifier_learns_from_its_map_alone(inputs, context):
    one = {**inputs, "teachers": Artifact("network", inputs["teachers"].path.parent / "network")}
    backbone = {"model": "cnn", "channels": [4, 6]}
    model = {"model": "reused-classifier", "backbone": backbone, "channels": 12}
    folder = context()
    outcome = run(one, folder, losses={"simkd": {}}, epochs=12, model=model)
    assert outcome.metrics["agreement"] > 0.9
    student, _ = load_network(folder.root / "network")
    teacher, _ = load_network(one["teachers"].path)
    assert torch.equal(student.fc.weight, teacher.fc.weight)
    with pytest.raises(NetworkError, match="channels: 12"):
        run(one, context("plain"), losses={"simkd": {}}, epochs=1)
