"""Runs .tflite files on tflite-runtime, in an environment of its own without kdpipe: see test_tflite_runtime.py.

    python run_tflite_runtime.py FOLDER

For each NAME.tflite with its NAME.npy of inputs, channels last, it writes NAME.reference.npz and NAME.optimized.npz:
the outputs, by number, of the reference kernels and of the default ones. What goes wrong is written into NAME.error.
"""

import sys
from pathlib import Path

import numpy as np
from tflite_runtime.interpreter import Interpreter, OpResolverType

RESOLVERS = {"reference": OpResolverType.BUILTIN_REF, "optimized": OpResolverType.AUTO}


def run(path: Path, inputs: np.ndarray, resolver: OpResolverType) -> list[np.ndarray]:
    """Return the outputs of a file, each for all images, which are run one at a time."""
    interpreter = Interpreter(str(path), experimental_op_resolver_type=resolver, num_threads=1)
    interpreter.allocate_tensors()
    (source,) = interpreter.get_input_details()
    outputs = []
    for image in inputs:
        interpreter.set_tensor(source["index"], image[None])
        interpreter.invoke()
        outputs.append([interpreter.get_tensor(output["index"])[0] for output in interpreter.get_output_details()])
    return [np.stack(values) for values in zip(*outputs, strict=True)]


if __name__ == "__main__":
    for path in sorted(Path(sys.argv[1]).glob("*.tflite")):
        inputs = np.load(path.with_suffix(".npy"))
        try:
            for name, resolver in RESOLVERS.items():
                np.savez(path.with_suffix(f".{name}.npz"), *run(path, inputs, resolver))
        except (RuntimeError, ValueError) as error:
            path.with_suffix(".error").write_text(str(error))
