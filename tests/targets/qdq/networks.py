"""A small residual network in float ONNX, and images for it: what other tools quantize for the tests of targets/qdq."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SHAPE = (3, 16, 16)
CLASSES = 10


def images(count: int, seed: int = 0) -> NDArray[np.float32]:
    """Return images with structure, float32 [count, 3, 16, 16]."""
    return labelled_images(count, seed)[0]


def labelled_images(count: int, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return images, each one of ten patterns, shifted and with noise, and which pattern it is, int64 [count]."""
    rng = np.random.default_rng(seed)
    coarse = np.random.default_rng(99).normal(size=(CLASSES, 3, 4, 4))
    patterns = coarse.repeat(4, axis=2).repeat(4, axis=3)
    labels = rng.integers(0, CLASSES, count)
    chosen = patterns[labels]
    shifts = rng.integers(-2, 3, (count, 2))
    moved = [np.roll(image, tuple(shift), axis=(1, 2)) for image, shift in zip(chosen, shifts, strict=True)]
    return (np.stack(moved) + 0.2 * rng.normal(size=(count, *SHAPE))).astype(np.float32), labels


def residual_network(*, batch_norm: bool = False, mat_mul: bool = False, relu6: bool = False, seed: int = 0) -> Any:
    """Return an onnx.ModelProto: stem, max pool, residual block, depthwise block, mean, classifier.

    The classifier is fitted to `labelled_images`, all else is random.

    Args:
        batch_norm: whether each convolution is followed by a BatchNormalization of its own.
        mat_mul: whether the classifier is MatMul and Add rather than Gemm.
        relu6: whether a Clip to [0, 6] stands for each Relu.
        seed: of the weights.
    """
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(seed)
    nodes: list[Any] = []
    constants: list[Any] = []

    def constant(name: str, values: NDArray[Any]) -> str:
        constants.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def node(op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def conv(source: str, name: str, inputs: int, outputs: int, kernel: int, groups: int = 1, stride: int = 1) -> str:
        fan_in = inputs // groups * kernel * kernel
        weight = rng.normal(0, np.sqrt(2 / fan_in), (outputs, inputs // groups, kernel, kernel))
        bias = rng.normal(0, 0.1, outputs)
        result = node(
            "Conv", [source, constant(f"{name}.w", weight), constant(f"{name}.b", bias)], name,
            kernel_shape=[kernel, kernel], pads=[kernel // 2] * 4, strides=[stride, stride], group=groups,
        )  # fmt: skip
        if batch_norm:
            parameters = {
                "gamma": rng.uniform(0.5, 1.5, outputs) * rng.choice([1, 1, 1, -1], outputs),
                "beta": rng.normal(0, 0.2, outputs),
                "mean": rng.normal(0, 0.2, outputs),
                "var": rng.uniform(0.5, 1.5, outputs),
            }
            inputs_ = [constant(f"{name}.{key}", values) for key, values in parameters.items()]
            result = node("BatchNormalization", [result, *inputs_], f"{name}_bn")
        return result

    def relu(source: str, name: str) -> str:
        if relu6:
            return node("Clip", [source, constant(f"{name}.low", np.array(0)), constant(f"{name}.high", np.array(6))],
                        name)  # fmt: skip
        return node("Relu", [source], name)

    stem = relu(conv("image", "stem", 3, 8, 3), "stem_relu")
    pooled = node("MaxPool", [stem], "pool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    inner = relu(conv(pooled, "conv1", 8, 8, 3), "relu1")
    total = node("Add", [conv(inner, "conv2", 8, 8, 3), pooled], "add")
    block = relu(total, "relu2")
    wide = relu(conv(block, "expand", 8, 16, 1), "relu3")
    deep = relu(conv(wide, "depthwise", 16, 16, 3, groups=16, stride=2), "relu4")
    mean = node("GlobalAveragePool", [deep], "mean")
    features = node("Flatten", [mean], "flatten")
    weight = rng.normal(0, 0.4, (16, CLASSES))
    bias = constant("fc.b", rng.normal(0, 0.1, CLASSES))
    if mat_mul:
        product = node("MatMul", [features, constant("fc.w", weight)], "fc")
        node("Add", [product, bias], "logits")
    else:
        node("Gemm", [features, constant("fc.w", weight.T), bias], "logits", transB=1)
    graph = helper.make_graph(
        nodes,
        "their network",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", *SHAPE])],
        [helper.make_tensor_value_info("logits_out", TensorProto.FLOAT, ["N", CLASSES])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], producer_name="somebody")
    model.ir_version = 9
    _fit_classifier(model, transposed=not mat_mul)
    return model


def _fit_classifier(model: Any, *, transposed: bool) -> None:
    """Replace the classifier's weights by those of a ridge regression on the features before it."""
    import onnx
    import onnxruntime

    pictures, labels = labelled_images(400, seed=2)
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    probe.graph.output.append(onnx.helper.make_empty_tensor_value_info("flatten_out"))
    session = onnxruntime.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])
    features = session.run(["flatten_out"], {"image": pictures})[0].astype(np.float64)
    ones = np.concatenate([features, np.ones((len(features), 1))], axis=1)
    targets = np.eye(CLASSES)[labels]
    solution = np.linalg.solve(ones.T @ ones + 1.0 * np.eye(ones.shape[1]), ones.T @ targets).astype(np.float32)
    weight, bias = solution[:-1], solution[-1]
    for tensor in model.graph.initializer:
        if tensor.name in ("fc.w", "fc.b"):
            values = bias if tensor.name == "fc.b" else weight.T if transposed else weight
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(values), tensor.name))


def quantize_with_onnxruntime(path: Path, model: Any, *, activation: str, per_channel: bool, **options: bool) -> None:
    """Write `model`, quantized by onnxruntime's quantize_static in QDQ form, to `path`.

    Args:
        path: of the file to write.
        model: as `residual_network` returns it.
        activation: QInt8 or QUInt8; weights are QInt8.
        per_channel: whether each output channel has a scale of its own.
        options: extra_options of quantize_static.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Images(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter([{"image": images(64, seed=1)}])

        def get_next(self) -> Any:
            return next(self.batches, None)

    quantize_static(
        model,
        path,
        Images(),
        quant_format=QuantFormat.QDQ,
        per_channel=per_channel,
        activation_type=QuantType[activation],
        weight_type=QuantType.QInt8,
        extra_options=options,
    )
