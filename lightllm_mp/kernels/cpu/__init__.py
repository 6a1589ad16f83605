"""CPU ops in C, if the extension was built. They pack weights once and need no gather and no padding; rows are bitwise
independent.

The extension has kernels for each level of instructions and uses the highest level of the processor:

x86-64: `baseline` (SSE2), `avx2`, `avxvnni`, `avx512`, `avx512vnni`, `avx512bf16`, `amx`
aarch64: `neon`, `dotprod`, `bf16` (each needs those before it)
others: `baseline`, in the compiler's vectors of four floats

`LIGHTLLM_MP_CPU` selects a lower level (`runtime.py`). Each level is a file in `level/`.
"""
