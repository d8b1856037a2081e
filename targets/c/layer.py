"""What a node of an integer graph becomes in C: a kernel call with its constants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kdpipe.targets.c.packing import ConstantArray
from kdpipe.targets.graph import Node

Field = int | str | list["Field"]


@dataclass(frozen=True)
class Assembly:
    """A function in assembly, specialized by constants; layers with equal constants share it.

    Args:
        template: the file of `kernels/` that holds its code, and includes of which define the constants.
        name: of the function without the model's prefix and its number: "conv8_row".
        argument: the C type that it takes a pointer to.
        constants: macros and their values.
    """

    template: str
    name: str
    argument: str
    constants: tuple[tuple[str, int | str], ...]


@dataclass(frozen=True, eq=False)
class Layer:
    """One kernel call of the generated program.

    Args:
        node: the node that it computes.
        kernel: the function's name without the model's prefix: "conv2d_w2".
        header: the header that declares it.
        files: files of `kernels/` that it needs, itself included.
        struct: the C type of its constants.
        fields: the struct's members in order; a string such as "@bias" stands for one of `arrays`, and "@row" for
            the function `assembly`.
        arrays: constant arrays by a name of their own.
        scratch: bytes of scratch, 0 where it takes none.
        assembly: the function in assembly that it calls, if any.
        inputs_as_array: whether the inputs are handed over as one array of pointers.
        in_place: whether the output may begin where the input begins, because what is overwritten has been read.
        rows: of a kernel that computes a range of rows (kernels/rows.h) how many rows its output and its input have,
            as it counts them; None of one that always computes the whole output.
        row_step: how many rows it computes best at a time.
        keeps_rows: whether it copies rows of the input to its scratch, and reads none again in a later call.
    """

    node: Node
    kernel: str
    header: str
    files: tuple[str, ...]
    struct: str
    fields: list[Field]
    arrays: Mapping[str, ConstantArray] = field(default_factory=dict)
    scratch: int = 0
    assembly: Assembly | None = None
    inputs_as_array: bool = False
    in_place: bool = False
    rows: tuple[int, int] | None = None
    row_step: int = 1
    keeps_rows: bool = False
