"""Sizes the KV memory of layers with windows and of the other layers. Imports no torch.

Each kind of layer has slots of its own (see scheduler/kv_memory.py), in numbers that are fixed at the start. Unused
slots of windows are a loss, and so are too few slots if contexts are shorter than the window. So the slots of windows
- are enough for the windows of all rows, and of the prefixes in the cache if these have USUAL_PREFIX tokens;
- but at most three quarters of the slots that there would be if all layers shared them: short contexts lose at most a
  quarter.
"""

from __future__ import annotations

from lightllm_mp.config import EngineConfig
from lightllm_mp.facts import EngineLimits
from lightllm_mp.models.spec import ModelSpec

USUAL_PREFIX = 2048
"""Length of prefixes, in tokens, for which the cache is sized."""
SHORT_CONTEXTS = 3, 4
"""Contexts shorter than the window keep at least this fraction (numerator, denominator) of the slots."""


def window_of_all(spec: ModelSpec) -> int:
    """The widest window of the layers; 0 if some layer has none, or if it has a sequence state instead."""
    windows = [spec.window_of(layer) for layer in range(spec.layers)]
    return max(windows) if all(windows) and spec.delta is None else 0


def has_both_kinds(spec: ModelSpec) -> bool:
    """Whether some layers have a window and others see all tokens."""
    windows = {spec.window_of(layer) for layer in range(spec.layers)}
    return min(windows) == 0 and max(windows) > 1 and spec.delta is None and spec.causal


def windowed_limits(spec: ModelSpec, step_tokens: int, run_ahead: int) -> EngineLimits:
    """Limits whose `window_slots` says what a sequence holds in layers with windows. `window_tokens` is 1 if other
    layers have no window, and `window` is 0 if nothing is ever given up."""
    both = has_both_kinds(spec)
    window = spec.window if both and spec.window else window_of_all(spec)
    return EngineLimits(window=window, window_tokens=int(both), step_tokens=step_tokens, run_ahead=run_ahead)


def window_tokens(
    config: EngineConfig, budget: int, space_bytes: tuple[int, int], limits: EngineLimits, rows: int, longest: int
) -> int:
    """Slots of layers with windows if `budget` bytes are for KV; 0: it is better that all layers share their slots.

    `space_bytes`: bytes of a token in layers without a window, and in layers with one; `limits`: the result of
    `windowed_limits`; `longest`: tokens of the longest sequence."""
    whole, near = space_bytes
    ratio = config.swa_full_tokens_ratio
    shared = budget // (whole + near) - 1
    wanted = config.max_total_token_num or rows * longest
    least = limits.window_slots + limits.window  # a lock on a prefix may last longer than its use
    if not limits.window_tokens or ratio == 1 or least >= min(longest, wanted):
        return 0
    if ratio is None and wanted <= shared:
        return 0
    if ratio is None:
        part, parts = SHORT_CONTEXTS
        share = min(1, limits.window / USUAL_PREFIX)
        cached = int(share * budget / (whole + share * near))
        running = rows * (limits.window + limits.window_grain) + limits.window_slots
        tokens = min(running + cached, shared * part // parts)
    else:
        tokens = int(ratio * min(wanted, budget / (whole + ratio * near)))
    if config.max_total_token_num is not None and not config.clamp_max_total_token_num:
        tokens = min(tokens, (budget - (wanted + 1) * whole) // near - 1)
    tokens = max(tokens, least)
    return tokens if tokens < others(budget, space_bytes, tokens) and (ratio or tokens < shared) else 0


def others(budget: int, space_bytes: tuple[int, int], tokens: int) -> int:
    """Slots of the layers without a window, beside `tokens` slots of those with one (0: all layers share slots)."""
    whole, near = space_bytes
    return (budget - (tokens + 1) * near) // whole - 1 if tokens else budget // (whole + near) - 1


def kv_bytes(space_bytes: tuple[int, int], kv_tokens: int, tokens: int) -> int:
    """Bytes of a KV pool, spare slots included."""
    whole, near = space_bytes
    return (kv_tokens + 1) * whole + ((tokens or kv_tokens) + 1) * near
