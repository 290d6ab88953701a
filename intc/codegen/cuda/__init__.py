"""Kernels for NVIDIA GPUs: CUDA C++, printed from TIR or written by hand around printed formulas."""
