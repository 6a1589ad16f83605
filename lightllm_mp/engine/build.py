"""Builds an engine from a configuration: device, dtype, weights, KV size, executor, warm-up."""

from __future__ import annotations

import dataclasses
import gc
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch

from lightllm_mp.config import RUN_AHEAD, STEP_TOKENS, EngineConfig, ModelConfig
from lightllm_mp.engine.cuda_graphs import graph_bytes
from lightllm_mp.engine.executor import PROMPT_LINES, Executor, logit_lines
from lightllm_mp.engine.kv_sizing import (
    MemoryPlan,
    kv_budget,
    plan_memory,
    promised_memory,
    stored_type,
)
from lightllm_mp.engine.step_memory import WorstStep, step_bytes
from lightllm_mp.engine.window_sizing import windowed_limits
from lightllm_mp.errors import ConfigError
from lightllm_mp.facts import EngineLimits, Facts, PooledFacts, StateFacts
from lightllm_mp.kernels.cpu import attention, runtime
from lightllm_mp.kernels.select import DTYPES, default_dtype, set_threads
from lightllm_mp.machine import compute_threads
from lightllm_mp.model_description import ModelDescription
from lightllm_mp.model_files.model_source import ModelSource
from lightllm_mp.models.checkpoint.loader import load_model
from lightllm_mp.models.decoder.decoder import Decoder
from lightllm_mp.models.decoder.kv_pool import KVPool
from lightllm_mp.models.decoder.length_class import class_bounds
from lightllm_mp.models.decoder.state_pool import StatePool
from lightllm_mp.models.parallel.group import RankGroup, SingleRank
from lightllm_mp.models.parallel.torch_group import TorchGroup
from lightllm_mp.models.spec import ModelSpec
from lightllm_mp.plan import ROWS_BYTES

log = logging.getLogger("lightllm_mp.worker")

CPU = torch.device("cpu")


@dataclass(frozen=True)
class BuiltEngine:
    executor: Executor
    facts: Facts


def build_engine(
    description: ModelDescription,
    model: ModelConfig,
    engine: EngineConfig,
    *,
    progress: Callable[[int, int], None] | None = None,
    stage: Callable[[str], None] = lambda what: None,
    promised: EngineLimits | None = None,
    rank: int = 0,
    meeting: str = "",
    meeting_fd: int = -1,
) -> BuiltEngine:
    """Loads the model and warms it up. `progress` gets (bytes read, total bytes), `stage` the name of the next stage.
    `promised`: the limits that an earlier process found. With tensor parallelism this is one `rank` of engine.tp; all
    ranks call it, and find each other at the `meeting` (see TorchGroup). ModelError or ConfigError with a one-line
    message."""
    path, spec = Path(description.path), description.spec
    engine = msgspec.structs.replace(engine, running_max_req_size=most_rows(spec, engine.running_max_req_size))
    device = _device(model.device, rank % engine.ranks_per_node, engine.ranks_per_node, engine.tp)
    dtype = default_dtype(spec, device) if model.data_type == "auto" else DTYPES[model.data_type]
    threads = set_threads(compute_threads(engine.threads, engine.ranks_per_node)) if device.type == "cpu" else 0
    group: RankGroup = (
        TorchGroup(meeting, rank, engine.tp, device, meeting_fd=meeting_fd) if engine.tp > 1 else SingleRank()
    )
    decoder = load_model(
        ModelSource(path, model.task, model.score_tokens),
        device=device,
        dtype=dtype,
        progress=progress,
        quantization=model.quantization,
        group=group,
        ep=engine.ep,
        dummy=model.load_format == "dummy",
    )
    spec = decoder.spec  # this rank's part
    stage("running first steps")
    usual_step = engine.batch_max_tokens or STEP_TOKENS[device.type]
    step_tokens = longest_step(spec, usual_step, engine.max_req_total_len, engine.running_max_req_size)
    memory = _memory(decoder, engine, step_tokens, device, promised)
    executor = _executor(decoder, memory, engine, step_tokens, device)
    executor.warm_up()
    facts = Facts(
        model_name=model.model_name or path.stem,
        engine=_limits(spec, engine, memory, step_tokens, usual_step, device),
        eos_ids=tuple(dict.fromkeys((*model.eos_id, *spec.eos_ids))),
        device=("" if group.size == 1 else f"{group.size} x ") + _named(device, threads),
        dtype=str(dtype).removeprefix("torch."),
        weight_bytes=decoder.weight_bytes,
        kv_bytes=memory.kv_bytes,
        state_bytes=memory.state_bytes,
    )
    return BuiltEngine(executor, facts)


def _limits(
    spec: ModelSpec, engine: EngineConfig, memory: MemoryPlan, step_tokens: int, usual_step: int, device: torch.device
) -> EngineLimits:
    windows = windowed_limits(spec, step_tokens, run_ahead(engine, device))
    return EngineLimits(
        kv_tokens=memory.kv_tokens,
        rows=memory.rows,
        max_context=memory.max_context,
        max_input=longest_prompt(spec, memory.max_context, engine.max_req_input_len),
        step_tokens=step_tokens,
        vocab_size=spec.ids,
        prompt_cache=not engine.disable_prompt_cache and keeps_prefixes(spec),
        run_ahead=run_ahead(engine, device),
        class_bounds=class_bounds(spec),
        pooled=pooled_facts(spec, usual_step),
        window=windows.window if memory.window_tokens or not windows.window_tokens else 0,
        window_tokens=memory.window_tokens,
        whole_images=spec.image_span > 0,
        states=StateFacts(memory.checkpoints, engine.state_grain) if spec.delta is not None else None,
        long_truncation_mode=engine.long_truncation_mode or "",
        draft_tokens=draft_tokens(spec, engine),
    )


def longest_step(spec: ModelSpec, usual: int, max_context: int | None, rows: int) -> int:
    """Most tokens of a step. If prompts are computed whole, the longest prompt fits a step. If images are, an image
    fits beside one token for each of the `rows`."""
    if spec.image_span:
        return max(usual, spec.image_span + rows)
    return usual if spec.causal else max(usual, min(spec.max_context, max_context or spec.max_context))


def longest_prompt(spec: ModelSpec, max_context: int, wanted: int | None) -> int:
    """Most tokens of a prompt. A generating model needs room for one token of the answer."""
    return min(wanted or max_context, max_context if spec.pooling is not None else max_context - 1)


def most_rows(spec: ModelSpec, wanted: int) -> int:
    """Most sequences of one step, such that its answer holds all their pooled rows."""
    return wanted if spec.pooling is None else min(wanted, ROWS_BYTES // (4 * spec.pooling.width))


def keeps_prefixes(spec: ModelSpec) -> bool:
    """Whether a prompt may use the keys and values of an earlier prompt with the same beginning. Not if tokens see
    later tokens, and not for a mean, which needs the hidden states of all tokens."""
    return spec.pooling is None or (spec.causal and spec.pooling.take != "mean")


def run_ahead(engine: EngineConfig, device: torch.device) -> int:
    return RUN_AHEAD[device.type] if engine.run_ahead < 0 else engine.run_ahead


def draft_tokens(spec: ModelSpec, engine: EngineConfig) -> int:
    """Most draft tokens. 0 for recurrent layers: a state cannot go back to the position before a refused draft."""
    if engine.speculative_algorithm == "none" or spec.pooling is not None:
        return 0
    if spec.delta is not None:
        log.warning("--speculative-algorithm: a model with linear attention goes on without drafts")
        return 0
    return engine.speculative_num_draft_tokens


def pooled_facts(spec: ModelSpec, usual_step: int) -> PooledFacts | None:
    if (pooling := spec.pooling) is None:
        return None
    return PooledFacts(
        pooling.task,
        pooling.width,
        end_token=-1 if pooling.end_token is None else pooling.end_token,
        whole_prompts=0 if spec.causal else usual_step,
        shorter=pooling.shorter,
        pairs=bool(pooling.pairs),
        raw=pooling.raw,
        probability=bool(pooling.tokens),
    )


def worst_step(decoder: Decoder, engine: EngineConfig, step_tokens: int) -> WorstStep:
    """The largest step, for the memory computation on a CPU."""
    spec = decoder.spec
    plain = not decoder.ops.exact_rows or not _attention_in_c(spec)
    return WorstStep(
        tokens=step_tokens,
        lines=min(logit_lines(spec.vocab, CPU), max(engine.running_max_req_size, PROMPT_LINES)),
        context=min(spec.max_context, engine.max_req_total_len or spec.max_context),
        value_bytes=decoder.dtype.itemsize,
        fused=not plain,
    )


def _attention_in_c(spec: ModelSpec) -> bool:
    """Whether the C extension has attention for the heads' sizes."""
    if spec.mla is None:
        return all(kind.head_dim % 16 == 0 for kind in spec.kinds)
    return attention.attends_latents(spec.mla.kv_lora + spec.mla.rope_dim, spec.mla.kv_lora)


def _tell_what_does_not_fit(memory: MemoryPlan, engine: EngineConfig) -> None:
    if memory.kv_tokens < (engine.max_total_token_num or 0):
        log.warning("--max-total-token-num %d: only %d fit", engine.max_total_token_num, memory.kv_tokens)
    if memory.rows < engine.running_max_req_size:
        log.warning(
            "--running-max-req-size %d: there is memory for the recurrent states of %d sequences",
            *(engine.running_max_req_size, memory.rows),
        )


def _memory(
    decoder: Decoder, engine: EngineConfig, step_tokens: int, device: torch.device, promised: EngineLimits | None
) -> MemoryPlan:
    if promised is not None:
        space_bytes = KVPool.space_bytes(decoder.spec, stored_type(decoder.spec, decoder.dtype, engine))
        return promised_memory(promised, space_bytes, StatePool.place_bytes(decoder.spec, decoder.dtype))
    memory = _planned(decoder, engine, step_tokens, device, _kv_budget(decoder, engine, step_tokens, device))
    _tell_what_does_not_fit(memory, engine)
    return memory


def _planned(decoder: Decoder, engine: EngineConfig, step_tokens: int, device: torch.device, budget: int) -> MemoryPlan:
    spec, dtype = decoder.spec, decoder.dtype
    windows = windowed_limits(spec, step_tokens, run_ahead(engine, device))
    return plan_memory(
        spec, stored_type(spec, dtype, engine), engine, budget, StatePool.place_bytes(spec, dtype), windows
    )


def _kv_budget(decoder: Decoder, engine: EngineConfig, step_tokens: int, device: torch.device) -> int:
    """Bytes of KV and states per rank. All ranks hold the same tokens and run the same steps, so the rank with the
    least memory decides. On a GPU the worst steps run, to measure what they need."""
    group = decoder.group
    if device.type == "cuda":
        budget = group.least(kv_budget(device, engine.mem_fraction))
        return _budget_beside_steps(decoder, engine, step_tokens, device, budget)
    here = engine.ranks_per_node
    beside = here * step_bytes(decoder.spec, worst_step(decoder, engine, step_tokens))
    return group.least(kv_budget(device, engine.mem_fraction, step_bytes=beside) // here)


def _executor(
    decoder: Decoder, memory: MemoryPlan, engine: EngineConfig, step_tokens: int, device: torch.device
) -> Executor:
    return Executor(
        decoder,
        kv_tokens=memory.kv_tokens,
        rows=memory.rows,
        max_context=memory.max_context,
        step_tokens=step_tokens,
        device=device,
        kv_dtype=stored_type(decoder.spec, decoder.dtype, engine),
        state_checkpoints=memory.checkpoints,
        window_tokens=memory.window_tokens,
    )


def _budget_beside_steps(
    decoder: Decoder, engine: EngineConfig, step_tokens: int, device: torch.device, budget: int
) -> int:
    """What is left of `budget` after the worst steps, which keep their memory, so that no later step needs more memory
    than is free."""
    most = _planned(decoder, engine, step_tokens, device, budget)
    small = dataclasses.replace(
        most, kv_tokens=1, checkpoints=min(most.checkpoints, 1), window_tokens=min(most.window_tokens, 1)
    )
    probe = _executor(decoder, small, engine, step_tokens, device)
    probe.warm_up(probe_tokens=most.kv_tokens)
    left = decoder.group.least(kv_budget(device, engine.mem_fraction)) - graph_bytes(most.rows)
    if place_bytes := StatePool.place_bytes(decoder.spec, decoder.dtype):
        left += (small.rows + 1 + small.checkpoints) * place_bytes  # the probe's states, which are freed below
    del probe
    gc.collect()
    torch.cuda.empty_cache()
    return left


def _device(name: str, rank: int, ranks: int, size: int) -> torch.device:
    """The device of rank `rank` among this machine's `ranks`, in a group of `size`."""
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise ConfigError("--device cuda: torch finds no CUDA device on this machine", param="device")
    if name == "cpu" or not there:
        return CPU
    if ranks > (count := torch.cuda.device_count()):
        raise ConfigError(f"--tp {ranks}: torch finds {count} CUDA device{'s' * (count > 1)} here", param="tp")
    if size == 1:
        return torch.device("cuda")
    torch.cuda.set_device(rank)
    return torch.device("cuda", rank)


def _named(device: torch.device, threads: int) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{threads} CPU threads, {runtime.level() if runtime.native() else 'torch'}"
