"""The fuzz's command line, its slices, and the count of what it ran.

pytest tests/targets/fuzz --graphs 5000 -n 2      so many graphs through every target
pytest tests/targets/fuzz -k test_c_in_qemu --qemu  C for the cores that only QEMU emulates, which it must be asked for
pytest tests/targets/fuzz --replay FOLDER         a stored graph through every target
"""

from collections import Counter
from pathlib import Path

import pytest
from fuzz.c_batch import Compilers

from kdpipe.targets.devices.c_compiler import compile_c, native_compiler
from kdpipe.targets.errors import DeviceError

SLICE = 50
"""Graphs that a test draws; the C tests take them three slices at a time."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--graphs", type=int, default=None, help="the fuzz: how many graphs")
    parser.addoption("--first-graph", type=int, default=0, help="the fuzz: how many graphs to leave out before them")
    parser.addoption("--qemu", action="store_true", help="the fuzz: also C for the cores that only QEMU emulates")
    parser.addoption("--replay", type=Path, default=None, help="the fuzz: the folder of a stored graph to run again")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    slices = (("runtime_slice", SLICE, 200), ("lowering_slice", SLICE, 200), ("c_slice", 3 * SLICE, 300))
    for name, size, usual in slices:
        if name in metafunc.fixturenames:
            count = metafunc.config.getoption("--graphs", default=None) or usual
            first = (metafunc.config.getoption("--first-graph", default=0) or 0) // size
            metafunc.parametrize(name, range(first, first + -(-count // size)))


@pytest.fixture(scope="session")
def compilers(tmp_path_factory: pytest.TempPathFactory) -> Compilers:
    directory = tmp_path_factory.mktemp("fuzz")
    return Compilers(directory, [*native_compiler(), *sanitizer_flags(directory)])


def sanitizer_flags(directory: Path) -> list[str]:
    """Return those that the compiler has: both, or undefined behaviour trapped, which needs no library."""
    (directory / "empty.c").write_text("int main(void) { return 0; }\n")
    for flags in (
        ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
        ["-fsanitize=undefined", "-fsanitize-trap=undefined"],
    ):
        try:
            compile_c([*native_compiler(), *flags, "empty.c", "-o", "empty"], directory)
        except DeviceError:
            continue
        return flags
    return []


@pytest.fixture
def replayed(request: pytest.FixtureRequest) -> Path | None:
    """The folder of the graph to run again, if any."""
    return request.config.getoption("--replay", default=None)


@pytest.fixture
def qemu(request: pytest.FixtureRequest) -> bool:
    """Whether cores are asked for that only QEMU emulates."""
    return bool(request.config.getoption("--qemu", default=False))


@pytest.fixture
def count(request: pytest.FixtureRequest) -> Counter[str]:
    """What the test ran, by words; told at the end, also from several processes."""
    counter: Counter[str] = Counter()
    request.node.fuzz_count = counter
    yield counter
    request.node.user_properties.append(("fuzz", dict(counter)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    total: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", None) == "teardown":
                total.update(dict(report.user_properties).get("fuzz", {}))
    if total:
        terminalreporter.section("what was fuzzed")
        for words, number in sorted(total.items()):
            terminalreporter.write_line(f"{number:7} {words}")
