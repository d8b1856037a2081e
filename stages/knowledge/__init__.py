"""Distillation losses, one module for each kind of knowledge in Gou et al.'s survey."""
