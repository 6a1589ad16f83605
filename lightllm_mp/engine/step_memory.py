"""How much memory the worst step takes on a CPU, beside weights, KV and the row tables: computed, so that no start has
to run that step. Imports no torch.

What counts is what lives at the same time. A step's forward pass and its sampler follow one another, but memory that
the first gave back may be in pieces that do not fit the second, so both are counted.
"""

from __future__ import annotations

from dataclasses import dataclass

from lightllm_mp.models.spec import ModelSpec

FLOAT, LONG = 4, 8
INPUT = 7
"""Of each input of a product: in float32; or rounded to 16 bits with its block's sums, and again as digits for AMX."""
VOCABULARIES = 12
"""Float32 arrays [lines, vocab] that live at once while rows are sorted whole: logits, log-softmax and counts of
penalties; the rows with noise, those of them that are cut, and again those whose candidates were too few, twice; the
sorted row, its weights, their sums, and what selects from them."""
CANDIDATE_BYTES = 48
"""Of each candidate of a row: its score and id, its word of noise, the noise, its weight, and sums of weights."""
CANDIDATES = 8192
HISTORY_BYTES = 64
"""Of each position of a row's context whose tokens penalties count."""
SCORES = 9
"""Float32 arrays [heads, new tokens, context] of attention in plain torch: products, scaled, biased, masked, softmax,
and what the two products put in order; as measured."""
PLAIN = 3
"""How many times more the other operations take in plain torch, which works in float32 and keeps what it came from."""
SLACK = 1.25
"""For what the allocator has in pieces that nobody fits into."""
FIXED = 8 << 20
"""Noise of whole rows is made in blocks of a fixed size; so is what the libraries keep for their threads."""


@dataclass(frozen=True, slots=True)
class WorstStep:
    """The largest step that a configuration allows."""

    tokens: int
    """New tokens."""
    lines: int
    """Lines of logits that exist at once."""
    context: int
    """Longest sequence."""
    value_bytes: int
    """Bytes of a number of the model's type."""
    fused: bool
    """The C extension computes attention, which keeps no scores in memory, and everything else."""


def step_bytes(spec: ModelSpec, worst: WorstStep) -> int:
    """An upper bound, in bytes, of what `worst` takes of one rank's memory; `spec` is of that rank's part."""
    attention, mlp = _attention_width(spec), _mlp_bytes(spec, worst.value_bytes)
    stream = 4 * spec.hidden  # residual, normalised, the branch before and the one that is being made
    widest = max(spec.hidden, spec.q_size, spec.intermediate)
    token = max((stream + attention) * worst.value_bytes, stream * worst.value_bytes + mlp) + widest * INPUT + 8 * LONG
    forward = worst.tokens * token if worst.fused else PLAIN * worst.tokens * token + _plain_attention(spec, worst)
    return int(SLACK * (forward + (0 if spec.reward else _sampler(spec, worst)))) + FIXED


def _attention_width(spec: ModelSpec) -> int:
    """Numbers of the model's type that attention holds for each new token."""
    if spec.mla is None:
        normalised = 2 * (spec.q_size + spec.kv_size) if spec.head_norm else 0
        return 3 * spec.q_size + 2 * spec.kv_size + normalised
    mla = spec.mla
    latent = mla.kv_lora + mla.rope_dim
    head = mla.nope_dim + 2 * mla.rope_dim + 3 * latent + 2 * mla.kv_lora + 2 * mla.value_dim
    return mla.q_lora * 2 + 4 * latent + spec.heads * head


def _mlp_bytes(spec: ModelSpec, value: int) -> int:
    """Bytes that the widest MLP holds for each new token: gate and up, their product."""
    plain = 3 * spec.intermediate * value
    if spec.moe is None:
        return plain
    moe = spec.moe
    chosen = moe.top_k * (3 * moe.intermediate * value + spec.hidden * (value + FLOAT) + 2 * LONG)
    shared = (3 * moe.shared_intermediate + 2 * spec.hidden) * value
    return max(plain, 2 * moe.experts * FLOAT + chosen + shared)


def _plain_attention(spec: ModelSpec, worst: WorstStep) -> int:
    """Bytes of one sequence's attention in plain torch, where all new tokens are its own, and of the head there."""
    new = min(worst.tokens, worst.context)
    keys = 2 * spec.kv_size if spec.mla is None else 2 * (spec.mla.kv_lora + spec.mla.rope_dim)
    scores = SCORES * FLOAT * spec.heads * new + 2 * new
    head = spec.vocab * spec.hidden * FLOAT  # widened for each product
    return worst.context * (scores + keys * (worst.value_bytes + 2 * FLOAT)) + head


def _sampler(spec: ModelSpec, worst: WorstStep) -> int:
    line = VOCABULARIES * FLOAT * spec.vocab
    line += CANDIDATE_BYTES * min(spec.vocab, CANDIDATES) + HISTORY_BYTES * worst.context
    return worst.lines * line + 4 * FLOAT * spec.vocab
