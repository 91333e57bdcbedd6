"""Triton kernels and their plain-torch twins."""
