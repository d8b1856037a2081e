"""The exported C on emulated cores, against the integer reference."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from rows_everywhere import rows_everywhere

from kdpipe.targets import reference
from kdpipe.targets.c.generator import arena_bytes, constant_bytes, export
from kdpipe.targets.c.storage import assign_storage
from kdpipe.targets.devices import c_compiler, cortex_m
from kdpipe.targets.devices.c_artifact import load_c_artifact
from kdpipe.targets.devices.firmware import build_firmware, read_firmware
from kdpipe.targets.devices.unicorn_machine import UnicornMachine
from kdpipe.targets.errors import ArtifactError, DeviceError, MissingDependencyError, UsageError
from kdpipe.targets.graph import IntegerGraph

for package in ("unicorn", "ziglang", "elftools", "capstone"):
    pytest.importorskip(package)

Exported = tuple[IntegerGraph, Path]
Inputs = Callable[..., NDArray[np.int8]]


@pytest.mark.parametrize(("seed", "rounding"), [(1, "single"), (2, "tflite"), (7, "single"), (13, "tflite")])
def test_outputs_equal_the_reference(
    seed: int, rounding: str, random_graph: Callable[..., IntegerGraph], random_inputs: Inputs, tmp_path: Path
) -> None:
    graph = random_graph(seed, rounding=rounding)
    export(graph, tmp_path)
    limits = graph.input.quantization
    extremes = [np.full((1, *graph.input.shape), value, dtype=np.int8) for value in (limits.qmin, limits.qmax)]
    inputs = np.concatenate([random_inputs(graph, 10), *extremes])
    done = []
    measured = cortex_m.create("cortex-m4").measure(tmp_path, inputs, lambda *progress: done.append(progress))
    np.testing.assert_array_equal(measured.outputs, reference.run(graph, inputs))
    assert done[-1] == (12, 12)
    assert measured.latency_ms == ()
    assert measured.cycles > measured.instructions > 0


@pytest.mark.slow
@pytest.mark.parametrize("core", sorted(cortex_m.CORES))
def test_every_core(core: str, exported_graph: Exported, random_inputs: Inputs) -> None:
    graph, directory = exported_graph
    inputs = random_inputs(graph, 4)
    measured = cortex_m.create(core).measure(directory, inputs)
    np.testing.assert_array_equal(measured.outputs, reference.run(graph, inputs))
    assert (measured.cycles is not None) == (core in ("cortex-m0plus", "cortex-m3", "cortex-m4"))


def test_trace_shows_every_layer(exported_graph: Exported, random_inputs: Inputs) -> None:
    graph, directory = exported_graph
    inputs = random_inputs(graph, 3)
    traced = cortex_m.create("cortex-m4").trace(directory, inputs)
    expected = reference.run_all(graph, inputs)
    assert set(traced) == {node.name for node in graph.nodes}
    for name, values in traced.items():
        np.testing.assert_array_equal(values, expected[name], err_msg=name)


def test_flash_and_ram_are_what_the_elf_says(exported_graph: Exported, random_inputs: Inputs, tmp_path: Path) -> None:
    from elftools.elf.elffile import ELFFile

    graph, directory = exported_graph
    firmware = build_firmware(load_c_artifact(directory, "cortex-m4"), "cortex_m4", tmp_path)
    with (tmp_path / "firmware.elf").open("rb") as stream:
        segments = list(ELFFile(stream).iter_segments("PT_LOAD"))
        flash = sum(segment["p_filesz"] for segment in segments)
        ram = sum(segment["p_memsz"] for segment in segments if segment["p_vaddr"] >= 0x20000000)
    assert firmware.flash_bytes == flash
    assert firmware.static_ram_bytes == ram - (firmware.stack[1] - firmware.stack[0])
    measured = cortex_m.create("cortex-m4").measure(directory, random_inputs(graph, 1))
    assert measured.flash_bytes == flash
    stack = measured.ram_bytes - firmware.static_ram_bytes
    assert 16 <= stack < 1024
    buffers = arena_bytes(graph) + np.prod(graph.input.shape) + np.prod(graph.output.shape)
    assert buffers <= firmware.static_ram_bytes <= buffers + 16


def test_counts_equal_single_stepping(exported_graph: Exported, random_inputs: Inputs, tmp_path: Path) -> None:
    """Counting by basic blocks gives what a callback on every instruction gives, at every run.

    On an M0+, which has no IT: what IT skips takes its cycle and is counted, but unicorn does not call back for it.
    """
    import unicorn

    graph, directory = exported_graph
    artifact = load_c_artifact(directory, "cortex-m4")
    firmware = build_firmware(artifact, "cortex_m0plus", tmp_path)
    machine = UnicornMachine(firmware, "M0", None, instruction_limit=10**9, seconds_limit=60)
    values = artifact.pack_inputs(random_inputs(graph, 1))[0].tobytes()
    counted = []
    for _ in range(3):
        counted.append(machine.run_counted(values, artifact.output_size, artifact.program_functions)[1])
        machine.run(values, artifact.output_size)
    names: list[str | None] = []
    with machine._hooked(unicorn.UC_HOOK_CODE, lambda _, address, *__: names.append(firmware.function_at(address))):
        machine.run(values, artifact.output_size)
    assert [cost.instructions for cost in counted] == [len(names)] * 3
    # a layer ends where the program goes on
    inside = [name in artifact.program_functions for name in names]
    returns = [index for index in range(1, len(names)) if inside[index] and not inside[index - 1]][1:]
    ends = [0, *returns[:-1], len(names)]
    assert [call.instructions for call in counted[0].calls] == list(np.diff(ends))


@pytest.mark.parametrize(("seed", "by_rows"), [(3, False), (3, True), (5, True)])
def test_layers_add_up_and_processes_share_the_work(
    seed: int, by_rows: bool, random_graph: Callable[..., IntegerGraph], random_inputs: Inputs, tmp_path: Path
) -> None:
    graph = random_graph(seed, rounding="single")
    with rows_everywhere(by_rows):
        export(graph, tmp_path, "cortex-m4")
        arena = arena_bytes(graph, "cortex-m4")
    artifact = load_c_artifact(tmp_path, "cortex-m4")
    assert (len(artifact.turns) > len(graph.nodes)) == by_rows
    inputs = random_inputs(graph, 12)
    alone, shared = (cortex_m.create("cortex-m4", workers).measure(tmp_path, inputs) for workers in (1, 2))
    np.testing.assert_array_equal(alone.outputs, shared.outputs)
    assert (alone.instructions, alone.cycles, alone.ram_bytes, alone.sample_cycles, alone.layers) == (
        *(shared.instructions, shared.cycles, shared.ram_bytes),
        *(shared.sample_cycles, shared.layers),
    )
    assert alone.layers is not None
    assert [layer.name for layer in alone.layers] == [
        node.name for node in graph.nodes if node.name not in assign_storage(graph, {}).views
    ]
    # each figure is a rounded mean by itself
    assert abs(sum(layer.instructions for layer in alone.layers) - alone.instructions) <= len(alone.layers)
    assert abs(sum(layer.cycles for layer in alone.layers) - alone.cycles) <= len(alone.layers)
    assert sum(layer.constant_bytes for layer in alone.layers) == sum(constant_bytes(graph, "cortex-m4").values())
    assert max(layer.live_bytes for layer in alone.layers) <= arena


def _damaged(exported: Exported, tmp_path: Path, statement: str, before: str = "    return 0;") -> Path:
    """Copy the export with `statement` before the first occurrence of `before` in model.c."""
    directory = tmp_path / "damaged"
    shutil.copytree(exported[1], directory)
    source = (directory / "model.c").read_text()
    assert before in source
    (directory / "model.c").write_text(source.replace(before, f"    {statement}\n{before}", 1))
    return directory


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("*(volatile int8_t *)0xC0000000u = 1;", "0xc0000000"),
        ("(void)*(volatile int8_t *)8u;", "0x00000008"),
        ('__asm__ volatile("udf #0");', "in .*run"),
        ("volatile char big[20000]; for (int i = 20000; i-- > 0;) { big[i] = 1; }", "0x1fff"),
        ("return 3;", "returned error 3"),
        ("((void (*)(void))0x30000001u)();", "0x30000000"),
    ],
)
def test_faults_are_located(
    exported_graph: Exported, random_inputs: Inputs, tmp_path: Path, statement: str, expected: str
) -> None:
    directory = _damaged(exported_graph, tmp_path, statement)
    with pytest.raises(DeviceError, match=f"(?i){expected}") as error:
        cortex_m.create("cortex-m4").measure(directory, random_inputs(exported_graph[0], 2))
    assert "sample 0" in str(error.value)
    assert "stopped at 0x" in str(error.value)


def test_a_fault_names_its_layer(exported_graph: Exported, random_inputs: Inputs, tmp_path: Path) -> None:
    graph, _ = exported_graph
    third = graph.nodes[2].name
    directory = _damaged(exported_graph, tmp_path, "*(volatile int8_t *)0u = 1;", f"    /* 2: {third} */")
    inputs = random_inputs(graph, 1)
    with pytest.raises(DeviceError, match=f"layer {third}"):
        cortex_m.create("cortex-m4").measure(directory, inputs)
    with pytest.raises(DeviceError, match=f"layer {third}"):
        cortex_m.create("cortex-m4").trace(directory, inputs)


def test_a_program_that_never_returns_is_given_up(
    exported_graph: Exported, random_inputs: Inputs, tmp_path: Path
) -> None:
    directory = _damaged(exported_graph, tmp_path, "for (volatile int i = 0;; i++) {}")
    inputs = random_inputs(exported_graph[0], 1)
    by_count = cortex_m.CortexM("cortex-m4", instruction_limit=200_000, seconds_limit=1.0)
    with pytest.raises(DeviceError, match="did not return within 200000 instructions"):
        by_count.measure(directory, inputs)
    by_time = cortex_m.CortexM("cortex-m4", counted_samples=0, seconds_limit=0.5)
    with pytest.raises(DeviceError, match=r"did not return within 0\.5 s"):
        by_time.measure(directory, inputs)


def test_sources_that_do_not_compile(exported_graph: Exported, random_inputs: Inputs, tmp_path: Path) -> None:
    directory = _damaged(exported_graph, tmp_path, "this is not C;")
    with pytest.raises(DeviceError, match=r"(?s)compiler .* failed.*model\.c"):
        cortex_m.create("cortex-m4").measure(directory, random_inputs(exported_graph[0], 1))


def test_an_artifact_for_another_target(exported_graph: Exported, random_inputs: Inputs, tmp_path: Path) -> None:
    graph, directory = exported_graph
    inputs = random_inputs(graph, 1)
    with pytest.raises(ArtifactError, match="artifact"):
        cortex_m.create("cortex-m4").measure(tmp_path, inputs)
    shutil.copytree(directory, tmp_path / "copy")
    description = tmp_path / "copy" / "artifact.json"
    description.write_text(description.read_text().replace('"target": "c"', '"target": "onnx"'))
    with pytest.raises(ArtifactError, match="not C sources"):
        cortex_m.create("cortex-m4").measure(tmp_path / "copy", inputs)


@pytest.mark.parametrize("damage", ["missing source", "missing layers", "hostile name"])
def test_a_damaged_artifact(exported_graph: Exported, random_inputs: Inputs, tmp_path: Path, damage: str) -> None:
    graph, directory = exported_graph
    copy = tmp_path / "copy"
    shutil.copytree(directory, copy)
    if damage == "missing source":
        (copy / "model_weights.c").unlink()
    elif damage == "missing layers":
        (copy / "test" / "layers.json").write_text("[")
    else:
        text = (copy / "artifact.json").read_text()
        (copy / "artifact.json").write_text(text.replace(f'"name": "{graph.name}"', '"name": "a;b"'))
    with pytest.raises(ArtifactError):
        cortex_m.create("cortex-m4").measure(copy, random_inputs(graph, 1))


def test_inputs_of_another_shape(exported_graph: Exported) -> None:
    with pytest.raises(DeviceError, match="takes int8"):
        cortex_m.create("cortex-m4").measure(exported_graph[1], np.zeros((2, 1), dtype=np.int8))


def test_unknown_core() -> None:
    with pytest.raises(UsageError, match="Did you mean cortex-m4"):
        cortex_m.create("cortex-m44")


def test_not_an_image(tmp_path: Path) -> None:
    (tmp_path / "firmware.elf").write_bytes(b"not an ELF file")
    with pytest.raises(DeviceError, match="not a readable firmware image"):
        read_firmware(tmp_path / "firmware.elf")


def test_a_missing_compiler_names_the_extra(
    exported_graph: Exported, random_inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(c_compiler.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"kdpipe\[mcu\]"):
        cortex_m.create("cortex-m4").measure(exported_graph[1], random_inputs(exported_graph[0], 1))


@pytest.mark.parametrize("package", ["unicorn", "capstone", "elftools.common.exceptions"])
def test_a_missing_package_names_the_extra(
    package: str, exported_graph: Exported, random_inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(MissingDependencyError, match=r"kdpipe\[mcu\]"):
        cortex_m.create("cortex-m4").measure(exported_graph[1], random_inputs(exported_graph[0], 1))
