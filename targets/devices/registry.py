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
        emulated: whether it is an emulated core: its inputs can be shared by processes, its cycles are estimates.
    """

    summary: str
    formats: tuple[str, ...]
    function: str
    arguments: tuple[str, ...] = ()
    emulated: bool = False

    def create(self, workers: int = 1) -> Device:
        """Return the device, ready to be asked; packages it needs may still turn out to be missing.

        Args:
            workers: processes that share an emulated device's inputs; other devices have one.
        """
        module, function = self.function.split(":")
        options = {"workers": workers} if self.emulated else {}
        device: Device = getattr(import_module(module), function)(*self.arguments, **options)
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
            emulated=True,
        )
    )

_BOARDS = {
    "qemu-cortex-m3": "Cortex-M3",
    "qemu-cortex-m4": "Cortex-M4",
    "qemu-cortex-m7": "Cortex-M7",
    "qemu-cortex-m55": "Cortex-M55",
}
for _name, _title in _BOARDS.items():
    DEVICES.register(_name)(
        DeviceEntry(
            f"a {_title} emulated by QEMU, with arm-none-eabi-gcc: a second opinion; instructions, flash and RAM",
            ("c",),
            "kdpipe.targets.devices.qemu:create",
            (_name,),
            emulated=True,
        )
    )
