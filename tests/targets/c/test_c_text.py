"""Text that comes from outside, made harmless."""

import numpy as np
import pytest

from kdpipe.targets.c.c_text import comment_text, float_literal, integer, table_cell


@pytest.mark.parametrize("text", ["*/ int x; /*", "a\nb\r\tc", "ends in \\", "??/", "\u202e evil", "**//", "/*/", "é"])
def test_a_comment_stays_one(text: str) -> None:
    safe = comment_text(text)
    assert safe.isascii()
    assert safe.isprintable()
    assert "*/" not in safe
    assert "/*" not in safe
    assert "??" not in safe
    assert not safe.endswith("\\")


def test_a_table_cell_stays_one() -> None:
    assert table_cell("a|b`<script>\n") == "a&#124;b&#96;&lt;script&gt;"


@pytest.mark.parametrize("value", [1.0, 0.1, 1e-30, 3e38, 1 / 3, 0.0078125])
def test_float_literals_read_back_exactly(value: float) -> None:
    literal = float_literal(value)
    assert literal.endswith("f")
    assert np.float32(literal[:-1]) == np.float32(value)
    assert any(character in literal for character in ".e")


def test_smallest_integer_is_an_expression() -> None:
    assert integer(-(2**31)) == "(-2147483647 - 1)"
    assert integer(-7) == "-7"
