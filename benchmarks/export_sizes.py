"""How large the exports of ResNet-20 are at 8, 4 and 2 bits, and how much of that its weights alone need.

    python benchmarks/export_sizes.py

ResNet-20 of width 16 for 10 classes of 32x32 images; weights of the first and the last layer have 8 bits. Sizes depend
on the structure only, so the network is not trained. KB = 1000 bytes. Of C, the size is that of the sources, which are
text; what the compiler makes of them is in `benchmarks/mcu`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from mcu.networks import make_network, quantize

from kdpipe.targets.artifact import read_artifact
from kdpipe.targets.exporters import EXPORTERS

SHAPE, CLASSES = (3, 32, 32), 10
BITS = (8, 4, 2)


def main() -> None:
    """Print a table in Markdown."""
    print("| weights | target | file, KB | weights alone, KB | scales and biases, KB |")
    print("| --- | --- | --- | --- | --- |")
    for bits in BITS:
        network = make_network("resnet", {"depth": 20, "width": 16}, SHAPE, CLASSES)
        graph = quantize(network, SHAPE, bits, "resnet20", images=8)
        for target in EXPORTERS:
            with tempfile.TemporaryDirectory() as folder:
                EXPORTERS[target].export(graph, Path(folder))
                artifact = read_artifact(Path(folder))
                size = sum(count for _, count in artifact.sizes(Path(folder)))
            weights, constants = artifact.weight_bytes["values"], artifact.weight_bytes["scales_and_biases"]
            print(f"| {bits} bits | {target} | {size / 1e3:.1f} | {weights / 1e3:.1f} | {constants / 1e3:.1f} |")


if __name__ == "__main__":
    main()
