"""Fixtures of the QDQ reader: networks, and files that onnxruntime quantized."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def networks() -> ModuleType:
    """The module networks.py, which importlib mode leaves off the path."""
    spec = importlib.util.spec_from_file_location("qdq_networks", Path(__file__).parent / "networks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def quantized(networks: ModuleType, tmp_path: Path) -> Callable[..., Path]:
    """`quantized(activation=..., per_channel=..., **variant)`: a file that onnxruntime's quantize_static wrote."""

    def write(activation: str = "QInt8", per_channel: bool = True, **variant: bool) -> Path:
        path = tmp_path / "theirs.onnx"
        networks.quantize_with_onnxruntime(
            path, networks.residual_network(**variant), activation=activation, per_channel=per_channel
        )
        return path

    return write
