"""Reasoning before an answer, between two tags. The names are those of --reasoning-parser."""

from __future__ import annotations

from msgspec import Struct

from lightllm_mp.parsers.delta_writer import DeltaWriter
from lightllm_mp.parsers.text_reader import Parsing, TextReader
from lightllm_mp.parsers.tool_calls.harmony import CHANNEL, FINAL, MESSAGE


class ReasoningFormat(Struct, frozen=True):
    """`end`: the answer follows it."""

    begin: str
    end: str

    def parse(self, reader: TextReader, writer: DeltaWriter, inside: bool) -> Parsing[None]:
        """Reads reasoning at the beginning of the answer, if there is any. `inside`: the prompt has begun it."""
        spaces: list[str] = []
        yield from reader.spaces(spaces.append)
        begun = yield from reader.starts(self.begin)
        if begun or inside:
            writer.begin_reasoning()
            yield from reader.until((self.end,), writer.reasoning)
        writer.end_reasoning()
        if not (begun or inside):
            writer.content("".join(spaces))


THINK = ReasoningFormat("<think>", "</think>")
HARMONY_REASONING = ReasoningFormat(f"{CHANNEL}analysis{MESSAGE}", FINAL)
"""The parser of the whole answer reads it."""
REASONING_FORMATS: dict[str, ReasoningFormat] = {
    "deepseek_r1": THINK,
    "glm45": THINK,
    "gpt_oss": HARMONY_REASONING,
    "kimi_k2": THINK,
    "minicpm": ReasoningFormat("<|thought_start|>", "<|thought_end|>"),
    "minimax_m2": THINK,
    "mistral": ReasoningFormat("[THINK]", "[/THINK]"),
    "qwen3": THINK,
}
