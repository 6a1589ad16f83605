"""Length classes: rotary embeddings that depend on the length of the prompt. Imports no torch.

The first Qwen models (dynamic NTK) and Phi-3's long ones choose their frequencies by the prompt's length and keep them
for the whole answer. All lengths with the same frequencies are a class. The rotary table has a block of
`ModelSpec.max_context` rows per class, so a token's row (`Batch.rotary_at`) is

    class * spec.max_context + position

Keys of one class are wrong for another: prefixes are shared only within a class, and a resumed sequence keeps the
class of its prompt.
"""

from __future__ import annotations

import math

from lightllm_mp.models.spec import ModelSpec, RopeSpec


def class_count(rope: RopeSpec | None, max_context: int) -> int:
    """Number of classes for prompts of up to `max_context` tokens."""
    if rope is None or max_context <= rope.original_context:
        return 1
    if rope.scaling == "longrope":
        return 2
    if rope.scaling == "qwen":
        return 1 + math.ceil(math.log2(max_context / rope.original_context))
    return 1


def ntk_alpha(number: int) -> float:
    """Qwen's factor on the base for class `number`: 2 ** (ceil(log2(length / trained)) + 1) - 1."""
    return float((2 << number) - 1)


def class_bounds(spec: ModelSpec) -> tuple[int, ...]:
    """The longest prompt of every class but the last; empty for a single class."""
    count = class_count(spec.rope, spec.max_context)
    return tuple(spec.rope.original_context << number for number in range(count - 1)) if spec.rope else ()


def class_firsts(spec: ModelSpec) -> tuple[int, ...]:
    """The rotary table's row for position 0 of every class."""
    return tuple(number * spec.max_context for number in range(class_count(spec.rope, spec.max_context)))
