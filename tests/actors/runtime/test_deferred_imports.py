"""What `import torch` brings along for nobody stays out of the actors, and comes when somebody asks for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import sys
from lightllm_mp.actors.runtime.child_main import DEFERRED, deferred_imports
with deferred_imports():
    import torch
print(torch.ones(2, 2).matmul(torch.ones(2)).tolist(), [name for name in DEFERRED if name in sys.modules])
import torch._meta_registrations as found
print(torch._meta_registrations is found, hasattr(found, "meta_mm"))
"""


def test_torch_works_without_them_and_gets_them_later() -> None:
    pytest.importorskip("torch")
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout.splitlines() == ["[2.0, 2.0] []", "True True"]


def test_a_module_that_is_there_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightllm_mp.actors.runtime import child_main

    monkeypatch.setattr(child_main, "DEFERRED", ("json.decoder", "no_such_package.module"))
    decoder = sys.modules["json.decoder"]
    with child_main.deferred_imports():
        assert "no_such_package.module" in sys.modules
    assert sys.modules["json.decoder"] is decoder
    assert vars(sys.modules["json"])["decoder"] is decoder
    assert "no_such_package.module" not in sys.modules
