"""The devices that an artifact can be run on, by name."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from kdpipe.targets.registry import Registry

if TYPE_CHECKING:  # NumPy comes with it, and pipeline files are checked without
    from kdpipe.targets.devices.base import Device


@dataclass(frozen=True)
class DeviceEntry:
    """One device.

    Args:
        summary: one line for `kdpipe ls devices`.
        formats: what it runs.
        function: what creates it, as "module:function"; imported when it is used.
        arguments: of that function.
    """

    summary: str
    formats: tuple[str, ...]
    function: str
    arguments: tuple[str, ...] = ()

    def create(self) -> Device:
        """Return the device, ready to be asked; packages it needs may still turn out to be missing."""
        module, function = self.function.split(":")
        device: Device = getattr(import_module(module), function)(*self.arguments)
        return device


_CORES = {
    "cortex-m0plus": "Cortex-M0+",
    "cortex-m3": "Cortex-M3",
    "cortex-m4": "Cortex-M4",
    "cortex-m7": "Cortex-M7",
    "cortex-m33": "Cortex-M33",
}

DEVICES: Registry[DeviceEntry] = Registry("device")
DEVICES.register("host")(
    DeviceEntry(
        "this machine's CPU, one thread",
        ("onnx", "openvino", "tflite", "c", "integer-graph", "torch"),
        "kdpipe.targets.devices.host:create",
    )
)
for _name, _title in _CORES.items():
    DEVICES.register(_name)(
        DeviceEntry(
            f"an emulated {_title}: instructions, estimated cycles, flash and RAM",
            ("c",),
            "kdpipe.targets.devices.cortex_m:create",
            (_name,),
        )
    )
