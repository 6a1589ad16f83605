"""Rotary embeddings that depend on how long the prompt is. Imports no torch.

Qwen's first models (dynamic NTK) and Phi-3's long ones choose their frequencies by the length of the prompt and keep
them for the whole answer. All lengths with the same frequencies are a class; the rotary table has a block of
`ModelSpec.max_context` lines per class, so a token's line (`Batch.rotary_at`) is

    class * spec.max_context + position

Keys of one class are wrong for another: prefixes may only be shared within a class, and a sequence that is resumed
keeps the class of its prompt.
"""

from __future__ import annotations

import math

from lightllm_mp.models.spec import ModelSpec, RopeSpec


def class_count(rope: RopeSpec | None, max_context: int) -> int:
    """How many classes there are for prompts up to `max_context`."""
    if rope is None or max_context <= rope.original_context:
        return 1
    if rope.scaling == "longrope":
        return 2
    if rope.scaling == "qwen":
        return 1 + math.ceil(math.log2(max_context / rope.original_context))
    return 1


def ntk_alpha(number: int) -> float:
    """By what Qwen stretches the base for class `number`: 2 ** (ceil(log2(length / trained)) + 1) - 1."""
    return float((2 << number) - 1)


def class_bounds(spec: ModelSpec) -> tuple[int, ...]:
    """The longest prompt of every class but the last; empty where there is one class."""
    count = class_count(spec.rope, spec.max_context)
    return tuple(spec.rope.original_context << number for number in range(count - 1)) if spec.rope else ()


def class_firsts(spec: ModelSpec) -> tuple[int, ...]:
    """The rotary table's line for position 0 of every class."""
    return tuple(number * spec.max_context for number in range(class_count(spec.rope, spec.max_context)))
