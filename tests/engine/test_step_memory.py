"""The computed memory of the worst step on a CPU is compared with measured steps."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from lightllm_mp.engine import build
from lightllm_mp.engine.kv_sizing import kv_budget
from tests.paths import ROOT

MAIN = "tests.engine.step_memory_main"
WIDE = {"hidden_size": 512, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64}
FEW_WORDS, MANY_WORDS = {"vocab_size": 300}, {"vocab_size": 32000}
CASES: dict[str, dict[str, Any]] = {
    "sampling": {
        "golden": "llama",
        "changes": WIDE | MANY_WORDS | {"intermediate_size": 1024},
        "rows": 48,
        "step_tokens": 256,
        "context": 1024,
        "dtype": "bfloat16",
    },
    "a wide MLP": {
        "golden": "llama",
        "changes": WIDE | FEW_WORDS | {"intermediate_size": 6144},
        "rows": 8,
        "step_tokens": 2048,
        "context": 2048,
        "dtype": "bfloat16",
    },
    "experts": {
        "golden": "mixtral",
        "changes": WIDE | FEW_WORDS | {"intermediate_size": 1024, "num_experts_per_tok": 4},
        "rows": 8,
        "step_tokens": 2048,
        "context": 2048,
        "dtype": "float32",
    },
    "latent attention": {
        "golden": "deepseek_v2",
        "changes": FEW_WORDS | {"num_attention_heads": 8, "num_key_value_heads": 8},
        "rows": 8,
        "step_tokens": 512,
        "context": 1024,
        "dtype": "bfloat16",
    },
    "latent attention in C": {
        "golden": "deepseek_v2",
        "changes": FEW_WORDS
        | {"num_attention_heads": 8, "num_key_value_heads": 8, "hidden_size": 256, "kv_lora_rank": 256}
        | {"qk_nope_head_dim": 64, "qk_rope_head_dim": 16, "v_head_dim": 64},
        "rows": 8,
        "step_tokens": 2048,
        "context": 2048,
        "dtype": "bfloat16",
    },
    "linear attention": {
        "golden": "qwen3_next",
        "changes": WIDE
        | FEW_WORDS
        | {"linear_key_head_dim": 64, "linear_value_head_dim": 64, "linear_num_key_heads": 16}
        | {"linear_num_value_heads": 64},
        "rows": 8,
        "step_tokens": 2048,
        "context": 2048,
        "dtype": "bfloat16",
    },
    "plain torch": {
        "golden": "llama",
        "changes": WIDE | FEW_WORDS | {"intermediate_size": 1024},
        "rows": 8,
        "step_tokens": 512,
        "context": 1024,
        "dtype": "float32",
        "plain": True,
    },
}


@pytest.fixture(scope="module")
def measured() -> dict[str, tuple[int, int]]:
    """(bytes of the peak, bytes of the bound) of each case."""
    done = subprocess.run(
        [sys.executable, "-m", MAIN],
        input=json.dumps([*CASES.values()]),
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(CASES, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_no_step_takes_more_than_the_bound(measured: dict[str, tuple[int, int]], name: str) -> None:
    peak, bound = measured[name]
    assert peak <= bound
    assert bound <= 4 * peak, "so large a bound says nothing"


def test_the_worst_step_is_left_out_of_the_kv_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightllm_mp.engine.kv_sizing.free_memory", lambda: 30_000)
    assert kv_budget(build.CPU, 0.9, step_bytes=10_000) == 6_000
    assert kv_budget(build.CPU, 0.9, step_bytes=10**9) == 4_500
