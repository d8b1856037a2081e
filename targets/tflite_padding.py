"""Padding as TFLite names it: SAME, VALID, or neither."""

from __future__ import annotations

from kdpipe.targets.graph import Padding, Pair


def tflite_padding(
    size: Pair, kernel: Pair, stride: Pair, padding: Padding, output: Pair, dilation: Pair = (1, 1)
) -> str | Padding:
    """Return "VALID" or "SAME" where that is what `padding` amounts to, or else the padding that is really read.

    Args:
        size: the input's height and width.
        kernel: of the window; likewise the others.
        stride: vertical, horizontal.
        padding: (top, left, bottom, right).
        output: the output's height and width.
        dilation: vertical, horizontal.
    """
    before, after, same = [], [], []
    for axis in (0, 1):
        reach = (output[axis] - 1) * stride[axis] + (kernel[axis] - 1) * dilation[axis] + 1
        before.append(padding[axis])
        # A padding at the end that no window reaches is no padding.
        after.append(max(0, reach - size[axis] - before[axis]))
        total = max(0, reach - size[axis])
        is_same_size = output[axis] == -(-size[axis] // stride[axis])
        same.append(is_same_size and (before[axis], after[axis]) == (total // 2, total - total // 2))
    if not any(before) and not any(after):
        return "VALID"
    return "SAME" if all(same) else (before[0], before[1], after[0], after[1])
