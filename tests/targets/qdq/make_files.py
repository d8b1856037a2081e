"""Makes tests/targets/qdq/files: networks quantized by Brevitas and NNCF, for the tests of targets/qdq.

Run by hand, in an environment of its own with `pip install kdpipe[onnx] brevitas==0.13.4 nncf==3.4.0 onnxscript`:
`python tests/targets/qdq/make_files.py brevitas nncf`. The tests read the committed files.
"""

import importlib.util
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
FILES = HERE / "files"


def networks() -> Any:
    """Return the module networks.py beside this one."""
    spec = importlib.util.spec_from_file_location("qdq_networks", HERE / "networks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def brevitas_network(weight_bits: int, activation_bits: int) -> Any:
    """Return a small residual network of Brevitas's layers, trained for a few steps."""
    import brevitas.nn as qnn
    import torch
    from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerChannelFloat, Int32Bias, Uint8ActPerTensorFloat
    from torch import nn

    weights = {"weight_quant": Int8WeightPerChannelFloat, "weight_bit_width": weight_bits, "bias_quant": Int32Bias}

    def relu() -> nn.Module:
        return qnn.QuantReLU(act_quant=Uint8ActPerTensorFloat, bit_width=activation_bits, return_quant_tensor=True)

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.image = qnn.QuantIdentity(act_quant=Int8ActPerTensorFloat, return_quant_tensor=True)
            self.stem = qnn.QuantConv2d(3, 8, 3, padding=1, bias=True, **{**weights, "weight_bit_width": 8})
            self.relu1 = relu()
            self.pool = nn.MaxPool2d(2)
            self.conv1 = qnn.QuantConv2d(8, 8, 3, padding=1, bias=True, **weights)
            self.relu2 = relu()
            self.conv2 = qnn.QuantConv2d(8, 8, 3, padding=1, bias=True, **weights)
            self.sum_in = qnn.QuantIdentity(act_quant=Int8ActPerTensorFloat, return_quant_tensor=True)
            self.relu3 = relu()
            self.flatten = nn.Flatten()
            self.fc = qnn.QuantLinear(512, 10, bias=True, **{**weights, "weight_bit_width": 8})
            self.logits = qnn.QuantIdentity(act_quant=Int8ActPerTensorFloat)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.pool(self.relu1(self.stem(self.image(x))))
            y = self.sum_in(self.conv2(self.relu2(self.conv1(x))))
            y = self.relu3(y + self.sum_in(x))
            return self.logits(self.fc(self.flatten(y)))

    return Network()


def train(network: Any, images: Any, labels: Any) -> None:
    """Run a few steps, so that the quantizers have seen images and the outputs differ."""
    import torch

    torch.manual_seed(0)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    x = torch.from_numpy(images)
    targets = torch.from_numpy(labels)
    network.train()
    for _ in range(30):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(x), targets).backward()
        optimizer.step()
    network.eval()


def make_brevitas() -> None:
    """Write Brevitas's QCDQ exports: 8 bits, and ternary-range weights with 4-bit activations."""
    import torch
    from brevitas.export import export_onnx_qcdq

    images, labels = networks().labelled_images(64, seed=1)
    for weight_bits, activation_bits in ((8, 8), (3, 4)):
        torch.manual_seed(0)
        network = brevitas_network(weight_bits, activation_bits)
        train(network, images, labels)
        path = FILES / f"brevitas_w{weight_bits}a{activation_bits}.onnx"
        export_onnx_qcdq(network, torch.from_numpy(images[:1]), str(path), opset_version=17, dynamo=False,
                         input_names=["image"], output_names=["logits"],
                         dynamic_axes={"image": {0: "N"}, "logits": {0: "N"}})  # fmt: skip


def make_nncf() -> None:
    """Write NNCF's post-training quantization of the float ONNX network."""
    import nncf
    import onnx

    module = networks()
    for preset in ("PERFORMANCE", "MIXED"):
        quantized = nncf.quantize(
            module.residual_network(),
            nncf.Dataset([{"image": image[None]} for image in module.images(64, seed=1)]),
            preset=nncf.QuantizationPreset[preset],
            subset_size=64,
        )
        onnx.save(quantized, FILES / f"nncf_{preset.lower()}.onnx")


if __name__ == "__main__":
    for maker in sys.argv[1:]:
        {"brevitas": make_brevitas, "nncf": make_nncf}[maker]()
