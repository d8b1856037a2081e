"""An ONNX file read with care: nothing in it is believed before it is checked, nothing outside its folder is read.

What is here knows ONNX's container only; what the operators mean is `reader.py`'s concern. Sizes are checked against
the bytes that are there before anything is allocated, so that a small file can't ask for a large tensor.

Source: ONNX IR specification, https://github.com/onnx/onnx/blob/main/docs/IR.md and ExternalData.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdpipe.targets.dependencies import require
from kdpipe.targets.errors import ArtifactError, UnsupportedError

LOWEST_OPSET = 10
"""The first with QuantizeLinear and DequantizeLinear."""
MAX_BYTES = 2**31 - 1
"""Protobuf's own limit."""
MAX_ELEMENTS = 2**27
"""An activation with more elements than this is refused."""
_BITS = {
    "FLOAT": 32, "DOUBLE": 64, "FLOAT16": 16, "BOOL": 8,
    "INT64": 64, "INT32": 32, "INT16": 16, "INT8": 8, "INT4": 4, "INT2": 2,
    "UINT64": 64, "UINT32": 32, "UINT16": 16, "UINT8": 8, "UINT4": 4, "UINT2": 2,
}  # fmt: skip
_OURS = ("", "ai.onnx", "com.microsoft")
"""Domains of known operators; com.microsoft's QuantizeLinear and DequantizeLinear are ONNX's."""


@dataclass(frozen=True, eq=False)
class Constant:
    """A constant tensor.

    Args:
        values: float64 if `kind` is a float, int64 otherwise.
        kind: the element type's name in ONNX, such as UINT8.
    """

    values: NDArray[Any]
    kind: str

    @property
    def is_real(self) -> bool:
        """Whether the elements are floats."""
        return self.kind in ("FLOAT", "DOUBLE", "FLOAT16")


@dataclass(frozen=True, eq=False)
class FileNode:
    """One operation of the file.

    Args:
        op: the operator's name.
        name: the node's, or its first output's where it has none.
        inputs: names of tensors; "" stands for an optional one that is not given.
        outputs: names of tensors.
        attributes: numbers, strings, lists of them, or tensors as `Constant`.
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]

    @property
    def where(self) -> str:
        """The place, for errors."""
        return f"node {self.name} ({self.op})"

    def integer(self, name: str, default: int) -> int:
        """Return an integer attribute."""
        value = self.attributes.get(name, default)
        if not isinstance(value, int):
            raise ArtifactError(f"its attribute {name} is not an integer", where=self.where)
        return value

    def integers(self, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        """Return an attribute that is a list of as many integers as `default` has."""
        value = self.attributes.get(name, default)
        if not isinstance(value, tuple) or len(value) != len(default) or not all(type(v) is int for v in value):
            raise UnsupportedError(f"its attribute {name} is not {len(default)} integers", where=self.where)
        return value

    def number(self, name: str, default: float) -> float:
        """Return a float attribute."""
        value = self.attributes.get(name, default)
        if not isinstance(value, float) or not math.isfinite(value):
            raise ArtifactError(f"its attribute {name} is not a finite number", where=self.where)
        return value

    def text(self, name: str, default: str) -> str:
        """Return a string attribute."""
        value = self.attributes.get(name, default)
        if not isinstance(value, str):
            raise ArtifactError(f"its attribute {name} is not a string", where=self.where)
        return value


@dataclass(frozen=True, eq=False)
class OnnxFile:
    """A network with one input and one output.

    Args:
        path: where it was read.
        name: of the graph.
        producer: the tool that wrote it.
        opset: version of ONNX's own operators, at least `LOWEST_OPSET`.
        properties: the metadata.
        input_name: of the input.
        input_kind: its element type's name in ONNX.
        input_shape: without the batch.
        output_name: of the output.
        nodes: in an order in which they can be computed.
    """

    path: Path
    name: str
    producer: str
    opset: int
    properties: Mapping[str, str]
    input_name: str
    input_kind: str
    input_shape: tuple[int, ...]
    output_name: str
    nodes: tuple[FileNode, ...]
    _initializers: Mapping[str, Any]

    def constant(self, name: str) -> Constant | None:
        """Return the initializer called `name`, or None if there is none.

        Raises:
            ArtifactError: it is damaged, or its data lies outside the file's folder.
            UnsupportedError: its element type has no integer form.
        """
        tensor = self._initializers.get(name)
        return None if tensor is None else _decode(tensor, self.path)


def read_onnx(path: Path) -> OnnxFile:
    """Read the ONNX file at `path`.

    Raises:
        ArtifactError: it can't be read, is truncated or damaged, or refers to data outside its folder.
        UnsupportedError: its version, its inputs or its outputs are none that kdpipe knows.
        MissingDependencyError: onnx is not installed.
    """
    onnx = require("onnx", "onnx")
    protobuf = require("google.protobuf.message", "onnx")
    model = onnx.ModelProto()
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ArtifactError(f"larger than {MAX_BYTES} bytes", where=str(path))
        model.ParseFromString(path.read_bytes())
    except OSError as error:
        raise ArtifactError(f"can't be read ({error.strerror})", where=str(path)) from None
    except (protobuf.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ArtifactError(
            f"not a readable ONNX file ({error})", where=str(path), remedy="It may be truncated: copy it again"
        ) from None
    opset = _checked_opset(model, onnx, path)
    graph = model.graph
    if graph.sparse_initializer or model.functions:
        raise UnsupportedError("sparse initializers and functions are not read", where=str(path))
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    for tensor in graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            _external_file(tensor, path)
    inputs = [value for value in graph.input if value.name not in initializers]
    if len(inputs) != 1 or len(graph.output) != 1:
        raise UnsupportedError(
            f"the network has {len(inputs)} inputs and {len(graph.output)} outputs",
            where=str(path),
            remedy="Export it with one input, the image, and one output",
        )
    kind, shape = _input_type(inputs[0], onnx, path)
    nodes = tuple(_node(node, onnx, path) for node in graph.node)
    _check_order(nodes, {inputs[0].name, *initializers}, path)
    properties = {entry.key: entry.value for entry in model.metadata_props}
    return OnnxFile(
        path, graph.name, model.producer_name, opset, properties, inputs[0].name, kind, shape, graph.output[0].name,
        nodes, initializers,
    )  # fmt: skip


def _checked_opset(model: Any, onnx: Any, path: Path) -> int:
    if not model.HasField("graph") or not model.graph.node:
        raise ArtifactError("holds no ONNX graph", where=str(path), remedy="It may be truncated: copy it again")
    if not 3 <= model.ir_version <= onnx.IR_VERSION:
        raise UnsupportedError(
            f"ONNX IR version {model.ir_version}; the installed onnx knows 3 to {onnx.IR_VERSION}",
            where=str(path),
            remedy="Upgrade the package onnx, or write the file for an older version",
        )
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    highest = onnx.defs.onnx_opset_version()
    if len(versions) != 1 or not LOWEST_OPSET <= versions[0] <= highest:
        raise UnsupportedError(
            f"ONNX opset {', '.join(map(str, versions)) or 'unknown'}; {LOWEST_OPSET} to {highest} are read",
            where=str(path),
            remedy="Export the network with another opset_version",
        )
    return int(versions[0])


def _input_type(value: Any, onnx: Any, path: Path) -> tuple[str, tuple[int, ...]]:
    tensor = value.type.tensor_type
    kind = _kind(tensor.elem_type, onnx)
    if not tensor.HasField("shape") or len(tensor.shape.dim) not in (2, 4):
        raise UnsupportedError(
            f"the input {value.name} is not [N, C, H, W] or [N, features]",
            where=str(path),
            remedy="Export the network for images, channels first",
        )
    shape = tuple(size.dim_value if size.HasField("dim_value") else 0 for size in tensor.shape.dim[1:])
    if min(shape) < 1:
        raise UnsupportedError(
            f"the input {value.name} has a size that is not known",
            where=str(path),
            remedy="Export the network with fixed sizes; only the batch may be free",
        )
    if math.prod(shape) > MAX_ELEMENTS:
        raise UnsupportedError(f"the input {value.name} has {math.prod(shape)} elements", where=str(path))
    return kind, shape


def _kind(number: int, onnx: Any) -> str:
    kinds: dict[int, str] = {value: name for name, value in onnx.TensorProto.DataType.items()}
    return kinds.get(number, str(number))


def _node(node: Any, onnx: Any, path: Path) -> FileNode:
    name = node.name or (node.output[0] if node.output else "")
    where = f"{path}: node {name} ({node.op_type})"
    if node.domain not in _OURS:
        raise UnsupportedError(
            f"an operator of the domain {node.domain}", where=where, remedy="Export with ONNX's own operators"
        )
    attributes: dict[str, Any] = {}
    for attribute in node.attribute:
        try:
            value = onnx.helper.get_attribute_value(attribute)
        except ValueError as error:
            raise ArtifactError(f"its attribute {attribute.name} is damaged ({error})", where=where) from None
        if isinstance(value, onnx.TensorProto):
            value = _decode(value, path)
        elif isinstance(value, bytes):
            value = value.decode("utf-8", errors="replace")
        elif not isinstance(value, int | float):
            try:
                value = tuple(value)
            except TypeError:
                value = None
        attributes[attribute.name] = value
    return FileNode(node.op_type, name, tuple(node.input), tuple(node.output), attributes)


def _check_order(nodes: tuple[FileNode, ...], known: set[str], path: Path) -> None:
    for node in nodes:
        for name in node.inputs:
            if name and name not in known:
                raise ArtifactError(f"reads {name!r}, which nothing before it produces", where=f"{path}: {node.where}")
        for name in filter(None, node.outputs):
            if name in known:
                raise ArtifactError(f"two tensors are called {name!r}", where=f"{path}: {node.where}")
            known.add(name)


def _decode(tensor: Any, path: Path) -> Constant:
    onnx = require("onnx", "onnx")
    kind = _kind(tensor.data_type, onnx)
    where = f"{path}: tensor {tensor.name}" if tensor.name else str(path)
    if kind not in _BITS:
        raise UnsupportedError(f"tensors of type {kind} are not read", where=where)
    if any(size < 0 for size in tensor.dims):
        raise ArtifactError(f"declares the shape {list(tensor.dims)}", where=where)
    count, bits = math.prod(tensor.dims), _BITS[kind]
    size = (count * bits + 7) // 8
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        plain = onnx.TensorProto(dims=tensor.dims, data_type=tensor.data_type)
        plain.raw_data = _external_bytes(tensor, size, path)
        tensor = plain
    if tensor.HasField("raw_data"):
        found, expected, unit = len(tensor.raw_data), size, "bytes"
    else:
        # Types narrower than a byte are packed here too, a byte to each element of int32_data.
        fields = (tensor.float_data, tensor.double_data, tensor.int32_data, tensor.int64_data, tensor.uint64_data)
        found, expected, unit = max(map(len, fields)), (count if bits >= 8 else size), "elements"
    if found != expected:
        raise ArtifactError(
            f"declares {expected} {unit}, but has {found}", where=where, remedy="The file is damaged: copy it again"
        )
    try:
        values = onnx.numpy_helper.to_array(tensor).astype(np.float64 if "FLOAT" in kind or kind == "DOUBLE" else int)
    except (ValueError, TypeError, OverflowError) as error:
        raise ArtifactError(f"is damaged ({error})", where=where) from None
    return Constant(values, kind)


def _external_file(tensor: Any, path: Path) -> tuple[Path, int, int | None]:
    """Return file, offset and length (None: to the end) of external data, which must lie in the model's folder."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    where, location = f"{path}: tensor {tensor.name}", entries.get("location", "")
    outside = ArtifactError(
        f"its data lies in {location!r}, outside the file's folder",
        where=where,
        remedy="Don't trust this file; write one that holds its own data",
    )
    posix, windows = PurePosixPath(location), PureWindowsPath(location)
    if not location or "\0" in location or posix.is_absolute() or windows.drive or windows.root:
        raise outside
    if ".." in posix.parts or ".." in windows.parts:
        raise outside
    try:
        folder = path.resolve().parent
        file = (folder / location).resolve()
        if not file.is_relative_to(folder):
            raise outside
        if not file.is_file():
            raise ArtifactError(f"its data file {location!r} is missing", where=where, remedy="Copy it beside the file")
        offset, length = int(entries.get("offset", "0")), entries.get("length")
        size = None if length is None else int(length)
    except (OSError, ValueError, RuntimeError) as error:
        raise ArtifactError(f"its external data can't be found ({error})", where=where) from None
    if offset < 0 or (size is not None and size < 0) or offset + (size or 0) > file.stat().st_size:
        raise ArtifactError(f"its data lies beyond the end of {location!r}", where=where)
    return file, offset, size


def _external_bytes(tensor: Any, size: int, path: Path) -> bytes:
    file, offset, length = _external_file(tensor, path)
    available = file.stat().st_size - offset if length is None else length
    if available < size or (length is not None and length != size):
        raise ArtifactError(
            f"declares {size} bytes, but has {available} in {file.name}", where=f"{path}: tensor {tensor.name}"
        )
    with file.open("rb") as stream:
        stream.seek(offset)
        return stream.read(size)
