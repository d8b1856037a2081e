"""Options that take several names: `--only student quantized` means `--only student --only quantized`."""

from __future__ import annotations

from collections.abc import Sequence

SPREADING = ("--only", "--force")


def spread_names(words: Sequence[str]) -> list[str]:
    """Return the command line with the option repeated before each of its names.

    Names may be divided by spaces or commas. A pipeline file is never taken for a stage's name.

    >>> spread_names(["run", "p.yaml", "--only", "a", "b,c", "--debug"])
    ['run', 'p.yaml', '--only', 'a', '--only', 'b', '--only', 'c', '--debug']
    >>> spread_names(["run", "--force", "a", "p.yaml"])
    ['run', '--force', 'a', 'p.yaml']
    """
    spread: list[str] = []
    option: str | None = None
    is_first = False
    for word in words:
        name, equals, value = word.partition("=")
        if name in SPREADING:
            option, is_first = name, True
            if equals:
                spread += _repeated(name, value)
                is_first = False
        elif option is not None and not word.startswith("-") and (is_first or not _is_file(word)):
            spread += _repeated(option, word)
            is_first = False
        else:
            if option is not None and is_first:
                spread.append(option)  # without a name: the parser is to complain
            option = None
            spread.append(word)
    if option is not None and is_first:
        spread.append(option)
    return spread


def _repeated(option: str, names: str) -> list[str]:
    # Without any name, the empty one stays: it is refused, where no option at all would mean every stage.
    listed = [name for name in names.split(",") if name] or [""]
    return [part for name in listed for part in (option, name)]


def _is_file(word: str) -> bool:
    return word.lower().endswith((".yaml", ".yml")) or "/" in word or "\\" in word
