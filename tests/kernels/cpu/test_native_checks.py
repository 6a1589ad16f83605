"""The checks of native/ on this machine's processor, at all its levels, under the sanitizers."""

from __future__ import annotations

import shutil

import pytest

from lightllm_mp.kernels.cpu import runtime
from tests.kernels.cpu.native_checks import build, run


@pytest.mark.slow
def test_no_kernel_leaves_its_buffers(tmp_path):
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("gcc is not installed")
    flags = ("-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    levels, checked = run([str(build(tmp_path, compiler, *flags))])
    assert levels == checked
    if runtime.native() is not None:
        assert levels == runtime.levels()
