"""The command `lightllm-mp bench`."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightllm_mp.errors import ConfigError
from lightllm_mp.flags.parser import Parser, parse

if TYPE_CHECKING:
    from lightllm_mp.bench.client import Outcome

DESCRIPTION = """\
Send a workload to a running server that speaks /generate_stream (or, with --no-stream, /generate) and report
throughput, time to first token, time between tokens and time of the whole answer. Exit code 1 if a request failed."""


def main(argv: Sequence[str]) -> int:
    """Run the benchmark that `argv` describes. Raises ConfigError for wrong flags."""
    args = _parse(argv)
    figures = _run(args)
    print(json.dumps(figures) if args.json else _described(figures))
    return 1 if figures["failed"] else 0


def _described(figures: dict[str, Any]) -> str:
    from lightllm_mp.bench.report import table

    return table(figures)


def _run(args: argparse.Namespace) -> dict[str, Any]:
    # aiohttp is imported here: `bench --help` answers without it.
    import asyncio

    from lightllm_mp.bench import workload
    from lightllm_mp.bench.client import Target, drive
    from lightllm_mp.bench.report import summarize

    shape = {"seed": args.seed, "prompt": args.prompt, "vocab": args.vocab}
    requests = workload.make(args.num_requests, args.input_len, args.output_len, **shape)
    warmup = workload.make(args.warmup, args.input_len, args.output_len, name="warmup-", **shape)
    target = Target(args.url, not args.no_stream, args.ignore_eos, args.timeout, _key(args.api_key_file))

    async def run() -> list[Outcome]:
        await drive(target, warmup, concurrency=args.concurrency)
        progress = _progress(len(requests)) if sys.stderr.isatty() else lambda outcome: None
        return await drive(
            target, requests, rate=args.rate, concurrency=args.concurrency, seed=args.seed, on_done=progress
        )

    settings = {name: value for name, value in vars(args).items() if name not in ("json", "api_key_file")}
    if args.rate is not None:
        settings["rate"] = args.rate if math.isfinite(args.rate) else "inf"
        del settings["concurrency"]
    return {"settings": settings, **summarize(asyncio.run(run()))}


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(prog="lightllm-mp bench", description=DESCRIPTION, allow_abbrev=False, formatter_class=_Formatter)
    add = parser.add_argument
    add("--url", default="http://127.0.0.1:8000", help="base address of the server")
    add("--num-requests", type=_at_least(1), default=100, metavar="N", help="how many requests")
    lengths = "N, uniform:a-b or sharegpt"
    add("--input-len", default="sharegpt", metavar="LEN", help=f"prompt lengths in tokens: {lengths}")
    add("--output-len", default="sharegpt", metavar="LEN", help=f"answer lengths in tokens: {lengths}")
    add("--prompt", choices=("ids", "text"), default="ids", help="prompts of token ids, or of that many words")
    add("--vocab", type=_at_least(2), default=32000, metavar="N", help="ids are drawn below this")
    load = parser.add_mutually_exclusive_group()
    load.add_argument("--rate", type=_positive, metavar="R", help="requests per second, Poisson; inf: all at once")
    load.add_argument("--concurrency", type=_at_least(1), default=16, metavar="C", help="requests at a time")
    add("--seed", type=int, default=0, metavar="N", help="lengths, prompts and arrivals follow from it")
    add("--ignore-eos", action="store_true", help="answers go on to their full length")
    add("--no-stream", action="store_true", help="use /generate; only whole answers are timed")
    add("--warmup", type=_at_least(0), default=1, metavar="N", help="requests sent before, not counted")
    add("--timeout", type=_positive, default=600.0, metavar="SECONDS", help="longest time for one answer")
    add("--api-key-file", metavar="PATH", help="file whose first line is the API key to send")
    add("--json", action="store_true", help="print one JSON object instead of the table")
    flags = [flag for action in parser._actions for flag in action.option_strings]
    args = parse(parser, argv, flags)
    if not args.url.startswith(("http://", "https://")):
        raise ConfigError(f"--url: expected http://HOST:PORT, got {args.url!r}")
    return args


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults are shown where there are some, the description is left as it stands."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)


def _at_least(low: int) -> Callable[[str], int]:
    def whole(text: str) -> int:
        value = int(text)
        if value < low:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {low}, got {text!r}")
        return value

    whole.__name__ = "whole number"
    return whole


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


_positive.__name__ = "number"


def _key(file: str | None) -> str | None:
    if file is None:
        return None
    try:
        return Path(file).read_text(encoding="utf-8").split()[0]
    except (OSError, UnicodeDecodeError, IndexError):
        raise ConfigError(f"--api-key-file {file}: no key can be read there") from None


def _progress(total: int) -> Callable[[Outcome], None]:
    done = failed = 0

    def tick(outcome: Outcome) -> None:
        nonlocal done, failed
        done, failed = done + 1, failed + (outcome.error is not None)
        print(f"\r{done}/{total} answered, {failed} failed", end="\n" if done == total else "", file=sys.stderr)

    return tick
