"""The formats of tool calls, by the names of --tool-call-parser."""

from __future__ import annotations

from lightllm_mp.parsers.tool_calls.call_format import CallFormat
from lightllm_mp.parsers.tool_calls.deepseek import DEEPSEEK_V3, DEEPSEEK_V31
from lightllm_mp.parsers.tool_calls.glm import GLM, GLM47
from lightllm_mp.parsers.tool_calls.harmony import HARMONY
from lightllm_mp.parsers.tool_calls.hermes import HERMES
from lightllm_mp.parsers.tool_calls.internlm import INTERNLM
from lightllm_mp.parsers.tool_calls.kimi_k2 import KIMI_K2
from lightllm_mp.parsers.tool_calls.llama3_json import LLAMA3_JSON
from lightllm_mp.parsers.tool_calls.minicpm import MINICPM
from lightllm_mp.parsers.tool_calls.minimax_m2 import MINIMAX_M2
from lightllm_mp.parsers.tool_calls.mistral import MISTRAL, MISTRAL_LIST
from lightllm_mp.parsers.tool_calls.pythonic import PYTHONIC
from lightllm_mp.parsers.tool_calls.qwen3_coder import QWEN3_CODER

CALL_FORMATS: dict[str, CallFormat] = {
    "deepseek_v3": DEEPSEEK_V3,
    "deepseek_v31": DEEPSEEK_V31,
    "glm45": GLM,
    "glm47": GLM47,
    "gpt_oss": HARMONY,
    "hermes": HERMES,
    "internlm": INTERNLM,
    "kimi_k2": KIMI_K2,
    "llama3_json": LLAMA3_JSON,
    "minicpm": MINICPM,
    "minimax_m2": MINIMAX_M2,
    "mistral": MISTRAL,
    "mistral_list": MISTRAL_LIST,
    "pythonic": PYTHONIC,
    "qwen3_coder": QWEN3_CODER,
}
