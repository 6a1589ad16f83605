"""Reasoning before an answer, between two tags. The names are those of --reasoning-parser."""

from __future__ import annotations

from msgspec import Struct

from lightllm_mp.parsers.delta_writer import DeltaWriter
from lightllm_mp.parsers.text_reader import Parsing, TextReader


class ReasoningFormat(Struct, frozen=True):
    begin: str
    end: str

    def parse(self, reader: TextReader, writer: DeltaWriter, inside: bool) -> Parsing[None]:
        """Reads the reasoning at the beginning of the answer, if there is any. `inside`: the prompt has begun it."""
        char = yield from reader.spaces(writer.content)
        begun = char == self.begin[0] and (yield from reader.starts(self.begin))
        if begun or inside:
            writer.begin_reasoning()
            yield from reader.until((self.end,), writer.reasoning)
            writer.end_reasoning()


THINK = ReasoningFormat("<think>", "</think>")
REASONING_FORMATS: dict[str, ReasoningFormat] = {
    "deepseek_r1": THINK,
    "qwen3": THINK,
    "glm45": THINK,
    "mistral": ReasoningFormat("[THINK]", "[/THINK]"),
    "minicpm": ReasoningFormat("<|thought_start|>", "<|thought_end|>"),
}
