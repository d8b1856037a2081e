"""Widths by pattern."""

from __future__ import annotations

import pytest

from kdpipe.stages.quantization.configuration import QuantizationConfig, Widths, choose_widths
from kdpipe.targets.errors import UsageError

LAYERS = ["stem", "layer1.0.conv1", "layer1.0.conv2", "layer10.0.conv1", "fc"]


def widths(**given) -> dict[str, Widths]:
    return choose_widths(LAYERS, {"stem", "fc"}, QuantizationConfig(2, 4, **given))


def test_first_and_last_are_wide_by_default() -> None:
    assert widths() == {name: Widths(8, 8) if name in ("stem", "fc") else Widths(2, 4) for name in LAYERS}
    assert widths(first_last_bits=4)["fc"] == Widths(4, 8)


def test_the_longest_pattern_counts_in_any_order() -> None:
    bits = {"layer1*": {"weights": 3}, "layer1.*": {"weights": 4, "activations": 8}, "*conv2": {"weights": 8}}
    for given in (bits, dict(reversed(bits.items()))):
        found = widths(bits=given)
        assert found["layer10.0.conv1"] == Widths(3, 4)
        assert found["layer1.0.conv1"] == Widths(4, 8)
        assert found["layer1.0.conv2"] == Widths(4, 8)
    assert widths(bits={**bits, "layer1.0.conv2": {"weights": 2}})["layer1.0.conv2"] == Widths(2, 8)


def test_patterns_reach_the_first_and_the_last_layer() -> None:
    assert widths(bits={"*": {"activations": 2}})["fc"] == Widths(8, 2)


@pytest.mark.parametrize(
    ("pattern", "remedy"), [("layer2.0.conv1", "Did you mean layer1"), ("zz*", "Known: fc, layer1.0.conv1")]
)
def test_a_pattern_without_a_layer_is_refused(pattern: str, remedy: str) -> None:
    with pytest.raises(UsageError, match="no convolution or linear layer") as caught:
        widths(bits={pattern: {"weights": 4}})
    assert str(caught.value.remedy).startswith(remedy)
