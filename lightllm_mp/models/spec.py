"""A decoder-only model as data: a family maps its configuration to a `ModelSpec`, which `Decoder` obeys.

Imports no torch: the command line and the router read specs too.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec.structs import asdict, replace

Take = Literal["last", "cls", "mean"]
Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "swiglu_oai"]


class RopeSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Rotary embedding: the first `dim` components of each head are rotated in pairs."""

    theta: float
    """Base of the geometric series of wavelengths."""
    dim: int
    """Rotated components of a head, an even number."""
    interleaved: bool = False
    """Pairs are (2i, 2i + 1) and not (i, i + dim / 2)."""
    scaling: str = "default"
    """One of `default`, `linear`, `dynamic`, `llama3`, `yarn`, `longrope`, `qwen`."""
    factor: float = 1.0
    """Factor by which the context is stretched."""
    original_context: int = 0
    """Positions the model was trained on before scaling."""
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    """yarn: round the bounds of the ramp to whole dimensions."""
    turning: int = 0
    """Pairs that turn, the first ones of dim / 2; the others stand still (Gemma 4). 0: all."""
    amplitude: float = 1.0
    """Factor on cos and sin (yarn's attention factor)."""
    divisors: tuple[float, ...] = ()
    """A divisor for each inverse frequency, where the file gives them (GGUF `rope_freqs.weight`, longrope)."""
    short_divisors: tuple[float, ...] = ()
    """longrope: the divisors for prompts up to `original_context`; `divisors` are for longer ones."""
    sections: tuple[int, ...] = ()
    """mrope (Qwen2-VL, arXiv 2409.12191): pairs that turn by each component (frame, row, column) of a position, dim / 2
    in all. Empty: a position is one number."""
    interleaved_sections: bool = False
    """The components take turns (frame, row, column, frame, ...) as long as a section has pairs left; the frame has the
    rest (Qwen3-VL). False: the sections lie one after the other."""


class GlobalHeads(msgspec.Struct, frozen=True, kw_only=True):
    """Attention heads of the layers without a window, where they differ from those of the others (Gemma 4)."""

    heads: int
    kv_heads: int
    head_dim: int


class PerLayerSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Per-layer embeddings (Gemma 3n and 4): every layer has an embedding table of its own besides."""

    width: int
    """Numbers that a token has for one layer."""
    image_id: int
    """The id that slots of images have in these tables."""


class MoeSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Mixture of experts in place of the MLP."""

    experts: int
    top_k: int
    intermediate: int
    """Width of one expert."""
    renormalise: bool
    """The chosen experts' weights are divided by their sum."""
    scale: float = 1.0
    """Factor on the weights."""
    groups: int = 1
    top_groups: int = 1
    group_best: int = 1
    sigmoid: bool = False
    """Weights are sigmoids of the router's logits. For this and the fields of groups see `Routing` of the op table."""
    correction: bool = False
    """The choice is corrected by a bias of each expert: `router.correction`."""
    shared_intermediate: int = 0
    """Width of the MLP that every token passes besides; 0: none."""
    shared_gate: bool = False
    """The shared MLP's output is multiplied by the sigmoid of a projection (Qwen2-MoE)."""
    beside: bool = False
    """The experts stand beside an MLP of `ModelSpec.intermediate`; each has norms of its own, the router sees the
    residual stream, and every expert has a factor on its weights (Gemma 4)."""
    dense_layers: tuple[int, ...] = ()
    """Layers that have a plain MLP of `ModelSpec.intermediate` instead."""
    bias: bool = False
    """Router and experts have biases."""
    width_multiple: int = 16
    """Ranks' shares of `intermediate` are multiples of this: 32 where experts are stored in blocks of 32 weights."""
    fused_in_file: bool = False
    """The file has one tensor of all experts for each kind of projection, where quantised files of it do not."""


class MlaSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): a token's KV is one vector of kv_lora + rope_dim."""

    q_lora: int
    """Rank of the query projection; 0: it is a single matrix."""
    kv_lora: int
    nope_dim: int
    rope_dim: int
    value_dim: int


class DeltaSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Linear attention by the gated delta rule behind a short causal convolution (arXiv 2412.06464; Qwen3-Next)."""

    key_heads: int
    """Heads of queries and of keys."""
    value_heads: int
    """A multiple of `key_heads`; value head j uses key head j // (value_heads / key_heads)."""
    key_dim: int
    value_dim: int
    taps: int = 4
    """Inputs that the convolution sees: the token's own and those of the tokens before it."""

    @property
    def key_size(self) -> int:
        """Rows of all queries, and of all keys."""
        return self.key_heads * self.key_dim

    @property
    def value_size(self) -> int:
        """Rows of all values, and of their gates."""
        return self.value_heads * self.value_dim

    @property
    def channels(self) -> int:
        """Channels of the convolution: all queries, all keys, all values."""
        return 2 * self.key_size + self.value_size


class PoolingSpec(msgspec.Struct, frozen=True, kw_only=True):
    """How a prompt becomes one row of float32 numbers: an embedding, or a score."""

    task: Literal["embed", "score"]
    width: int
    """Numbers of a row; 1 for a score."""
    take: Take = "last"
    """The hidden state that the row is made of: of the last token, of the first, or the mean of all."""
    head: Literal["", "linear", "relu", "tanh"] = ""
    """A score: `score` x, or `score` f(`score_in` x) with `score_in` [hidden, hidden]."""
    normalize: bool = False
    """The row is divided by its Euclidean length."""
    tokens: tuple[int, ...] = ()
    """(yes, no): the score is the difference of the logits that the head would give these ids."""
    pairs: str = ""
    """How a query and a document become one prompt: `tokenizer`, as it joins two texts; `chat`, as the chat template
    writes messages of these roles; else a text with {query} and {document}. Empty: the model scores one text."""
    raw: bool = False
    """A score for clients is the number itself, and not its sigmoid."""
    end_token: int | None = None
    """Id of the prompt's last token; it is appended where it is missing."""
    shorter: tuple[int, ...] | None = None
    """Lengths to which an embedding may be cut (Matryoshka, arXiv 2205.13147); (): any; None: it may not."""


class ModelSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A decoder-only transformer. Sizes are counts of elements, not bytes."""

    family: str
    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    """Width of the MLP."""
    norm_eps: float
    rope: RopeSpec | None
    max_context: int
    """Longest sequence, prompt and answer together, in tokens."""
    eos_ids: tuple[int, ...]
    bos_id: int | None = None
    file_dtype: str = "float32"
    """Type that most weights are stored in: a torch dtype name, or the GGUF name of a quantised type."""

    # embedding and head
    tied: bool = False
    """The output head is the embedding matrix."""
    head_bias: bool = False
    learned_positions: int = 0
    """Rows of the table of position embeddings; 0: none."""
    token_types: int = 0
    """Rows of the table of segment embeddings; 0: none. A token of segment s has the id s * vocab + id."""
    embed_norm: bool = False
    """The embedding is normalised (with the model's kind of norm)."""
    embed_scale: float = 1.0
    logit_scale: float = 1.0
    """Factor on the logits."""
    logit_softcap: float = 0.0
    """Logits become cap * tanh(logit / cap); 0: off."""
    deepstack: int = 0
    """Levels of DeepStack (arXiv 2406.04334): an image has so many planes of embeddings more, and plane i is added to
    the hidden states of its tokens after layer i."""
    per_layer: PerLayerSpec | None = None
    pooling: PoolingSpec | None = None
    """A model of embeddings or scores, which has no head; None: it generates."""

    # norms and residuals
    norm: Literal["rms", "layer"] = "rms"
    norm_bias: bool = False
    norm_offset: bool = False
    """The factor is 1 + weight (Gemma)."""
    branch_norms: bool = False
    """The outputs of attention and MLP are normalised before they are added (Gemma 2 and 3)."""
    layer_scale: bool = False
    """The output of a layer is multiplied by a number of its own, `out_scale` (Gemma 4)."""
    residual_scale: float = 1.0
    """Factor on the outputs of attention and MLP before they are added."""
    post_norm: bool = False
    """A half normalises the sum of its input and output, and the sum itself is not kept (BERT). `input_norm` is then
    the norm behind the layer before, or behind the embedding."""
    parallel: bool = False
    """Attention and MLP take the same normalised input (StableLM-2 12B); there is no `post_norm`."""

    # attention
    causal: bool = True
    """A token sees itself and those before it; else it sees all tokens of its prompt (encoders)."""
    window: int | None = None
    """A query sees itself and the `window - 1` keys before it; None: all keys before it."""
    global_layers: tuple[int, ...] = ()
    """Layers without `window` and `local_rope`."""
    local_rope: RopeSpec | None = None
    """Rotary embedding of layers with a window, where it differs (Gemma 3)."""
    image_span: int = 0
    """Most tokens of an image. The tokens of an image see each other in both directions, so that a step computes it
    whole (Gemma 3); 0: they are causal like text."""
    image_span_local: bool = False
    """Images are causal in layers without a window (Gemma 4)."""
    global_heads: GlobalHeads | None = None
    """Heads of `global_layers`, where they differ."""
    keys_are_values: bool = False
    """In `global_layers`, values are the keys before their norm and rotation (Gemma 4)."""
    kv_shared: int = 0
    """The last layers, so many, have no keys and values: each reads those of the last layer before them that has a
    window as it has, or none (Gemma 4)."""
    kv_shared_intermediate: int = 0
    """Width of the MLP of these layers; 0: `intermediate`."""
    alibi: bool = False
    attention_scale: float | None = None
    """Factor on scores; None: head_dim ** -0.5."""
    score_softcap: float = 0.0
    head_norm: Literal["", "rms", "layer"] = ""
    """Queries and keys are normalised per head: weights `q_norm` and `k_norm`, [head_dim]."""
    each_head_norm: bool = False
    """Each head has its own weights: [heads * head_dim] and [kv_heads * head_dim]."""
    value_norm: bool = False
    """Value heads are normalised too, without weights (Gemma 4)."""
    joint_head_norm: bool = False
    """With `each_head_norm`: the mean square is that of all queries of a token, or of all its keys (MiniMax-M2)."""
    log_n_scale: int = 0
    """Queries at positions p >= this are scaled by log(p + 1) / log(this) (Qwen); 0: off."""
    query_growth: float = 0.0
    """Queries at position p are scaled by 1 + this * ln(1 + floor(p / rope.original_context)) (Ministral 3); 0: off."""
    qkv_bias: bool = False
    o_bias: bool = False
    sinks: bool = False
    """Each query head has a logit that takes part in the softmax and has no value: `sinks` [heads] (gpt-oss)."""
    mla: MlaSpec | None = None
    attention_gate: bool = False
    """The output of a head is multiplied by the sigmoid of a projection: `q_gate`, [q_size, hidden] (Qwen3-Next)."""
    delta: DeltaSpec | None = None
    """What `linear_layers` have in place of attention: a state of constant size instead of keys and values."""
    linear_layers: tuple[int, ...] = ()

    # MLP
    gated: bool = True
    """down(activation(gate x) * up x), else down(activation(up x))."""
    activation: Activation = "silu"
    mlp_bias: bool = False
    moe: MoeSpec | None = None

    @property
    def ids(self) -> int:
        """Ids that a prompt may hold: those of the vocabulary, and of texts in pairs once for each segment."""
        pairs = self.pooling is not None and self.pooling.pairs == "tokenizer"
        return self.vocab * max(self.token_types, 1) if pairs else self.vocab

    @property
    def q_size(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.kv_heads * self.head_dim

    def at(self, layer: int) -> ModelSpec:
        """The spec with the heads and the width of the MLP of one layer."""
        changes: dict[str, int] = {}
        if self.global_heads is not None and layer in self.global_layers:
            changes |= asdict(self.global_heads)
        if self.kv_shared_intermediate and self.kv_source(layer) != layer:
            changes["intermediate"] = self.kv_shared_intermediate
        return replace(self, **changes) if changes else self

    @property
    def kinds(self) -> tuple[ModelSpec, ...]:
        """The different results of `at`."""
        if self.global_heads is None and not self.kv_shared_intermediate:
            return (self,)
        return tuple(dict.fromkeys(self.at(layer) for layer in range(self.layers)))

    def kv_source(self, layer: int) -> int:
        """The layer whose keys and values a layer reads: its own, unless it is one of the last `kv_shared`."""
        own = range(self.layers - self.kv_shared)
        if layer in own:
            return layer
        whole = layer in self.global_layers
        return max(other for other in own if (other in self.global_layers) == whole)

    @property
    def kv_layers(self) -> tuple[int, ...]:
        """Layers that keep keys and values."""
        return tuple(i for i in range(self.layers - self.kv_shared) if i not in self.linear_layers)

    @property
    def kv_elements(self) -> int:
        """Elements of one token's keys and values over all layers."""
        return sum(self.space_elements)

    @property
    def space_elements(self) -> tuple[int, int]:
        """The same of the layers without a window, and of those with one."""
        found = [0, 0]
        for layer in self.kv_layers:
            own = 2 * self.at(layer).kv_size if self.mla is None else self.mla.kv_lora + self.mla.rope_dim
            found[self.window_of(layer) > 0] += own
        return found[0], found[1]

    @property
    def state_elements(self) -> tuple[int, int]:
        """Elements of one sequence's state over all layers of linear attention: float32 ones, and those of the model's
        type."""
        if (delta := self.delta) is None:
            return 0, 0
        layers, taps = len(self.linear_layers), delta.taps - 1
        return layers * delta.value_heads * delta.key_dim * delta.value_dim, layers * taps * delta.channels

    def window_of(self, layer: int) -> int:
        """Window of one layer; 0: it sees all keys before the query."""
        return 0 if self.window is None or layer in self.global_layers else self.window
