import pytest

from kdpipe.targets.errors import UsageError
from kdpipe.targets.registry import Registry


def test_lookup_listing_and_misses() -> None:
    fruit: Registry[int] = Registry("fruit")
    assert fruit.register("pear")(2) == 2
    fruit.register("apple")(1)
    assert (fruit["pear"], list(fruit), len(fruit), "apple" in fruit) == (2, ["apple", "pear"], 2, True)
    with pytest.raises(UsageError, match=r"unknown fruit 'aple'\. Did you mean apple\?"):
        fruit["aple"]
    with pytest.raises(UsageError, match="Known: apple, pear"):
        fruit["zzz"]


def test_nothing_is_overwritten() -> None:
    fruit: Registry[int] = Registry("fruit")
    fruit.register("pear")(1)
    with pytest.raises(ValueError, match="registered twice"):
        fruit.register("pear")(2)
    assert fruit["pear"] == 1
