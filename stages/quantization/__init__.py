"""Quantizers, their insertion into a network, and quantization-aware training recipes."""
