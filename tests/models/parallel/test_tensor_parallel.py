"""Two and three ranks over gloo compute what the references did, and every rank the same to the last bit."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from lightllm_mp.models.checkpoint.loader import load_model
from lightllm_mp.models.decoder.kv_pool import KVPool
from lightllm_mp.models.model_config import read_model_config
from tests.models.golden import GOLDENS, TOLERANCE, check_greedy, check_prompt, prompts
from tests.models.parallel.ranks_run import run

FOLDERS = tuple(sorted(path.parent.name for path in GOLDENS.glob("*/golden.json")))
UNEVEN = ("bloom", "deepseek_v2", "mixtral", "starcoder", "yi")
"""For three ranks: heads that none has, experts and vocabularies that do not divide, one key-value head for all."""


def check(folder: str, size: int, folders: tuple[str, ...]) -> None:
    found, reports = run(size, folders)[folder]
    assert [report.get("error") for report in reports] == [None] * size
    assert len({report["digest"] for report in reports}) == 1
    if read_model_config(GOLDENS / folder).reward:
        expected = load_file(GOLDENS / folder / "golden.safetensors")
        scores = {name: score.item() for name, score in expected.items() if name.endswith(".score")}
        assert {f"p{i}.score": found[f"{i}.prompt"][-1].item() for i in range(len(scores))} == pytest.approx(
            scores, abs=TOLERANCE
        )
        return
    for i, prompt in enumerate(prompts(folder)):
        check_prompt(prompt, found[f"{i}.prompt"])
        check_greedy(prompt, found[f"{i}.ids"].tolist(), found[f"{i}.decode"])


@pytest.mark.parametrize("folder", FOLDERS)
def test_two_ranks(folder: str) -> None:
    check(folder, 2, FOLDERS)


@pytest.mark.parametrize("folder", UNEVEN)
def test_three_ranks(folder: str) -> None:
    check(folder, 3, UNEVEN)


def test_the_calls_of_a_group() -> None:
    expected = {
        **{f"torch.{dtype}": [[4.0] * 3] * 2 for dtype in ("float32", "bfloat16", "float16")},
        "side_by_side": [[0.0, 10.0, 1.0, 10.0], [5.0, 20.0, 6.0, 20.0]],
        "from_first": [7, 0],
        "least": [39],
    }
    assert run(2, FOLDERS)["primitives"][1] == [expected] * 2


def test_a_rank_holds_about_its_share() -> None:
    """All of it divides by two."""
    whole = load_model(GOLDENS / "internlm2", dtype=torch.float32)
    for report in run(2, FOLDERS)["internlm2"][1]:
        assert report["weight_bytes"] < 0.52 * whole.weight_bytes
        assert report["kv_bytes"] * 2 == KVPool.token_bytes(whole.spec, torch.float32)
