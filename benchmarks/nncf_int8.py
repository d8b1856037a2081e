"""NNCF's post-training 8-bit quantization of a float network, for latency.py; needs nncf and openvino only.

    python benchmarks/nncf_int8.py FOLDER

FOLDER has float.onnx and images.npy, its inputs for the calibration; nncf.xml and nncf.bin are written beside them.
"""

import sys
from pathlib import Path

import nncf
import numpy as np
import openvino


def main(folder: Path) -> None:
    """Quantize and save."""
    images = np.load(folder / "images.npy")
    dataset = nncf.Dataset(list(images), lambda image: {"input": image[None]})
    model = openvino.convert_model(folder / "float.onnx")
    quantized = nncf.quantize(model, dataset, subset_size=len(images))
    openvino.save_model(quantized, folder / "nncf.xml", compress_to_fp16=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
