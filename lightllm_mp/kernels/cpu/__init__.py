"""CPU ops in C, where the extension was built: weights packed once, no gather, no padding, rows bitwise independent.

The extension has its kernels for each level of instructions, and uses the highest that the processor has:

x86-64: `baseline` (SSE2), `avx2`, `avxvnni`, `avx512`, `avx512vnni`, `avx512bf16`, `amx`
aarch64: `neon`, `dotprod`, `bf16` (each needs those before it)
others: `baseline`, in the compiler's vectors of four floats

`LIGHTLLM_MP_CPU` selects a lower one (`runtime.py`). Each level is a file in `level/`.
"""
