"""Configuration: one frozen struct per part of the server. Its fields become flags, variables and file keys.

The string below a field is its text in `serve --help`. The field `max_total_token_num` is the flag
`--max-total-token-num` (or `--max_total_token_num`, LightLLM's spelling), the environment variable
`LIGHTLLM_MP_MAX_TOTAL_TOKEN_NUM` and the file key `max_total_token_num`.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from msgspec import Meta, Struct

from lightllm_mp.errors import ConfigError

Positive = Annotated[int, Meta(ge=1)]
Fraction = Annotated[float, Meta(gt=0.0, le=1.0)]
Seconds = Annotated[float, Meta(gt=0.0, le=86400.0)]
_HOST_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?|[0-9a-f]*(:[0-9a-f.]*){2,}", re.ASCII)
STEP_TOKENS = {"cpu": 512, "cuda": 2048}
"""The most tokens of a step: with more a dense model is no faster, and decoding sequences wait longer."""
RUN_AHEAD = {"cpu": 0, "cuda": 1}
CPU_KV_SHARE = 1 / 3
"""KV's share of the memory that mem_fraction allows on a CPU: other programs need memory too."""


class ModelConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The model."""

    model_dir: str | None = None
    """Hugging Face folder or .gguf file. Default: a small model, SmolLM2-135M-Instruct."""
    model_name: str | None = None
    """Name of the model in answers and metrics. Default: the name of the folder."""
    data_type: Literal["auto", "float32", "bfloat16", "float16", "fp32", "bf16", "fp16"] = "auto"
    """Type of weights and KV. auto: the checkpoint's type, but bfloat16 if it is quantised, or float16 on a CPU."""
    load_format: Literal["auto", "dummy"] = "auto"
    """dummy: random weights of the right shapes, for benchmarks. The folder needs only a config.json."""
    quantization: Literal["none", "int8", "fp8"] = "none"
    """Quantise the projections of all layers at load, with one scale per output. int8: weights only. fp8: weights, and
    on Hopper the activations of many tokens too. Checkpoints that are quantised already (FP8, AWQ, GPTQ and others)
    are detected without this flag."""
    tokenizer_mode: Literal["auto", "fast", "slow"] = "auto"
    """fast: read tokenizer.json. slow: read the vocabulary file that the model was published with. auto: tokenizer.json
    if the folder has one, else that file."""
    tool_call_parser: str | None = None
    """How the model writes tool calls: hermes, qwen3_coder, llama3_json, mistral, ... none: calls stay text. Default:
    found out from the chat template."""
    reasoning_parser: str | None = None
    """How the model writes its reasoning: qwen3, deepseek_r1, ... none: it stays in the text. Default: found out from
    the chat template."""
    trust_remote_code: bool = False
    """Accepted for compatibility. The server never runs Python code of a model folder."""
    eos_id: tuple[int, ...] = ()
    """End-of-sequence token ids beside those of the checkpoint."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the model. auto: cuda if a GPU is available."""
    task: Literal["auto", "embed", "score"] = "auto"
    """auto: what the folder's files say. embed: the model answers /v1/embeddings, where no file says so with the
    normalised state of the last token. score: Qwen3-Reranker, whose older folders look like a chat model's."""
    score_tokens: tuple[str, ...] = ()
    """YES NO: the model is a reranker; a score is the probability that the first token follows the prompt, and not the
    second. A number is an id, anything else a token as tokenizer.json spells it."""

    def __post_init__(self) -> None:
        if self.score_tokens and len(self.score_tokens) != 2:
            raise ConfigError(
                f"--score-tokens takes two tokens, YES and NO, not {len(self.score_tokens)}", param="score_tokens"
            )


class EngineConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Scheduling and memory."""

    tp: Positive = 1
    """Number of tensor-parallel ranks. Each rank is a process with its own GPU and a part of every layer."""
    ep: Positive = 1
    """Expert parallelism: number of groups that the tp ranks form; tp is a multiple of it. A group holds whole experts,
    and a rank of it a part of each of these. 1: every rank holds a part of every expert."""
    nnodes: Positive = 1
    """Number of machines that the tp ranks are spread over, in equal parts. Run the same command on each, with its
    node_rank. LIGHTLLM_MP_RELAY_KEYS holds a secret that all of them have."""
    node_rank: Annotated[int, Meta(ge=0)] = 0
    """Number of this machine among the nnodes. 0: the one that clients ask. The others hold ranks only; they join it
    when it is there, and again after a repair."""
    nccl_host: str = "127.0.0.1"
    """Address of machine 0 in the network of the nnodes."""
    nccl_port: Annotated[int, Meta(ge=1, le=65535)] = 28765
    """Machine N of the nnodes joins at this port of nccl_host plus N. The ranks themselves use free ports."""
    max_total_token_num: Positive | None = None
    """Size of the KV pool, in tokens. Default: computed from the free memory."""
    clamp_max_total_token_num: bool = False
    """Lower max_total_token_num and max_req_total_len, with a warning, to what fits the memory. Otherwise the start
    fails if they do not fit."""
    mem_fraction: Fraction = 0.93
    """Share of the device's free memory for weights, activations and KV. On a CPU the KV pool gets a third of it."""
    max_req_total_len: Positive | None = None
    """Longest prompt plus answer, in tokens. Default: the model's context, or less if the KV pool is smaller."""
    max_req_input_len: Positive | None = None
    """Longest prompt, in tokens. Default: max_req_total_len - 1."""
    long_truncation_mode: Literal["head", "center"] | None = None
    """Cut a prompt that is longer than max_req_input_len instead of refusing it. head: remove its beginning. center:
    remove its middle. What remains leaves room for the answer, up to half of the context. Prompts with images and those
    of more than 65,536 ids (or 1,048,576 characters) are refused."""
    running_max_req_size: Positive = 256
    """Maximum number of sequences that run at once. With linear attention fewer, if the memory does not hold the states
    of so many."""
    batch_max_tokens: Positive | None = None
    """Maximum number of tokens in one step, prefill chunks and decode together. Default: 512 on CPU, 2048 on CUDA. A
    larger value makes mixture-of-experts models faster, not dense ones, and delays running answers more while other
    prompts are prefilled."""
    kv_cache_dtype: Literal["auto", "int8", "fp8"] = "auto"
    """Type of keys and values in the KV pool. auto: the model's type. int8 and fp8: one byte per value and a scale per
    token and head, so the same memory holds about twice the tokens. Models with latent attention (DeepSeek-V2) do not
    support them."""
    disable_prompt_cache: bool = False
    """Do not reuse the KV of earlier prompts that begin alike."""
    share_prompt_cache: bool = False
    """Reuse KV between the holders of different API keys too. Whoever guesses the beginning of another's prompt can see
    that it is known, by `cached_tokens` and by the time to the first token."""
    swa_full_tokens_ratio: Fraction | None = None
    """Models with a sliding window in some layers (Gemma, gpt-oss): KV slots of these layers for each slot of the
    others. They need no more than a window of each sequence. A smaller ratio holds more tokens of long contexts, and
    fewer short contexts. 1: all layers share their slots. Default: enough for the windows of all running sequences and
    of prefixes of 2048 tokens in the prompt cache, but at most three quarters of what there would be if all layers
    shared; 1 if everything fits."""
    state_checkpoints: Annotated[int, Meta(ge=0)] | None = None
    """Copies of recurrent states in the prompt cache, for models with linear attention (Qwen3-Next, Qwen3.5). Such a
    model reuses a prompt's beginning up to the last copy in it. Default: a third of the memory that the states of the
    running sequences leave, but at most four copies for each sequence."""
    state_grain: Positive = 64
    """Tokens of which a multiple comes before each copy of a recurrent state. A smaller value reuses a little more of a
    prompt, a larger one makes fewer copies of long prompts and answers."""
    threads: Annotated[int, Meta(ge=0)] = 0
    """Compute threads of each CPU worker. 0: the physical cores that affinity and control groups allow, divided by the
    number of ranks."""
    run_ahead: Annotated[int, Meta(ge=-1, le=1)] = -1
    """Number of steps (0 or 1) to plan before the previous step has returned its tokens. -1: 0 on CPU, 1 on CUDA."""

    speculative_algorithm: Literal["none", "ngram"] = "none"
    """Speculative decoding. ngram: where an answer repeats what its prompt or the answer itself says, the tokens that
    followed there are drafted, computed together in one step, and kept as far as the model says the same. Answers are
    those without it, but come faster where much is repeated: edits of a given text or code, quotes, tables. It drafts
    less where drafts are refused, or where steps are full. Models with linear attention do without."""
    speculative_num_draft_tokens: Annotated[int, Meta(ge=1, le=64)] = 8
    """Most draft tokens of a sequence in one step."""

    def __post_init__(self) -> None:
        if self.tp % self.ep:
            raise ConfigError(f"--ep {self.ep} must divide --tp {self.tp}", param="ep")
        if self.tp % self.nnodes:
            raise ConfigError(f"--nnodes {self.nnodes} must divide --tp {self.tp}", param="nnodes")
        if self.node_rank >= self.nnodes:
            raise ConfigError(
                f"--node-rank {self.node_rank}: with --nnodes {self.nnodes} it is less", param="node_rank"
            )
        if self.nccl_port + self.nnodes > 65536:
            raise ConfigError(f"--nccl-port {self.nccl_port} leaves no ports for the nodes", param="nccl_port")

    @property
    def ranks_per_node(self) -> int:
        return self.tp // self.nnodes


class HttpConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """HTTP port and limits of clients."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: Annotated[int, Meta(ge=0, le=65535)] = 8000
    """Port to listen on. 0: any free port; the start-up block shows it."""
    reuse_port: bool = False
    """Share the port with another server that has this flag, to replace it without a refused connection. A new server
    listens when it is ready. A draining server leaves new connections to it and answers those that it has accepted."""
    api_key_file: str | None = None
    """File with one API key per line (admin:KEY for an admin key). Keys may also stand in LIGHTLLM_MP_API_KEYS and
    LIGHTLLM_MP_ADMIN_KEYS. If there is any key, every route except health requires one."""
    ssl_certfile: str | None = None
    """Certificate (chain) in PEM format. With it the port speaks HTTPS, TLS 1.2 or newer."""
    ssl_keyfile: str | None = None
    """Private key of ssl_certfile, not encrypted. Default: in the same file."""
    cors_allow_origin: tuple[str, ...] = ()
    """Origins (https://example.org) whose web pages may call this server, or * for all. May be repeated."""
    allowed_host: tuple[str, ...] = ()
    """Names under which clients reach this server through a proxy or tunnel on this machine. Without an API key on a
    loopback host, requests whose Host or Origin is neither a loopback name nor one of these get 403: any web page could
    send them. With a name the same holds on other hosts, for a container's port that is published on a loopback
    address. May be repeated."""
    max_live_requests: Positive = 1000
    """Maximum number of requests that are accepted and not yet answered. Further requests get 429 with Retry-After.
    With several API keys, half of the number is reserved for the keys in equal parts."""
    max_connections_per_address: Annotated[int, Meta(ge=0)] | None = None
    """Maximum number of open connections of one client address (IPv6: one /64 network); more get 503. Default: four
    times max_live_requests and at least 1024, but at most half of the open files that the system allows. 0: no limit,
    for a proxy that limits its own clients."""
    max_queue_seconds: Annotated[float, Meta(ge=0.0, le=86400.0)] = 600.0
    """A request gets 503 if its prefill has not begun after this time. 0: no limit. A client can send
    X-Request-Timeout: SECONDS; if its answer is not complete by then, it gets 504. The earliest deadline is served
    first."""
    max_body_bytes: Positive = 32 << 20
    """Largest request body, in bytes."""
    no_skipping_special_tokens: bool = False
    """Show special tokens in the answers of requests that do not say skip_special_tokens, as LightLLM does since 2025.
    Tool calls of many models begin with special tokens. The token that ends an answer is never shown."""
    header_timeout: Seconds = 30.0
    """Maximum time to receive the headers and body of a request."""
    write_timeout: Seconds = 60.0
    """A streaming client that reads nothing for this time is disconnected."""
    resume_window: Annotated[float, Meta(ge=0.0, le=86400.0)] = 60.0
    """Time in seconds for which a request is kept after its connection broke or its answer was sent. A client that
    comes back in it (GET /requests/ID with its X-Request-Id, and Last-Event-ID for a stream) gets the rest. 0: not at
    all."""
    response_window: Annotated[float, Meta(ge=0.0, le=86400.0)] = 3600.0
    """Time in seconds for which an answer of /v1/responses is stored, for GET /v1/responses/ID and
    previous_response_id. Where memory is short, the oldest of the key that stores most goes first. 0: nothing is
    stored."""
    journal_size: Annotated[int, Meta(ge=1 << 20, le=1 << 40)] = 256 << 20
    """Most shared memory, in bytes, for the record of requests that outlives the HTTP process. It takes memory when it
    needs it."""
    max_answer_bytes_live: Annotated[int, Meta(ge=1 << 20)] = 1 << 30
    """Maximum size of all answers that are kept for their clients, in bytes. Beyond it the largest gets 429."""
    allow_chat_template: bool = False
    """Render chats with a template that the client sends (chat_template). It runs in the sandbox of the model's own."""
    no_ui: bool = False
    """Do not serve the page at / and /live."""
    disable_access_log: bool = False
    """Do not log a line for each request."""
    otlp_traces_endpoint: str | None = None
    """URL of a collector that gets OpenTelemetry traces (OTLP over HTTP), such as http://collector:4318/v1/traces. A
    span for each request has a child for each stage. It needs the extra `tracing`; OTEL_ variables set the rest."""

    def __post_init__(self) -> None:
        for name in self.allowed_host:
            if not _HOST_NAME.fullmatch(name):
                raise ConfigError(
                    f"--allowed-host {name}: expected a name or address in lower case, without scheme and port",
                    param="allowed_host",
                )


class MultimodalConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Images in requests."""

    enable_multimodal: bool = False
    """Accept images if the model has a vision tower. A model without one serves text only."""
    cache_capacity: Positive = 200
    """Number of images whose embeddings are cached. A request can have at most this many different images."""
    cache_size_gb: Annotated[float, Meta(gt=0.0, le=1024.0)] | None = None
    """Memory of the embedding cache. Default: enough for cache_capacity images, but at most 1 GB."""
    visual_gpu_ids: tuple[int, ...] = ()
    """GPUs that encode images. Each holds a copy of the vision tower. Default: the first GPU."""
    visual_device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the vision tower. auto: the device of the model."""
    allow_media_host: tuple[str, ...] = ()
    """Hosts (names or addresses) from which images may be fetched at any address. The addresses of all other hosts must
    be public, that is not private, loopback, link-local or reserved."""
    media_timeout: Seconds = 10.0
    """Maximum time to fetch an image, redirects included."""
    max_images_per_request: Annotated[int, Meta(ge=1, le=64)] = 32
    """Maximum number of images in one request."""
    max_bytes_per_image: Annotated[int, Meta(ge=1024, le=1 << 28)] = 32 << 20
    """Largest image file, in bytes."""
    max_pixels_per_image: Annotated[int, Meta(ge=1, le=178_000_000)] = 64_000_000
    """Maximum number of pixels in an image."""
    max_image_bytes_per_request: Annotated[int, Meta(ge=1024, le=1 << 30)] = 64 << 20
    """Maximum size of all image files of one request together, in bytes."""
    max_image_bytes_live: Annotated[int, Meta(ge=1024)] = 1 << 29
    """Maximum size of the image files of all live requests together, in bytes; equal files of a key count once.
    Requests beyond it get 429. With several API keys, half of it is reserved for the keys in equal parts."""

    def __post_init__(self) -> None:
        if len(set(self.visual_gpu_ids)) < len(self.visual_gpu_ids):
            raise ConfigError("--visual-gpu-ids names a GPU twice", param="visual_gpu_ids")


class SupervisorConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Start, supervision and stop of processes."""

    start_timeout: Seconds = 1800.0
    """The start of a process fails if it is not ready after this time."""
    drain_delay: Annotated[float, Meta(ge=0.0, le=3600.0)] = 0.0
    """Time for which new requests are still served after SIGTERM, SIGINT or SIGHUP, before drain_timeout begins. In it
    /readiness is 503 and every answer closes its connection, so that load balancers choose another server."""
    drain_timeout: Seconds = 30.0
    """Time for running requests to finish after SIGTERM, SIGINT or SIGHUP."""
    watchdog_timeout: Seconds = 30.0
    """A process that answers no ping for this time is replaced; a worker after four times as long, since a step may be
    slow."""
    max_restarts: Annotated[int, Meta(ge=0)] = 3
    """Maximum number of restarts of a process within restart_window, and of failed starts in a row. One more ends the
    server with exit code 70. A crash that a request may be to blame for does not count. Without its image encoder the
    server goes on: image requests get 503 until it is back."""
    restart_window: Seconds = 60.0
    """Time over which restarts are counted."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Lowest severity to log."""
    log_json: bool = False
    """Log one JSON object per line instead of text."""


class FleetConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Several engines behind one port."""

    replicas: Positive = 1
    """Number of engines, each with GPUs or cores of its own (tp GPUs; an equal part of the cores). More than one run on
    Ray, which is started and ended with the server. It needs the extra `ray`."""
    ray_address: str | None = None
    """Run the replicas in this cluster of Ray: auto, or the address of its head. Default: on this machine alone."""
    min_replicas: Positive = 1
    """Fewest replicas that are kept, with max_replicas."""
    max_replicas: Positive | None = None
    """Most replicas. With it their number follows the work, from replicas at the start. Default: it does not change."""
    target_tokens: Positive = 32768
    """Work of a replica, with max_replicas: tokens that it is expected to compute for its requests, queued and running.
    With more for half a minute the fleet grows; with less for ten minutes it shrinks, and running requests finish."""

    def __post_init__(self) -> None:
        if self.max_replicas is not None and not self.min_replicas <= self.replicas <= self.max_replicas:
            raise ConfigError("--replicas lies from --min-replicas to --max-replicas", param="replicas")


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All settings of `lightllm-mp serve`."""

    model: ModelConfig = ModelConfig()
    engine: EngineConfig = EngineConfig()
    http: HttpConfig = HttpConfig()
    multimodal: MultimodalConfig = MultimodalConfig()
    supervisor: SupervisorConfig = SupervisorConfig()
    fleet: FleetConfig = FleetConfig()
