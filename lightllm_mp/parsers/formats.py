"""Detects the format of a model's tool calls and reasoning from its chat template."""

from __future__ import annotations

from msgspec import Struct

from lightllm_mp.parsers.reasoning import REASONING_FORMATS
from lightllm_mp.parsers.tool_calls.call_formats import CALL_FORMATS
from lightllm_mp.parsers.tool_calls.harmony import HARMONY

_HARMONY = "gpt_oss"

_CALLS_BY_MARKERS = (
    (("<|channel|>", "<|message|>"), _HARMONY),
    (("<tool_call>", "<function="), "qwen3_coder"),
    (("<tool_call>", "{function-name}<arg_key>"), "glm47"),
    (("<tool_call>", "<arg_key>"), "glm45"),
    (("<tool_call>",), "hermes"),
    (("<｜tool▁call▁begin｜>", "```json"), "deepseek_v3"),
    (("<｜tool▁call▁begin｜>",), "deepseek_v31"),
    (("<|tool_calls_section_begin|>",), "kimi_k2"),
    (("<|im_system|>tool_declare",), "kimi_k2"),
    (("<minimax:tool_call>",), "minimax_m2"),
    (("[TOOL_CALLS]", "[ARGS]"), "mistral"),
    (("[TOOL_CALLS]",), "mistral_list"),
    (("<|plugin|>",), "internlm"),
    (("<|tool_call_start|>", "```python"), "minicpm"),
    (('{"name": function name, "parameters":',), "llama3_json"),
    (("<|python_tag|>",), "llama3_json"),
    (("<|python_start|>",), "pythonic"),
    (("[func_name1(",), "pythonic"),
)
"""A template with all these texts belongs to this format; the first match counts."""
_REASONING_BY_MARKERS = (
    (("<|channel|>", "<|message|>"), _HARMONY),
    (("[THINK]",), "mistral"),
    (("<|thought_start|>",), "minicpm"),
    (("think>", "<arg_key>"), "glm45"),
    (("think>", "<｜Assistant｜>"), "deepseek_r1"),
    (("think>", "<|tool_calls_section_begin|>"), "kimi_k2"),
    (("think>", "<minimax:tool_call>"), "minimax_m2"),
    (("think>",), "qwen3"),
)
_CALLS_BY_FAMILY = {
    "deepseek_v3": "deepseek_v3",
    "glm4_moe": "glm45",
    "glm4_moe_lite": "glm47",
    "gpt_oss": _HARMONY,
    "internlm2": "internlm",
    "internlm3": "internlm",
    "llama4": "pythonic",
    "minicpm": "minicpm",
    "minicpm3": "minicpm",
    "minimax_m2": "minimax_m2",
    "mistral": "mistral_list",
    "mistral3": "mistral_list",
}
"""Formats of families whose template may not mention tools."""


class Formats(Struct, frozen=True, array_like=True):
    """Names of formats, keys of CALL_FORMATS and REASONING_FORMATS. None: it is text."""

    tool_calls: str | None = None
    reasoning: str | None = None

    @property
    def harmony(self) -> bool:
        """One format for the whole answer: messages with channels."""
        return _HARMONY in (self.tool_calls, self.reasoning)


def detect_formats(template: str, model_type: str) -> Formats:
    """The formats of a model, from the markers in its chat template, else from its family (`model_type`).

    A model without its own format is expected to write "hermes", the most common one.
    """
    calls = _first(_CALLS_BY_MARKERS, template) or _CALLS_BY_FAMILY.get(model_type, "hermes")
    return Formats(calls, _first(_REASONING_BY_MARKERS, template) or (_HARMONY if calls == _HARMONY else None))


def marker_tokens(formats: Formats) -> tuple[str, ...]:
    """The markers of the formats. If they are special tokens, the parser needs them in the text."""
    if formats.harmony:
        return HARMONY.markers
    calls = CALL_FORMATS[formats.tool_calls].markers if formats.tool_calls else ()
    reasoning = REASONING_FORMATS[formats.reasoning] if formats.reasoning else None
    return (*calls, *((reasoning.begin, reasoning.end) if reasoning else ()))


def opens_reasoning(formats: Formats, prompt: str) -> bool:
    """Whether `prompt` (its last characters are enough) ends within reasoning, as some templates let it begin."""
    reasoning = REASONING_FORMATS[formats.reasoning] if formats.reasoning else None
    return reasoning is not None and prompt.rstrip().endswith(reasoning.begin)


def reasoning_end(formats: Formats) -> str | None:
    """The text that stands between reasoning and the answer; None if the model does not reason."""
    return REASONING_FORMATS[formats.reasoning].end if formats.reasoning else None


def _first(table: tuple[tuple[tuple[str, ...], str], ...], template: str) -> str | None:
    return next((name for markers, name in table if all(marker in template for marker in markers)), None)
