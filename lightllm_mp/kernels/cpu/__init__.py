"""CPU ops in C, where the extension was built: weights packed once, no gather, no padding, rows bitwise independent.

The extension has its kernels once for each level of instructions, and uses the best that the processor has:

x86-64: `baseline` (SSE2), `avx2`, `avxvnni`, `avx512`, `avx512vnni`, `avx512bf16`, `amx`
aarch64: `neon`, `dotprod`, `bf16` (each needs those before it)
others: `baseline`, in the compiler's vectors of four floats

`LIGHTLLM_MP_CPU` names a lower one (`runtime.py`). A level is a file of `level/`.
"""
