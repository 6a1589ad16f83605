"""Computes the memory of the worst step on a CPU, beside weights, KV and row tables, so that a start need not run it.

It counts tensors that live at the same time. The sampler runs after the forward pass, but its tensors may not fit into
the pieces of memory that the forward pass freed, so both count. Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from lightllm_mp.models.spec import ModelSpec

FLOAT, LONG = 4, 8
INPUT = 4
"""Bytes per input of a product: float32, or 16 bits with the scale and the sums of its block."""
VOCABULARIES = 12
"""Float32 arrays [lines, vocab] that live at once while whole rows are sorted: logits, log-softmax and penalty counts;
rows with noise, the truncated rows among them, and twice the rows with too few candidates; sorted rows, their weights,
the sums of weights, and the masks."""
CANDIDATE_BYTES = 48
"""Per candidate of a row: score, id, noise word, noise, weight, and sums of weights."""
CANDIDATES = 8192
HISTORY_BYTES = 64
"""Bytes per position of a context whose tokens penalties count."""
SCORES = 9
"""Measured number of float32 arrays [heads, new tokens, context] of attention in plain torch: products, scaled, biased,
masked, softmax, and the copies that make both products contiguous."""
PLAIN = 3
"""Factor of the other operations in plain torch, which computes in float32 and keeps its inputs."""
SLACK = 1.25
"""Factor for fragmentation in the allocator."""
FIXED = 8 << 20
"""Bytes for blocks of noise, and for memory that libraries keep per thread."""


@dataclass(frozen=True, slots=True)
class WorstStep:
    """The largest step that a configuration allows."""

    tokens: int
    """New tokens."""
    lines: int
    """Rows of logits that exist at once."""
    context: int
    """Length of the longest sequence."""
    value_bytes: int
    """Bytes per number of the model's dtype."""
    fused: bool
    """The C extension computes everything; its attention keeps no scores in memory."""


def step_bytes(spec: ModelSpec, worst: WorstStep) -> int:
    """An upper bound of the bytes that `worst` needs on one rank; `spec` describes that rank's part of the model."""
    attention = max(*map(_attention_width, spec.kinds), _delta_width(spec)) + _per_layer_width(spec)
    mlp = max(_mlp_bytes(kind, worst.value_bytes) for kind in spec.kinds)
    stream = 4 * spec.hidden  # residual, normalised, the previous branch and the next
    widest = max(spec.hidden, *(max(kind.q_size, kind.intermediate) for kind in spec.kinds))
    token = max((stream + attention) * worst.value_bytes, stream * worst.value_bytes + mlp) + widest * INPUT + 8 * LONG
    forward = worst.tokens * token if worst.fused else PLAIN * worst.tokens * token + _plain_attention(spec, worst)
    return int(SLACK * (forward + (0 if spec.pooling is not None else _sampler(spec, worst)))) + FIXED


def _attention_width(spec: ModelSpec) -> int:
    """Numbers of the model's dtype that attention holds per new token."""
    if spec.mla is None:
        normalised = 2 * (spec.q_size + spec.kv_size) if spec.head_norm else 0
        gates = 2 * spec.q_size if spec.attention_gate else 0
        return 3 * spec.q_size + 2 * spec.kv_size + normalised + gates
    mla = spec.mla
    latent = mla.kv_lora + mla.rope_dim
    head = mla.nope_dim + 2 * mla.rope_dim + 3 * latent + 2 * mla.kv_lora + 2 * mla.value_dim
    return mla.q_lora * 2 + 4 * latent + spec.heads * head


def _per_layer_width(spec: ModelSpec) -> int:
    """Numbers of per-layer embeddings that live at once: what the token and its embedding give, and their sum."""
    return 0 if spec.per_layer is None else 4 * spec.layers * spec.per_layer.width


def _delta_width(spec: ModelSpec) -> int:
    """Numbers of the model's dtype that linear attention holds per new token: queries, keys, values and gates, the
    outputs, and two float32 numbers per head."""
    if (delta := spec.delta) is None:
        return 0
    return delta.channels + 2 * delta.value_size + 2 * FLOAT * delta.value_heads


def _mlp_bytes(spec: ModelSpec, value: int) -> int:
    """Bytes that the widest MLP holds per new token: gate, up, and their product."""
    plain = 3 * spec.intermediate * value
    if spec.moe is None:
        return plain
    moe = spec.moe
    chosen = moe.top_k * (3 * moe.intermediate * value + spec.hidden * (value + FLOAT) + 2 * LONG)
    shared = (3 * moe.shared_intermediate + 2 * spec.hidden) * value
    mixture = 2 * moe.experts * FLOAT + chosen + shared
    return plain + mixture if moe.beside else max(plain, mixture)


def _plain_attention(spec: ModelSpec, worst: WorstStep) -> int:
    """Bytes of the head and of attention in plain torch, if all new tokens belong to one sequence."""
    new = min(worst.tokens, worst.context)
    mla = spec.mla
    keys = 2 * (max(kind.kv_size for kind in spec.kinds) if mla is None else mla.kv_lora + mla.rope_dim)
    scores = SCORES * FLOAT * spec.heads * new + 2 * new
    head = spec.vocab * spec.hidden * FLOAT  # widened for each product
    return worst.context * (scores + keys * (worst.value_bytes + 2 * FLOAT)) + head


def _sampler(spec: ModelSpec, worst: WorstStep) -> int:
    line = VOCABULARIES * FLOAT * spec.vocab
    line += CANDIDATE_BYTES * min(spec.vocab, CANDIDATES) + HISTORY_BYTES * worst.context
    return worst.lines * line + 4 * FLOAT * spec.vocab
