"""The constants in an exported file, whatever its format."""

from __future__ import annotations

from pathlib import Path

from kdpipe.targets.constants import c, onnx, openvino, tflite
from kdpipe.targets.constants.comparison import Constants

_READERS = {"onnx": onnx.read, "openvino": openvino.read, "tflite": tflite.read, "c": c.read}


def file_constants(artifact: Path, artifact_format: str) -> Constants:
    """Read the constants in an exported file.

    Args:
        artifact: the directory of the export.
        artifact_format: its format.

    Raises:
        ArtifactError: the directory does not say what its layers are.
        DeviceError: the file can't be read.
        MissingDependencyError: what reads the format is not installed.
    """
    return _READERS[artifact_format](artifact)
