"""The C target: generator, memory planner and kernels for microcontrollers."""
