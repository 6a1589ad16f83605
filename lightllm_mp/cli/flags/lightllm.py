"""Table of LightLLM's flags of 2024 and 2026: which are aliases, which have no effect, which are refused, and why.

A flag that is a field of config.py is not listed: it means the same here.
"""

from __future__ import annotations

from typing import NamedTuple

ALIASES = {
    "disable_dynamic_prompt_cache": "disable_prompt_cache",
    "embed_cache_storage_size": "cache_size_gb",
}
"""LightLLM's name: the field of config.py."""

DEFAULT_WORDS = {"eos_id": ("auto", "none"), "model_dir": (), "model_name": (), "api_key_file": ()}
"""Field: LightLLM's words for its default. For other fields the words are none and null. A name may be any word."""

INT8_WORDS = "w8a16 ao-w8a16 w8a8 vllm-w8a8 ao-w8a8"
FP8_WORDS = "fp8w8a8 vllm-fp8w8a8 ao-fp8w8a8 ao-fp8w8a16"

MEANINGS: dict[str, dict[str, tuple[str, str]]] = {
    "mode": {
        "triton_int8weight": ("quantization", "int8"),
        "triton_int8kv": ("kv_cache_dtype", "int8"),
        "ppl_int8kv": ("kv_cache_dtype", "int8"),
        "ppl_int8kv_flashdecoding": ("kv_cache_dtype", "int8"),
    },
    "llm_kv_type": {"int8kv": ("kv_cache_dtype", "int8")},
    "quant_type": {
        **dict.fromkeys(INT8_WORDS.split(), ("quantization", "int8")),
        **dict.fromkeys(FP8_WORDS.split(), ("quantization", "fp8")),
    },
}
"""LightLLM's name: its values that are a setting here, each with the field and the field's value."""


class ForeignFlag(NamedTuple):
    """A flag without a counterpart here. `why`: the reason that the operator reads.

    `harmless` are the values that are accepted without effect. None: all values. (): none, the flag is refused.
    """

    why: str
    harmless: tuple[str, ...] | None = None

    def refuses(self, words: list[str]) -> bool:
        """True if the flag is refused with the values `words`; a flag without a value has none."""
        if self.harmless is None:
            return False
        if self.harmless == ():
            return [word.lower() for word in words] not in (["false"], ["none"])
        return any(word.lower() not in self.harmless for word in words)


ACCEPTED = {
    "the processes communicate through shared memory and need no such address": (
        "zmq_mode use_config_server_to_init_nccl multinode_httpmanager_port multinode_router_gloo_port "
        "visual_rpyc_port visual_use_proxy_mode"
    ),
    "prefill is always chunked and shares steps with decode; --batch-max-tokens bounds a step": (
        "splitfuse_mode splitfuse_block_size chunked_prefill_size disable_chunked_prefill enable_prefill_decode_mixed"
    ),
    "shared prefixes are always found": "prompt_cache_strs diverse_mode",
    "admission estimates memory from the lengths of finished requests": (
        "router_token_ratio router_max_new_token_len router_max_wait_tokens schedule_time_interval "
        "disable_aggressive_schedule dp_balancer"
    ),
    "statistics are served at /metrics and are not logged": "disable_log_stats log_stats_interval",
    "use --log-level debug": "detail_log",
    "the supervisor always watches every process; see /health": "health_monitor",
    "one HTTP process serves all clients": "httpserver_workers",
    "each request asks for prompt logprobs itself": "enable_prompt_logprobs",
    "a reward model is recognised by its checkpoint": "use_reward_model",
    "each request asks for a constraint itself": "output_constraint_mode",
    "it is only a label": "model_owner job_name grouping_key push_interval",
    "the engine chooses the fastest implementation for the device": (
        "performance_mode p_mode sampling_backend penalty_counter_mode llm_prefill_att_backend llm_decode_att_backend "
        "vit_att_backend enable_torch_fallback enable_triton_fallback disable_symm_mem_allreduce "
        "disable_flashinfer_allreduce enable_fused_shared_experts disable_shm_warning"
    ),
    "the CUDA engine chooses this itself": (
        "disable_cudagraph graph_max_batch_size graph_split_batch_size graph_grow_step_size graph_max_len_in_batch "
        "enable_prefill_cudagraph prefill_cudagraph_max_handle_token enable_mps"
    ),
    "images are accepted only with --enable-multimodal, audio is not supported": (
        "disable_vision disable_audio audio_gpu_ids audio_infer_batch_size"
    ),
    "images are cached by their content and encoded in batches of a fixed size": (
        "enable_multimodal_url_cache cache_reserved_ratio visual_infer_batch_size visual_send_batch_size"
    ),
    "the checkpoint defines the size of images; see --max-pixels-per-image": (
        "max_image_token_count max_image_pixels disable_image_resize"
    ),
    "it tunes a cache that does not exist here": (
        "cpu_cache_storage_size cpu_cache_token_page_size disk_cache_storage_size disk_cache_dir"
    ),
    "states of linear attention are float32; --state-checkpoints and --state-grain size their cache": (
        "linear_att_hash_page_size linear_att_cache_size linear_att_ssm_data_type"
    ),
    "it tunes a mode that does not exist here": (
        "pd_master_ip pd_master_port pd_kv_page_num pd_kv_page_size pd_trans_mode select_p_d_node_strategy "
        "config_server_host config_server_port config_server_visual_redis_port llm_kv_quant_group_size"
    ),
}
"""Reason: names. Accepted with any value, without effect."""

BY_VALUE = {
    "load_way": ("hf", "only Hugging Face checkpoints are read"),
    "run_mode": ("normal", "prefill and decode on separate machines come later"),
    "dp": ("1", "data parallel comes later; start one server per replica"),
    "quant_type": ("none awq awq_marlin", "AWQ and GPTQ checkpoints are detected; see also --quantization"),
    "vit_quant_type": ("none", "vision towers with quantised weights come later, except from GGUF files"),
    "llm_kv_type": ("none", "8-bit KV needs no calibrated scales here; see --kv-cache-dtype int8 and fp8"),
    "mtp_mode": ("none", "draft heads come later; see --speculative-algorithm"),
    "mtp_step": ("0", "draft heads come later; see --speculative-num-draft-tokens"),
    "hardware_platform": ("cuda", "other accelerators come later"),
    "expert_dtype": ("none", "quantised experts come later"),
    "visual_tp": ("1", "a vision tower is not split; --visual-gpu-ids gives each GPU a copy of it"),
    "visual_dp": ("1", "--visual-gpu-ids gives each GPU a copy of the vision tower"),
    "audio_tp": ("1", "models with audio come later"),
    "audio_dp": ("1", "models with audio come later"),
    "mode": (
        "triton_gqa_attention triton_flashdecoding triton_gqa_flashdecoding ppl_fp16 ppl_fp16_flashdecoding",
        "the engine chooses attention kernels itself; for 8-bit weights and KV see --quantization and --kv-cache-dtype",
    ),
}
"""Name: the values that have no effect, and why others are refused."""

LATER = {
    "send add_spaces_between_special_tokens: false in the request": "no_spaces_between_special_tokens",
    "send prompt_logprobs in the request": "return_all_prompt_logprobs",
    "use --api-key-file: with it every route except health requires a key": "enable_monitor_auth",
    "the chat template of the checkpoint is used; a choice of templates comes later": "chat_template",
    "TGI's answer format comes later": "use_tgi_api",
    "the HTTP server is not hypercorn": "hypercorn_config",
    "pushing metrics comes later; scrape /metrics": "metric_gateway",
    "profiling hooks come later": "enable_profiling",
    "token healing and constraints of the first token come later": "token_healing_mode first_token_constraint_mode",
    "use --ep, with as many parts as --tp has ranks": "enable_ep_moe",
    "copies of experts and reports of routed experts come later": (
        "ep_redundancy_expert_config_path auto_update_redundancy_expert enable_return_routed_experts"
    ),
    "settings for single layers come later; see --quantization": (
        "quant_cfg vit_quant_cfg kv_quant_calibration_config_path"
    ),
    "draft heads come later; see --speculative-algorithm": "mtp_draft_model_dir",
    "KV outside the device's memory comes later": "enable_cpu_cache enable_disk_cache enable_dp_prompt_cache_fetch",
    "data-parallel and micro-batch modes come later": (
        "enable_tpsp_mix_mode enable_dp_prefill_balance enable_prefill_microbatch_overlap "
        "enable_decode_microbatch_overlap"
    ),
    "prefill and decode on separate machines come later": "pd_master_mode",
    "embeddings on a shared file system come later": "afs_image_embed_dir afs_embed_capacity",
    "weight updates while serving come later": "enable_rl enable_torch_memory_saver enable_weight_cpu_backup",
}
"""Reason: names. Refused, because to ignore them would change answers or access."""

OTHERS: dict[str, ForeignFlag] = {
    **{name: ForeignFlag(why) for why, names in ACCEPTED.items() for name in names.split()},
    **{name: ForeignFlag(why, tuple(values.split())) for name, (values, why) in BY_VALUE.items()},
    **{name: ForeignFlag(why, ()) for why, names in LATER.items() for name in names.split()},
}
"""LightLLM's name: how it is treated."""
