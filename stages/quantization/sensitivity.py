"""Per-layer sensitivity: each layer's weights alone at each width, on a calibrated network that is not trained.

The predicted loss of a layer l at b bits is

    D(l, b) = mean over the images of KL( softmax f(x) || softmax f_{l, b}(x) )

with f the float network and f_{l, b} the one whose layer l has weights Q_b(W_l) and whose activations are rounded. It
needs no labels, so that synthesized images do. Batch norm uses the batch's statistics, as training does from its
first step on: with the statistics of the float network a narrow layer would be charged with a shift that training
corrects at once.

To choose widths, the losses of several layers are taken to add up, as in HAWQ-V2 (Dong et al. 2020,
arXiv:1911.03852), there for a measure from the Hessian.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from kdpipe.stages.artifacts import ImageSpace, load_network
from kdpipe.stages.base import Inputs, Outcome, StageContext
from kdpipe.stages.knowledge.images import load_images
from kdpipe.stages.quantization.activations import ActivationQuantizer, calibrating
from kdpipe.stages.quantization.configuration import QuantizationConfig
from kdpipe.stages.quantization.found_layers import find_layers
from kdpipe.stages.quantization.network import prepare_for
from kdpipe.stages.quantization.operations import DROPOUTS
from kdpipe.stages.quantization.prepare import quantizers
from kdpipe.stages.quantization.sensitivities import (
    Change,
    LayerSensitivity,
    Sensitivity,
    loss_grid,
    save_sensitivity,
)
from kdpipe.stages.quantization.speq import as_teacher
from kdpipe.stages.quantization.weights import QuantizedConv2d, QuantizedLinear, WeightQuantizer
from kdpipe.stages.sensitivity import SensitivityParams
from kdpipe.stages.training.device import choose_device
from kdpipe.stages.training.seeding import derive_seed
from kdpipe.targets.errors import DataError, NetworkError

BATCH = 256
LEAST_IMAGES = 16


def analyse(params: SensitivityParams, inputs: Inputs, context: StageContext) -> Outcome:
    """Do the work of the stage `sensitivity`.

    Raises:
        UnsupportedError: the network holds operations that can't be quantized; lists all of them.
        DataError: the images don't fit the network, or are too few.
        NetworkError: a prediction is not finite.
        GraphError: a weight is not; names the layer.
    """
    network, description = load_network(inputs["network"].path)
    device = choose_device(context.accelerator)
    data = load_images(inputs["samples"], description.space)
    if len(data.images) < LEAST_IMAGES:
        raise DataError(f"{len(data.images)} images are too few", remedy=f"Give at least {LEAST_IMAGES}")
    order = torch.randperm(
        len(data.images), generator=torch.Generator().manual_seed(derive_seed(context.seed, "images"))
    )
    taken = order[: params.images]
    images = data.images.seen(data.images.pixels[taken]).to(device)
    labels = None if data.labels is None else data.labels[taken].to(device)
    found = measure(
        network.to(device),
        description.space,
        images,
        labels,
        params,
        lambda done, total, change: context.progress(done, total, "width", loss=change.loss),
    )
    save_sensitivity(context.output("sensitivity"), found)
    least = min(found.widths)
    most = max(found.layers, key=lambda path: found.layers[path].by_bits[least].loss)
    by_layer = {path: entry.by_bits for path, entry in found.layers.items()}
    figure: Literal["agreement", "accuracy"] = "agreement" if labels is None else "accuracy"
    grids = {
        "Predicted loss of each layer's weights alone": loss_grid(by_layer, "loss"),
        ("Top-1 agreement" if labels is None else "Accuracy") + " with each layer's weights alone": loss_grid(
            by_layer, figure
        ),
    }
    if found.activations:
        grids["Predicted loss of each activation alone"] = loss_grid(found.activations, "loss")
    metrics: dict[str, float | int | str | bool] = {
        "images": found.images,
        "layers": len(found.layers),
        "loss_before": found.before.loss,
        "agreement_before": found.before.agreement,
        "most_sensitive": most,
        "largest_loss": found.layers[most].by_bits[least].loss,
    }
    return Outcome(metrics=metrics, grids=grids)


def measure(
    network: nn.Module,
    space: ImageSpace,
    images: Tensor,
    labels: Tensor | None,
    params: SensitivityParams,
    report: Callable[[int, int, Change], None] = lambda done, total, change: None,
) -> Sensitivity:
    """Measure every layer of a float network; it is left as it is.

    Args:
        network: on the images' device.
        space: what it sees.
        images: normalized, [N, C, H, W], N >= 2.
        labels: [N], or None.
        params: widths and what else is quantized.
        report: called as report(measured, of how many, what was found).

    Raises:
        UnsupportedError: the network holds operations that can't be quantized.
        NetworkError: a prediction is not finite.
        GraphError: a weight is not; names the layer.
    """
    config = QuantizationConfig(8, params.activation_bits, weight_scales=params.weight_scales)
    prepared = prepare_for(space, network, config)
    layers = find_layers(network, torch.zeros(2, *space.shape, device=images.device))
    batches = images.tensor_split(-(-len(images) // BATCH))
    prepared.train()
    for part in prepared.modules():
        if isinstance(part, DROPOUTS):
            part.eval()
    parts = {part.name: part for part in quantizers(prepared)} if params.activations else {}
    total = len(params.widths) * (len(layers) + len(parts))
    done = 0

    def compare(what: str) -> Change:
        logits = _predict(prepared, batches)
        if not torch.isfinite(logits).all():
            raise NetworkError("its predictions are not finite", where=what, remedy="Look at the network's weights")
        return _change(reference, logits, labels)

    def measured(what: str, bits: int) -> Change:
        nonlocal done
        change = compare(f"{what} at {bits} bits")
        done += 1
        report(done, total, change)
        return change

    with _float_weights(prepared) as own, torch.no_grad():
        clips = {bits: _clips(prepared, batches, bits) for bits in params.widths} if parts else {}
        with calibrating(prepared):
            reference = torch.cat([prepared(batch) for batch in batches])
        if not torch.isfinite(reference).all():
            raise NetworkError("the float network's predictions are not finite", remedy="Look at its weights")
        before = compare("all layers")
        found = {}
        for path, layer in layers.items():
            by_bits: dict[int, Change] = {}
            for bits in params.widths:
                with _narrow(prepared.get_submodule(path), own[path], bits):
                    by_bits[bits] = measured(f"layer {path}", bits)
            found[path] = LayerSensitivity(layer, by_bits)
        activations: dict[str, Mapping[int, Change]] = {}
        for name, part in parts.items():
            by_bits = {}
            for bits in params.widths:
                with _rounding_at(part, bits, clips[bits][name]):
                    by_bits[bits] = measured(f"activation {name}", bits)
            activations[name] = by_bits
    return Sensitivity(len(images), params.activation_bits, params.weight_scales, before, found, activations)


def _predict(prepared: fx.GraphModule, batches: Sequence[Tensor]) -> Tensor:
    """Return the logits [N, K] with batch statistics and rounded activations, leaving no trace."""
    with as_teacher(prepared, [part.bits for part in quantizers(prepared)]):
        return torch.cat([prepared(batch) for batch in batches])


def _change(reference: Tensor, logits: Tensor, labels: Tensor | None) -> Change:
    expected, said = F.log_softmax(reference.double(), dim=1), F.log_softmax(logits.double(), dim=1)
    divergence = F.kl_div(said, expected, reduction="batchmean", log_target=True)
    choice = logits.argmax(dim=1)
    return Change(
        max(0.0, float(divergence)),  # below 0 by rounding only
        float((choice == reference.argmax(dim=1)).double().mean()),
        None if labels is None else float((choice == labels).double().mean()),
    )


@contextmanager
def _float_weights(prepared: nn.Module) -> Iterator[dict[str, WeightQuantizer]]:
    """Compute all layers with float weights inside the context; yield their quantizers by path."""
    layers = {
        path: part for path, part in prepared.named_modules() if isinstance(part, QuantizedConv2d | QuantizedLinear)
    }
    own = {path: layer.weight_quantizer for path, layer in layers.items()}
    for layer in layers.values():
        layer.weight_quantizer = nn.Identity()  # type: ignore[assignment]
    try:
        yield own
    finally:
        for path, layer in layers.items():
            layer.weight_quantizer = own[path]


@contextmanager
def _narrow(layer: nn.Module, quantizer: WeightQuantizer, bits: int) -> Iterator[None]:
    """Quantize the weights of one layer at `bits` bits inside the context."""
    assert isinstance(layer, QuantizedConv2d | QuantizedLinear)  # noqa: S101  # find_layers named it
    quantizer.set_bits(bits)
    quantizer.calibrate(layer.weight)
    aside, layer.weight_quantizer = layer.weight_quantizer, quantizer
    try:
        yield
    finally:
        layer.weight_quantizer = aside


@contextmanager
def _rounding_at(part: ActivationQuantizer, bits: int, clip: float) -> Iterator[None]:
    """Round one activation to `bits` bits, from a clip of its own, inside the context."""
    own = part.bits, float(part.clip)
    part.bits = part.precision = bits
    part.clip.fill_(clip)
    try:
        yield
    finally:
        part.bits = part.precision = own[0]
        part.clip.fill_(own[1])


def _clips(prepared: nn.Module, batches: Sequence[Tensor], bits: int) -> dict[str, float]:
    """Return the calibrated clip of each activation quantizer, by name, with all of them at `bits` bits."""
    parts = quantizers(prepared)
    own = [part.bits for part in parts]
    for part in parts:
        part.bits = part.precision = bits
    with calibrating(prepared):
        for batch in batches:
            prepared(batch)
    for part, width in zip(parts, own, strict=True):
        part.bits = part.precision = width
    return {part.name: float(part.clip) for part in parts}
