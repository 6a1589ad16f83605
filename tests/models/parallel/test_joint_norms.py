"""Norms over all heads of all ranks, with a key-value head on several of them."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import torch

from lightllm_mp.models.checkpoint.loader import load_model
from lightllm_mp.models.parallel.group import SingleRank
from tests.models.golden import GOLDENS, check_prompt, prompts
from tests.models.runner import Runner

RANKS, DEADLINE = 4, 60.0


class ThreadRank(SingleRank):
    """A rank that meets the others in one process."""

    def __init__(self, rank: int, met: threading.Barrier, given: dict[int, torch.Tensor]) -> None:
        self.rank, self.size = rank, RANKS
        self._met, self._given = met, given

    def _all(self, x: torch.Tensor) -> list[torch.Tensor]:
        self._given[self.rank] = x.clone()
        self._met.wait(DEADLINE)
        parts = [self._given[rank] for rank in range(RANKS)]
        self._met.wait(DEADLINE)
        return parts

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack(self._all(x)).sum(0)

    def side_by_side(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat(self._all(x), -1)


def test_two_key_value_heads_on_four_ranks() -> None:
    met, given = threading.Barrier(RANKS), dict[int, torch.Tensor]()
    prompt = prompts("minimax_m2")[-1]

    def run(rank: int) -> torch.Tensor:
        decoder = load_model(GOLDENS / "minimax_m2", dtype=torch.float32, group=ThreadRank(rank, met, given))
        assert (decoder.spec.heads, decoder.spec.kv_heads) == (1, 1)
        runner = Runner(decoder)
        return runner.prefill(runner.sequence(prompt), prompt.ids)

    with ThreadPoolExecutor(RANKS) as threads:
        for logits in threads.map(run, range(RANKS)):
            check_prompt(prompt, logits)
