"""Writes C by another generator. Run by the interpreter that has it, with nothing of this project.

`python run_generator.py bakenn|emx MODEL DIRECTORY`: bakenn takes a TFLite file, emx-onnx-cgen an ONNX file.
"""

import subprocess
import sys
from pathlib import Path

model, directory = sys.argv[2:4]
if sys.argv[1] == "bakenn":
    import bakenn

    try:
        options = bakenn.CBackendOptions(kernel_policy=bakenn.KernelPolicy.AUTO, target=bakenn.CORTEX_M4)
        bakenn.compile_tflite(model, directory, name="net", backend_options=options)
    except bakenn.BakeNNError as error:
        sys.exit(f"{type(error).__name__}: {error}")
else:
    tool = Path(sys.executable).parent / "emx-onnx-cgen"
    # All memory on the stack, all weights in the source.
    options = ["--large-temp-threshold", "0", "--large-weight-threshold", "0", "--model-name", "net"]
    command = [str(tool), "compile", *options, model, f"{directory}/net.c"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        sys.exit(lines[-1].removeprefix("Result: "))
