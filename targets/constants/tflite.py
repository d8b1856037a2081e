"""The constants in a TFLite export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdpipe.targets.errors import DeviceError
from kdpipe.targets.tflite import FILE
from kdpipe.targets.tflite_model import unpack_model
from kdpipe.targets.tflite_writer import stored_tensors


def read(artifact: Path) -> dict[str, dict[str, NDArray[Any]]]:
    """Return, by layer, the steps of its output and, where it has weights, their scales and the bias."""
    try:
        content = (artifact / FILE).read_bytes()
        model, stored = unpack_model(content), stored_tensors(content)
    except Exception as error:  # the reader of a damaged file raises whatever it comes upon
        raise DeviceError(f"the model can't be read ({error})", where=str(artifact / FILE)) from None
    (graph,) = model.subgraphs
    tensors = {tensor.name.decode(): tensor for tensor in graph.tensors}
    found: dict[str, dict[str, NDArray[Any]]] = {}
    for layer, index in stored.items():
        steps = graph.tensors[index].quantization
        found[layer] = {"scale": np.array(steps.scale, np.float32), "zero_point": np.array(steps.zeroPoint)}
        if f"{layer}/weight" in tensors:
            scales = tensors[f"{layer}/weight"].quantization.scale
            found[layer]["weight_scales"] = np.array(scales, np.float32)
            bias = model.buffers[tensors[f"{layer}/bias"].buffer].data
            found[layer]["bias"] = np.frombuffer(bytes(bias), "<i4")
    return found
