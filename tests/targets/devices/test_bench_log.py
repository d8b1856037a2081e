"""A bench's log: medians of whole runs, and everything that is not a whole log."""

from pathlib import Path

import pytest

from kdpipe.targets.devices.bench_log import BenchLog, read_bench_log
from kdpipe.targets.errors import UsageError

WHOLE = """noise
kdpipe bench 1 net
0 100 conv 1
0 20 head
1 110 conv 1
1 22 head
2 300 conv 1
2 21 head
end
0 5 later
"""


def test_medians_over_the_runs(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text(WHOLE)
    assert read_bench_log(path) == BenchLog("net", 3, (("conv 1", 110), ("head", 21)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no line begins with"),
        (WHOLE.replace("bench 1", "bench 2"), "its version is '2'"),
        (WHOLE.replace("end\n", ""), "'end', is missing"),
        (WHOLE.replace("1 22 head\n", ""), "the same layers"),
        ("kdpipe bench 1 net\nend\n", "the same layers"),
    ],
)
def test_what_is_not_whole_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text(text)
    with pytest.raises(UsageError, match="not the whole output") as caught:
        read_bench_log(path)
    assert message in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="can't read"):
        read_bench_log(tmp_path / "nowhere")
