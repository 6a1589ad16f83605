"""Configuration: one frozen struct per part of the engine; flags, environment and file keys are made from them.

The text below a field is its help. A field named `max_total_token_num` is the flag `--max-total-token-num` (and
`--max_total_token_num`, LightLLM's spelling), the variable `LIGHTLLM_MP_MAX_TOTAL_TOKEN_NUM` and the file key
`max_total_token_num`. Every part gets only its own struct.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

Positive = Annotated[int, Meta(ge=1)]
Fraction = Annotated[float, Meta(gt=0.0, le=1.0)]
Seconds = Annotated[float, Meta(gt=0.0, le=86400.0)]
CPU_KV_SHARE = 1 / 3
"""Of what mem_fraction allows on a CPU: the machine has other work, and a small model needs no more KV."""


class ModelConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is served."""

    model_dir: str | None = None
    """Hugging Face folder or .gguf file; without it the small default model (SmolLM2-135M-Instruct)."""
    model_name: str | None = None
    """Name in answers and metrics; by default the folder's name."""
    data_type: Literal["auto", "float32", "bfloat16", "float16", "fp32", "bf16", "fp16"] = "auto"
    """Type of weights and KV. auto: what is fastest on this device."""
    load_format: Literal["auto", "dummy"] = "auto"
    """dummy: random weights of the right shapes, for benchmarks; the folder needs a config.json and nothing else."""
    quantization: Literal["none", "int8", "fp8"] = "none"
    """What the layers' projections become while loading, with a scale per output. int8: weights only. fp8: weights, and
    on Hopper activations of many tokens too. AWQ and GPTQ checkpoints are found by themselves. On a CPU the weights are
    expanded again, so that it shows the rounding and saves no memory."""
    tokenizer_mode: Literal["auto", "fast", "slow"] = "auto"
    """Which tokenizer implementation to prefer."""
    trust_remote_code: bool = False
    """Accepted; no Python code of a model folder is run by this version."""
    eos_id: tuple[int, ...] = ()
    """End-of-sequence ids; by default those of the checkpoint."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs."""


class EngineConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Scheduling and memory."""

    tp: Positive = 1
    """Tensor-parallel ranks: processes that each hold a part of every layer, one a GPU."""
    max_total_token_num: Positive | None = None
    """KV slots (tokens) in total; by default found from free memory."""
    mem_fraction: Fraction = 0.93
    """Share of the device's free memory for weights, activations and KV (on CPU a third of it goes to KV)."""
    max_req_total_len: Positive | None = None
    """Longest prompt plus answer, in tokens; by default the model's context, at most what the KV memory holds."""
    max_req_input_len: Positive | None = None
    """Longest prompt, in tokens; by default max_req_total_len - 1."""
    running_max_req_size: Positive = 256
    """Most sequences that run at once."""
    batch_max_tokens: Positive | None = None
    """Most tokens one step computes, prefill chunks and decode together; by default 512 on CPU, 2048 on CUDA. With
    more, running answers wait longer for the prompts of others; dense models are no faster, mixtures of experts are."""
    kv_cache_dtype: Literal["auto", "int8", "fp8"] = "auto"
    """What keys and values are stored in. auto: the model's type. int8 and fp8: a byte each, and a scale for each token
    and head: about twice the tokens in the same memory. Not for models with latent attention (DeepSeek-V2)."""
    disable_prompt_cache: bool = False
    """Do not reuse the KV of earlier prompts."""
    threads: Annotated[int, Meta(ge=0)] = 0
    """Compute threads of a CPU worker; 0: the physical cores that affinity and control groups leave to this server,
    divided between the ranks."""
    run_ahead: Annotated[int, Meta(ge=-1, le=1)] = -1
    """Steps planned before the previous one has answered: 0 or 1; -1: 0 on CPU, 1 on CUDA."""


class HttpConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The HTTP port and what clients may do."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: Annotated[int, Meta(ge=0, le=65535)] = 8000
    """Port to listen on; 0: any free one, named in the start-up block."""
    reuse_port: bool = False
    """Share the port with another server that has this flag too. One that starts listens when it is ready; one that
    drains lets the other have new connections and answers what it has accepted: no connection is refused when one
    replaces the other."""
    api_key_file: str | None = None
    """File with one API key a line (admin:KEY for an admin key); also LIGHTLLM_MP_API_KEYS and LIGHTLLM_MP_ADMIN_KEYS.
    With a key set every route but health needs one."""
    ssl_certfile: str | None = None
    """Certificate (chain) in PEM format: the port speaks HTTPS, TLS 1.2 or newer."""
    ssl_keyfile: str | None = None
    """Private key of ssl_certfile, not encrypted; by default in the same file."""
    cors_allow_origin: tuple[str, ...] = ()
    """Origin (https://example.org) whose web pages may call this server, or *; may be given several times."""
    max_live_requests: Positive = 1000
    """Requests accepted and not yet answered; more are refused with 429 and a Retry-After. With several API keys half
    of it is kept for them, the same number for each."""
    max_queue_seconds: Annotated[float, Meta(ge=0.0, le=86400.0)] = 600.0
    """A request whose prefill has not begun after this long is refused with 503; 0: it waits. A client can say with
    X-Request-Timeout: SECONDS when its answer has to be complete (504). The earliest deadline goes first."""
    max_body_bytes: Positive = 32 << 20
    """Largest request body."""
    header_timeout: Seconds = 30.0
    """Time a client has to send its request's headers and body."""
    write_timeout: Seconds = 60.0
    """A streaming client that reads nothing for this long is cut off."""
    disable_access_log: bool = False
    """No log line per request."""


class MultimodalConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Images in requests."""

    enable_multimodal: bool = False
    """Serve images with a model that has a vision tower; another model serves text as without it."""
    cache_capacity: Positive = 200
    """Images whose embeddings are kept. A request can have no more different images than this."""
    cache_size_gb: Annotated[float, Meta(gt=0.0, le=1024.0)] | None = None
    """Memory for these embeddings; by default what cache_capacity images need, and at most 1 GB."""
    visual_gpu_ids: tuple[int, ...] = ()
    """The GPUs that encode images, each with a copy of the tower; by default the first one."""
    visual_device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where images are encoded. auto: where the model runs."""
    allow_media_host: tuple[str, ...] = ()
    """Hosts (names or addresses) from which images are fetched whatever their address is. All others must have public
    addresses: none that is private, loopback, link-local or reserved."""
    media_timeout: Seconds = 10.0
    """An image that has not been fetched after this long, redirects included, is refused."""
    max_images_per_request: Annotated[int, Meta(ge=1, le=64)] = 32
    """Most images of one request."""
    max_bytes_per_image: Annotated[int, Meta(ge=1024, le=1 << 28)] = 32 << 20
    """Largest image file."""
    max_pixels_per_image: Annotated[int, Meta(ge=1, le=178_000_000)] = 64_000_000
    """Most pixels of an image, whatever its file's size."""
    max_image_bytes_per_request: Annotated[int, Meta(ge=1024, le=1 << 30)] = 64 << 20
    """Most bytes of all image files of one request."""
    max_image_bytes_live: Annotated[int, Meta(ge=1024)] = 1 << 29
    """Most bytes of the image files of all live requests, each file once; more is refused with 429."""


class SupervisorConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Processes: start, watch, restart, stop."""

    start_timeout: Seconds = 1800.0
    """Every process is ready after this long, or the start has failed."""
    drain_timeout: Seconds = 30.0
    """After SIGTERM running requests have this long to finish."""
    watchdog_timeout: Seconds = 30.0
    """A process that answers no ping for this long is replaced (a worker: four times as long, a step may be slow)."""
    max_restarts: Annotated[int, Meta(ge=0)] = 3
    """This many restarts within restart_window end the server with exit code 70 at the next one."""
    restart_window: Seconds = 60.0
    """Window of max_restarts, in seconds."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severity that is logged."""
    log_json: bool = False
    """Log one JSON object a line instead of text."""


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything `lightllm-mp serve` can be told."""

    model: ModelConfig = ModelConfig()
    engine: EngineConfig = EngineConfig()
    http: HttpConfig = HttpConfig()
    multimodal: MultimodalConfig = MultimodalConfig()
    supervisor: SupervisorConfig = SupervisorConfig()
