"""The command `lightllm-mp inspect`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from lightllm_mp.cli.flags.parser import Parser, parse
from lightllm_mp.errors import ConfigError
from lightllm_mp.machine import format_bytes
from lightllm_mp.model_files.default_model import not_there

if TYPE_CHECKING:
    from lightllm_mp.cli.inspect.report import ModelReport

DATA_TYPES = ("auto", "float32", "bfloat16", "float16")
DESCRIPTION = """Describe a model without loading it: family, sizes, tokenizer, problems. Exit code 1 if the model
cannot be served."""


def parser() -> Parser:
    found = Parser(prog="lightllm-mp inspect", description=DESCRIPTION, allow_abbrev=False)
    found.add_argument("model", metavar="PATH", help="Hugging Face folder or .gguf file")
    found.add_argument("--data-type", choices=DATA_TYPES, default="auto", help="type of weights and KV")
    found.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    return found


def main(argv: Sequence[str]) -> int:
    """Prints the report. ConfigError for wrong flags, ModelError for a model that is not supported."""
    args = parse(parser(), argv)
    path = Path(args.model).expanduser()
    if not path.exists():
        raise ConfigError(f"{args.model}: {not_there(args.model)}")
    # Imported here, so that `inspect --help` is quick.
    from lightllm_mp.cli.inspect.report import inspect

    report = inspect(path, data_type=args.data_type)
    print(msgspec.json.encode(report).decode() if args.json else described(report))
    return 1 if report.problems else 0


def described(r: ModelReport) -> str:
    lines = [
        ("model", r.path),
        ("family", f"{r.family} ({r.architecture}){', ' + r.kind + ' model' if r.kind != 'text' else ''}"),
        ("parameters", f"{r.parameters:,}"),
        ("files", f"{format_bytes(r.file_bytes)}, mostly {r.file_dtype}"),
        ("weights", f"{format_bytes(r.weight_bytes)} as {r.data_type}"),
        ("KV", f"{r.kv_bytes_per_token:,} bytes per token"),
        *(
            [("states", f"{format_bytes(r.state_bytes)} per sequence, of {r.sequences:,} at once")]
            if r.state_bytes
            else []
        ),
        ("context", f"{r.max_context:,} tokens"),
        ("device", f"{r.device}, {format_bytes(r.free_bytes)} free"),
        ("KV tokens", f"about {r.kv_tokens:,} fit" + (f", {r.window_tokens:,} in windows" if r.window_tokens else "")),
        ("tokenizer", r.tokenizer + ("" if r.chat_template or r.tokenizer == "none" else ", no chat template")),
        ("EOS ids", ", ".join(map(str, r.eos_ids)) or "unknown; set --eos-id"),
        *(("note", note) for note in r.notes),
        *(("PROBLEM", problem) for problem in r.problems),
    ]
    return "\n".join(f"{name:<11} {value}" for name, value in lines)
