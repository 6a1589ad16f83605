"""Sizes the KV pool (how many tokens a device holds, and how long a sequence may be) and the pool of recurrent states
(how many sequences run at once, and how many copies of states are kept)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lightllm_mp.config import CPU_KV_SHARE, EngineConfig
from lightllm_mp.engine.state_sizing import state_places
from lightllm_mp.engine.window_sizing import kv_bytes, others, window_tokens
from lightllm_mp.errors import ConfigError, ModelError
from lightllm_mp.facts import EngineLimits
from lightllm_mp.machine import format_bytes, free_memory
from lightllm_mp.models.decoder.kv_pool import KVPool
from lightllm_mp.models.spec import ModelSpec

NO_WINDOWS = EngineLimits()
LEAST_TOKENS = 2
"""One prompt token and one answer token."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    kv_tokens: int
    kv_bytes: int
    max_context: int
    """Longest prompt plus answer, in tokens."""
    rows: int
    """Most sequences at once."""
    checkpoints: int = 0
    """Copies of recurrent states."""
    state_bytes: int = 0
    window_tokens: int = 0
    """KV slots of layers with windows, which then use none of `kv_tokens`; 0: all layers share their slots."""


def kv_bytes_per_token(spec: ModelSpec, dtype: torch.dtype) -> int:
    """Bytes of one token's keys and values in all layers."""
    return KVPool.token_bytes(spec, dtype)


def stored_type(spec: ModelSpec, dtype: torch.dtype, config: EngineConfig) -> torch.dtype:
    """The dtype that stores keys and values of a model in `dtype`. ConfigError if the model cannot use it."""
    if config.kv_cache_dtype == "auto":
        return dtype
    if spec.mla is not None:
        raise ConfigError(
            f"--kv-cache-dtype {config.kv_cache_dtype}: this model stores its latent KV in its own type; use auto",
            param="kv_cache_dtype",
        )
    return {"int8": torch.int8, "fp8": torch.float8_e4m3fn}[config.kv_cache_dtype]


def kv_budget(device: torch.device, mem_fraction: float, free_before: int | None = None, *, step_bytes: int = 0) -> int:
    """Bytes that the KV pool may take. Call it when the weights are loaded and, on CUDA, the worst step has run.

    CPU: a third of `mem_fraction` of the free memory, less `step_bytes` for the worst step (at most half of the free
    memory: a small machine refuses requests rather than the start). CUDA: the free memory, less the share of
    `free_before` (free bytes before loading; by default the device's whole memory) that stays free.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return max(0, int(free - (1.0 - mem_fraction) * (free_before or total)))
    free = free_memory()
    return int((free - min(step_bytes, free // 2)) * mem_fraction * CPU_KV_SHARE)


def plan_memory(
    spec: ModelSpec,
    dtype: torch.dtype,
    config: EngineConfig,
    budget: int,
    place_bytes: int = 0,
    limits: EngineLimits = NO_WINDOWS,
) -> MemoryPlan:
    """Sizes the pools within `budget` bytes (see `kv_budget`). `dtype`: of KV; `place_bytes`: bytes of a recurrent
    state; `limits`: the result of `windowed_limits`.

    A given `max_total_token_num` is the pool's size; otherwise the pool gets what fits, at most what all rows can use.
    The context is the shortest of the model's, `max_req_total_len` and the pool. The pool does not limit it if all
    layers have windows and the pool holds those of a sequence. If flags ask for more than fits, they are clamped with
    `clamp_max_total_token_num`; otherwise ConfigError. ModelError if the model leaves no room for a single sequence.
    """
    space_bytes, token_bytes = KVPool.space_bytes(spec, dtype), kv_bytes_per_token(spec, dtype)
    given_bytes = ((config.max_total_token_num or 0) + 1) * token_bytes
    rows, checkpoints = state_places(config, budget, place_bytes, given_bytes)
    state_bytes = _state_bytes(config, rows, checkpoints, place_bytes, budget)
    budget = max(0, budget - state_bytes)
    longest = min(spec.max_context, config.max_req_total_len or spec.max_context)
    near = window_tokens(config, budget, space_bytes, limits, rows, longest)
    room = others(budget, space_bytes, near)
    tokens = config.max_total_token_num or min(room, rows * longest)
    if config.clamp_max_total_token_num:
        tokens = min(tokens, room)
    endless = 0 < limits.window_slots <= tokens and not limits.window_tokens
    holds = longest if endless else tokens  # the longest sequence that the pool allows
    if config.clamp_max_total_token_num:
        longest = min(longest, holds)
    if config.max_total_token_num is not None and tokens > room:
        needed = format_bytes(kv_bytes(space_bytes, tokens, near))
        raise ConfigError(
            f"--max-total-token-num {tokens} needs {needed} of KV memory, but there "
            f"is room for {max(room, 0)} tokens ({format_bytes(budget)}); lower it, or raise --mem-fraction",
            param="max_total_token_num",
        )
    if tokens < LEAST_TOKENS:
        _refuse_tiny(config, tokens, token_bytes, budget)
    if config.max_req_total_len is not None and holds < longest:
        raise ConfigError(
            f"--max-req-total-len {config.max_req_total_len}: the KV memory holds {tokens} tokens, not one such "
            f"request; lower it, or raise {_bound(config)}",
            param="max_req_total_len",
        )
    return MemoryPlan(
        kv_tokens=tokens,
        kv_bytes=kv_bytes(space_bytes, tokens, near),
        max_context=min(longest, holds),
        rows=rows,
        checkpoints=checkpoints,
        state_bytes=state_bytes,
        window_tokens=near,
    )


def _state_bytes(config: EngineConfig, rows: int, checkpoints: int, place_bytes: int, budget: int) -> int:
    """Bytes of the running sequences, the spare row and the copies. ConfigError if copies asked for exceed `budget`."""
    state_bytes = (rows + 1 + checkpoints) * place_bytes if place_bytes else 0
    if state_bytes > budget and config.state_checkpoints:
        raise ConfigError(
            f"--state-checkpoints {checkpoints}: with the states of {rows} sequences they take "
            f"{format_bytes(state_bytes)} of {format_bytes(budget)}; lower it or --running-max-req-size, or raise "
            "--mem-fraction",
            param="state_checkpoints",
        )
    return state_bytes


def promised_memory(limits: EngineLimits, space_bytes: tuple[int, int], place_bytes: int) -> MemoryPlan:
    """The sizes that an earlier process found. Its successor offers them again, whatever memory is free now."""
    checkpoints = limits.states.checkpoints if limits.states is not None else 0
    return MemoryPlan(
        kv_tokens=limits.kv_tokens,
        kv_bytes=kv_bytes(space_bytes, limits.kv_tokens, limits.window_tokens),
        max_context=limits.max_context,
        rows=limits.rows,
        checkpoints=checkpoints,
        state_bytes=(limits.rows + 1 + checkpoints) * place_bytes,
        window_tokens=limits.window_tokens,
    )


def _refuse_tiny(config: EngineConfig, tokens: int, token_bytes: int, budget: int) -> None:
    if config.max_total_token_num == tokens:
        raise ConfigError(
            f"--max-total-token-num {tokens}: a request needs at least {LEAST_TOKENS}", param="max_total_token_num"
        )
    raise ModelError(
        f"no memory for a single request: a token's KV takes {format_bytes(token_bytes)}, and {format_bytes(budget)} "
        "is left for it; free memory, raise --mem-fraction, or choose a smaller --data-type or model"
    )


def _bound(config: EngineConfig) -> str:
    return "--mem-fraction" if config.max_total_token_num is None else "--max-total-token-num"
