"""Comparing the outputs of two runs."""

import numpy as np
import pytest

from kdpipe.targets.parity import compare


def test_equal_outputs() -> None:
    outputs = np.array([[1, 2], [3, -4]], np.int8)
    found = compare(outputs, outputs.copy())
    assert (found.max_step_difference, found.top1_agreement, found.differing.tolist()) == (0, 1.0, [])


def test_differences_are_counted_without_overflow() -> None:
    expected = np.array([[-128, 0], [5, 4], [1, 2], [0, 0]], np.int8)
    actual = np.array([[127, 0], [4, 5], [1, 3], [0, 0]], np.int8)
    found = compare(expected, actual)
    assert found.max_step_difference == 255
    assert found.top1_agreement == 0.5
    assert found.differing.tolist() == [0, 1, 2]


def test_the_first_of_equal_outputs_wins() -> None:
    assert compare(np.array([[7, 7]], np.int8), np.array([[7, 6]], np.int8)).top1_agreement == 1.0


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="can't be compared"):
        compare(np.zeros((2, 3), np.int8), np.zeros((2, 4), np.int8))
