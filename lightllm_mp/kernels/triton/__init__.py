"""Triton kernels for CUDA. Importing a module of this package needs triton; `kernels.select` does so on CUDA only."""
