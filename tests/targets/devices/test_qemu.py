"""The exported C, compiled by GCC and run by QEMU: a second opinion on the emulated cores."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from rows_everywhere import rows_everywhere

from kdpipe.targets import reference
from kdpipe.targets.c.cores import DSP, FEATURES, MVE
from kdpipe.targets.c.generator import export
from kdpipe.targets.c.kernel_choice import lower_node
from kdpipe.targets.devices import qemu
from kdpipe.targets.devices.c_artifact import load_c_artifact
from kdpipe.targets.devices.unicorn_machine import UnicornMachine
from kdpipe.targets.errors import DeviceError, MissingDependencyError, UsageError
from kdpipe.targets.graph import IntegerGraph

Graphs = Callable[..., IntegerGraph]
Inputs = Callable[..., NDArray[np.int8]]
UNICORN = {"qemu-cortex-m3": "M3", "qemu-cortex-m4": "M4", "qemu-cortex-m7": "M7"}

needs_qemu = pytest.mark.skipif(
    shutil.which(qemu.COMPILER) is None or shutil.which(qemu.EMULATOR) is None,
    reason=f"needs {qemu.COMPILER} and {qemu.EMULATOR}: apt install gcc-arm-none-eabi qemu-system-arm",
)


def test_unknown_board() -> None:
    with pytest.raises(UsageError, match="unknown device 'qemu-cortex-m5'"):
        qemu.create("qemu-cortex-m5")


def test_what_is_missing_is_named(
    random_graph: Graphs, random_inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = random_graph(1)
    export(graph, tmp_path)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(MissingDependencyError, match="arm-none-eabi-gcc is not on the PATH") as missing:
        qemu.create("qemu-cortex-m4").measure(tmp_path, random_inputs(graph, 1))
    assert "apt install gcc-arm-none-eabi" in (missing.value.remedy or "")


@needs_qemu
@pytest.mark.parametrize("name", qemu.BOARDS)
def test_outputs_and_layers_equal_the_reference(
    name: str, random_graph: Graphs, random_inputs: Inputs, tmp_path: Path
) -> None:
    pytest.importorskip("elftools")
    operators = ("conv", "depthwise", "residual")
    graph = random_graph(247, rounding="single", channel_step=4, depth=5, weight_bits=(2, 8), operators=operators)
    inputs = random_inputs(graph, 5)
    core = qemu.BOARDS[name].core
    if DSP in FEATURES[core]:
        # these use the FPU's registers, which faults where the start-up code has not switched it on
        expected_kernels = {"conv_mve_columns"} if MVE in FEATURES[core] else {"depthwise3", "ternary_taps"}
        assert expected_kernels <= {lower_node(graph, node, core).kernel for node in graph.nodes}
    with rows_everywhere():
        export(graph, tmp_path, core)
    done: list[tuple[int, int]] = []
    device = qemu.create(name, workers=2)
    measured = device.measure(tmp_path, inputs, lambda *progress: done.append(progress))
    expected = reference.run_all(graph, inputs)
    np.testing.assert_array_equal(measured.outputs, expected[graph.nodes[-1].name])
    assert done == [(3, 5), (5, 5)]
    assert (measured.cycles, measured.layers) == (None, None)
    assert all((measured.instructions, measured.flash_bytes, measured.ram_bytes))
    traced = device.trace(tmp_path, inputs)
    assert set(traced) == {node.name for node in graph.nodes}
    for layer, values in traced.items():
        np.testing.assert_array_equal(values, expected[layer], err_msg=layer)


@needs_qemu
@pytest.mark.parametrize("name", UNICORN)
def test_both_emulators_count_alike(name: str, random_graph: Graphs, random_inputs: Inputs, tmp_path: Path) -> None:
    """The same image, so the same compiler, on both: outputs, and instructions within 0.1 %."""
    pytest.importorskip("elftools")
    pytest.importorskip("unicorn")
    pytest.importorskip("capstone")
    graph = random_graph(205, rounding="single", channel_step=4, depth=6, input_shape=(8, 24, 24))
    inputs = random_inputs(graph, 2)
    board = qemu.BOARDS[name]
    export(graph, tmp_path / "c", board.core)
    (tmp_path / "build").mkdir()
    artifact = load_c_artifact(tmp_path / "c", board.core)
    firmware = qemu.create(name).build(artifact, tmp_path / "build")
    machine = UnicornMachine(firmware, UNICORN[name], None, instruction_limit=10**9, seconds_limit=60)
    counted, outputs = [], []
    for values in artifact.pack_inputs(inputs):
        output, cost = machine.run_counted(values.tobytes(), artifact.output_size)
        outputs.append(np.frombuffer(output, np.int8))
        counted.append(cost.instructions)
    measured = qemu.create(name).measure(tmp_path / "c", inputs)
    np.testing.assert_array_equal(measured.outputs, artifact.unpack_outputs(np.stack(outputs)))
    assert measured.instructions == pytest.approx(np.mean(counted), rel=1e-3)
    # the emulators begin with other stack pointers: what is pushed around the call differs by some words
    assert measured.ram_bytes == pytest.approx(firmware.static_ram_bytes + machine.stack_bytes(), abs=32)


@needs_qemu
@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("*(volatile int8_t *)0xC0000000u = 1;", "stopped at 0x.* in .*run"),
        ('__asm__ volatile("udf #0");', "stopped at 0x.* in .*run"),
        ("return 3;", "returned error 3"),
        ("volatile char big[20000]; for (int i = 20000; i-- > 0;) { big[i] = 1; }", "qemu-system-arm stopped"),
    ],
)
def test_faults(statement: str, expected: str, random_graph: Graphs, random_inputs: Inputs, tmp_path: Path) -> None:
    graph = random_graph(1)
    export(graph, tmp_path)
    source = (tmp_path / "model.c").read_text()
    (tmp_path / "model.c").write_text(source.replace("    return 0;", f"    {statement}\n    return 0;", 1))
    with pytest.raises(DeviceError, match=expected):
        qemu.create("qemu-cortex-m4").measure(tmp_path, random_inputs(graph, 1))


@needs_qemu
def test_a_program_that_never_returns(random_graph: Graphs, random_inputs: Inputs, tmp_path: Path) -> None:
    graph = random_graph(1)
    export(graph, tmp_path)
    source = (tmp_path / "model.c").read_text()
    (tmp_path / "model.c").write_text(source.replace("    return 0;", "    for (volatile int i = 0;; i++) {}", 1))
    device = qemu.QemuCortexM(qemu.BOARDS["qemu-cortex-m3"], seconds_limit=2.0, start_seconds=1.0)
    with pytest.raises(DeviceError, match=r"did not return within 3 s"):
        device.measure(tmp_path, random_inputs(graph, 1))


def test_the_machines_are_qemus() -> None:
    path = shutil.which(qemu.EMULATOR)
    if path is None:
        pytest.skip(f"needs {qemu.EMULATOR}")
    said = subprocess.run([path, "-machine", "help"], capture_output=True, text=True, check=True).stdout
    known = {line.split()[0] for line in said.splitlines() if line.strip()}
    assert {board.machine for board in qemu.BOARDS.values()} <= known
