"""Two and three ranks over gloo give the references' results, and all ranks the same bits."""

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
ROWS = {
    "internlm2_reward": ("score", torch.clone),
    "qwen3_reranker": ("score", torch.sigmoid),
    "qwen3_embedding": ("embedding", torch.clone),
    "bge_m3": ("embedding", torch.clone),
}
"""The recorded answer of models of embeddings and scores, and what makes it of their rows."""
UNEVEN = (
    *("bloom", "deepseek_v2", "deepseek_v3", "deepseek_v3_fp8", "glm4_moe", "gpt_oss_mxfp4", "minimax_m2", "mixtral"),
    *("qwen3_next", "qwen3_vl_moe", "starcoder", "yi"),
)
"""For three ranks: ranks without heads, experts and vocabularies that do not divide, one key-value head for all."""


EXPERTS = {
    2: ("mixtral@2", "qwen3_vl_moe@2"),
    3: ("deepseek_v2@3", "deepseek_v3_fp8@3", "mixtral@3", "qwen3_5_moe@3", "qwen3_moe@3"),
}
"""By number of ranks: the number of groups with whole experts. Of eight experts, one of three ranks has two."""
RUNS = {2: FOLDERS + EXPERTS[2], 3: UNEVEN + EXPERTS[3]}
"""The folders of one run, by number of ranks."""


def check(folder: str, size: int) -> None:
    found, reports = run(size, RUNS[size])[folder]
    folder = folder.partition("@")[0]
    assert [report.get("error") for report in reports] == [None] * size
    assert len({report["digest"] for report in reports}) == 1
    spec = read_model_config(GOLDENS / folder)
    if spec.pooling is not None:
        expected = load_file(GOLDENS / folder / "golden.safetensors")
        name, shown = ROWS[folder]
        rows = [row for key, row in expected.items() if key.endswith("." + name)]
        assert rows
        for i in range(len(rows)):
            at = 0 if spec.pooling.take == "cls" else -1
            assert (shown(found[f"{i}.prompt"][at]) - expected[f"p{i}.{name}"]).abs().max() < TOLERANCE
        return
    for i, prompt in enumerate(prompts(folder)):
        check_prompt(prompt, found[f"{i}.prompt"])
        check_greedy(prompt, found[f"{i}.ids"].tolist(), found[f"{i}.decode"])


@pytest.mark.parametrize("folder", FOLDERS)
def test_two_ranks(folder: str) -> None:
    check(folder, 2)


@pytest.mark.parametrize("folder", UNEVEN)
def test_three_ranks(folder: str) -> None:
    check(folder, 3)


@pytest.mark.parametrize(("size", "folder"), [(size, folder) for size in EXPERTS for folder in EXPERTS[size]])
def test_whole_experts_on_ranks(size: int, folder: str) -> None:
    check(folder, size)


def test_the_calls_of_a_group() -> None:
    expected = {
        **{f"torch.{dtype}": [[4.0] * 3] * 2 for dtype in ("float32", "bfloat16", "float16")},
        "side_by_side": [[0.0, 10.0, 1.0, 10.0], [5.0, 20.0, 6.0, 20.0]],
        "from_first": [7, 0],
        "least": [39],
    }
    assert run(2, RUNS[2])["primitives"][1] == [expected] * 2


def test_a_rank_holds_about_its_share() -> None:
    """All sizes divide by two."""
    whole = load_model(GOLDENS / "internlm2", dtype=torch.float32)
    for report in run(2, RUNS[2])["internlm2"][1]:
        assert report["weight_bytes"] < 0.52 * whole.weight_bytes
        assert report["kv_bytes"] * 2 == KVPool.token_bytes(whole.spec, torch.float32)
