"""Prints for each case, as JSON, the measured peak of the worst steps and the bound of `step_bytes`. Each case runs in
a forked child, so that it finds no memory that another one has left."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from lightllm_mp.config import EngineConfig
from lightllm_mp.engine.build import worst_step
from lightllm_mp.engine.executor import Executor
from lightllm_mp.engine.step_memory import step_bytes
from lightllm_mp.engine.warm_up import EVERYTHING, warm_up_plans
from lightllm_mp.kernels import reference
from lightllm_mp.kernels.select import set_threads
from lightllm_mp.messages import Sampling
from lightllm_mp.models.checkpoint.loader import load_model
from lightllm_mp.plan import PlanBuilder
from tests.paths import GOLDENS

PAGE = os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    for case in json.load(sys.stdin):
        child = os.fork()
        if child == 0:
            print(json.dumps(measured(**case)), flush=True)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert status == 0


def measured(
    golden: str, changes: dict[str, Any], rows: int, step_tokens: int, context: int, dtype: str, plain: bool = False
) -> tuple[int, int]:
    """(bytes of the peak, bytes of the bound)"""
    with tempfile.TemporaryDirectory() as folder:
        config = json.loads((GOLDENS / golden / "config.json").read_text()) | changes
        (Path(folder) / "config.json").write_text(json.dumps(config | {"max_position_embeddings": context}))
        ops = reference.TABLE if plain else None
        model = load_model(folder, dtype=getattr(torch, dtype), dummy=True, ops=ops)
    set_threads(2)
    made = Executor(model, kv_tokens=4 * context, rows=rows, max_context=context, step_tokens=step_tokens)
    made.warm_up()
    if made.kv.states is not None:
        made.kv.states.recurrent.fill_(0.0)  # make it resident before the peak is measured
        made.kv.states.conv.fill_(0.0)
    engine = EngineConfig(running_max_req_size=rows)
    sizes = {"rows": rows, "max_context": context, "step_tokens": step_tokens}
    plans = [*warm_up_plans(**sizes, kv_tokens=rows * context, spare_slots=made.kv.spare_slots)]
    plans += [prompt_logprobs(made), all_hot(made)]
    Path("/proc/self/clear_refs").write_text("5")  # set the peak to the present size
    before = resident()
    for plan in plans:
        made.run(plan)
    return peak() - before, step_bytes(model.spec, worst_step(model, engine, step_tokens))


def prompt_logprobs(made: Executor) -> bytes:
    """A step of a long prompt that asks for the alternatives of every token."""
    count = min(made.step_tokens, made.max_context)
    builder = PlanBuilder(9)
    builder.setup(0, made.max_context, Sampling(seed=1, prompt_logprobs=20))
    builder.add(0, 0, count, sample=False)
    return builder.pack()


def all_hot(made: Executor) -> bytes:
    """A decode step in which nearly every row has penalties and is sorted whole, since no candidate list reaches its
    mass. One row is greedy and one has only noise, so that the others are copied out."""
    hot = msgspec.structs.replace(EVERYTHING, temperature=1e4, top_k=0, top_p=0.999, min_p=0.0)
    rules = [Sampling(seed=1), Sampling(seed=1, temperature=1.0), *[hot] * (made.rows - 2)]
    builder, last = PlanBuilder(10), made.max_context - 1
    for row, sampling in enumerate(rules):
        builder.setup(row, made.max_context, sampling, masked_ids=(0,), guided=True)
        builder.write_ids(row, 0, np.arange(made.max_context, dtype=np.int32) % made.model.spec.vocab)
        builder.write_slots(row, 0, np.full(made.max_context, made.kv.spare_slots[0], np.int32))
    builder.add_each(np.arange(made.rows), np.full(made.rows, last))
    return builder.pack()


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    main()
