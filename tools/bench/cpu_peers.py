"""Compares this engine, llama.cpp and transformers on one CPU: same weights, threads and prompts, interleaved.

    python -m tools.bench.cpu_peers --llama-server FOLDER/native/llama-server [--rounds 5] [--json FILE]
    python -m tools.bench.cpu_peers --llama-server FOLDER/avx2/llama-server --cpu avx2
    python -m tools.bench.cpu_peers --only requests decode --requests 1 16 --tokens 128 --rounds 9
    python -m tools.bench.cpu_peers --only prefill depth --prefill 2048 32768 --depth 2048 32768 --model LONG.gguf

`bash tools/bench/build_llama.sh FOLDER [native|avx2]` builds llama-server from the source inside PyPI's package
llama-cpp-python; without --llama-server its columns are empty. transformers needs the extra `bench`; it gets dense
weights made from the same GGUF file, in float32 and in bfloat16.

First each program starts alone, for its memory and the time until it is healthy. Then all run, and each figure is
measured on one program after another while the rest idle: the last line says how much CPU they take meanwhile. A
round's prompts are random ids that no other round has; prefix caches are off. The engine and llama.cpp are asked over
HTTP and stream; transformers gets all requests of a figure as one padded batch, in its own process. Every answer has
exactly the requested number of tokens. On a shared machine each measurement waits until other programs are quiet and is
repeated if they were not. The table has medians of the undisturbed rounds.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightllm_mp.errors import EngineError
from lightllm_mp.model_files.default_model import find_default_model
from lightllm_mp.model_files.gguf_header import read_header
from tests.demo_vlm.tiny_language import write_tiny_language
from tools.bench.peer_table import ratios, summary, table
from tools.bench.peers import Peer, PeerError, TransformersPeer, convert, engine, llama, llama_facts
from tools.bench.rounds import STARTS, Figure, Machine, Results, Run, works
from tools.harness.command_line import ToolParser
from tools.harness.figures import say

ROOT = Path(__file__).resolve().parents[2]
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
"""Environment that limits torch's own kernels and libraries to AVX2."""
LEVEL = """
from lightllm_mp.kernels.cpu import runtime
runtime.obey_environment()
print(runtime.native() and runtime.native().level())
"""
"""A program that prints the level of instructions that a worker uses."""


def describe(flags: argparse.Namespace, model: Path, environment: dict[str, str]) -> dict[str, str]:
    """The heading: what is measured on which machine. Raises PeerError for a llama-server that does not suit --cpu."""
    facts = {
        "date": time.strftime("%Y-%m-%d"),
        "CPU": f"{cpu_name()}, {len(os.sched_getaffinity(0))} usable",
        "threads": str(flags.threads),
        "model": model.name,
        "engine": f"{commit()}, {flags.data_type}, {engine_level(environment)}",
        "torch": torch_facts(environment),
    }
    if flags.llama_server:
        version, instructions = llama_facts(flags.llama_server)
        if flags.cpu == "avx2" and "AVX512" in instructions:
            raise PeerError(f"--cpu avx2, but {flags.llama_server} uses AVX-512: build_llama.sh makes one for avx2")
        facts["llama.cpp"] = (
            f"{version}, {' '.join([f'{flags.slots} slots', *flags.llama_flags.split()])}; {instructions}"
        )
    if flags.transformers:
        facts["transformers"] = importlib.metadata.version("transformers")
    return facts


def cpu_name() -> str:
    found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text("utf-8"), re.MULTILINE)
    return found[1].strip() if found else os.uname().machine


def commit() -> str:
    """The revision of this working tree; `+` where it has changes."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--exclude", "*"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "no revision"


def engine_level(environment: dict[str, str]) -> str:
    """Which kernels the engine's workers choose in this environment."""
    level = python(LEVEL, environment)
    if level == "None":
        return "no C extension"
    return level


def torch_facts(environment: dict[str, str]) -> str:
    return python("import torch; print(torch.__version__, torch.backends.cpu.get_cpu_capability())", environment)


def python(program: str, environment: dict[str, str]) -> str:
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PeerError(f"python failed: {(done.stderr.strip().splitlines() or ['no reason'])[-1]}")
    return done.stdout.strip()


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    tiny = {"prefill": [64], "depth": [32], "requests": [2], "tokens": 4, "only": ["decode", "depth", "requests"]}
    parser = ToolParser(__doc__, **tiny, rounds=1, patience=0.0, transformers=False)
    parser.add_argument(
        "--llama-server", type=Path, metavar="PATH", help="llama.cpp's server (tools/bench/build_llama.sh)"
    )
    parser.add_argument("--llama-flags", default="", metavar="TEXT", help="more flags of llama-server")
    parser.add_argument("--model", type=Path, metavar="GGUF", help="Llama family; by default the small default model")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="compute threads of each")
    parser.add_argument("--slots", type=int, default=16, help="requests that llama-server runs at once; more wait")
    parser.add_argument("--cpu", help="LIGHTLLM_MP_CPU of the engine; avx2 keeps torch to AVX2, too")
    parser.add_argument("--data-type", default="auto", help="of the engine")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of each answer of decode and requests")
    parser.add_argument("--prefill", type=int, nargs="*", metavar="N", default=[512, 4096], help="lengths of prompts")
    parser.add_argument("--depth", type=int, nargs="*", metavar="N", default=[], help="prompts behind which to decode")
    parser.add_argument("--requests", type=int, nargs="*", metavar="N", default=[16, 64], help="how many at once")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=30.0, help="waits, and begins rounds, no longer")
    parser.add_argument("--patience", type=float, default=30.0, help="seconds to wait for other programs, each time")
    parser.add_argument(
        "--only", nargs="+", metavar="FIGURE", help="figures whose key begins so: start, prefill-512, ..."
    )
    parser.add_argument("--no-transformers", dest="transformers", action="store_false")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all values of all rounds")
    flags = parser.parse(argv)
    lengths = (*flags.prefill, *flags.depth)
    if min(flags.tokens - 1, flags.rounds, flags.threads, flags.slots, *lengths, *flags.requests) < 1:
        parser.error("--tokens must be 2 or more, all other counts 1 or more")
    return flags


def choose(flags: argparse.Namespace) -> list[Figure]:
    """The figures that --only names. Raises PeerError if it names none."""
    figures = [*STARTS, *works(flags.prefill, flags.depth, flags.requests, flags.tokens)]
    if not flags.only:
        return figures
    unknown = [word for word in flags.only if not any(figure.key.startswith(word) for figure in figures)]
    if unknown:
        raise PeerError(f"no figure begins with {unknown[0]!r}; there are {', '.join(f.key for f in figures)}")
    return [figure for figure in figures if figure.key.startswith(tuple(flags.only))]


def run(flags: argparse.Namespace, folder: Path) -> None:
    figures, model = choose(flags), flags.model
    if flags.smoke and model is None:
        model = folder / "tiny.gguf"
        write_tiny_language(model)
    model = model or find_default_model()
    vocab = len(read_header(model, wanted=lambda key: key == "tokenizer.ggml.tokens")["tokenizer.ggml.tokens"])
    environment = {"LIGHTLLM_MP_CPU": flags.cpu} if flags.cpu else {}
    environment |= AVX2 if flags.cpu == "avx2" else {}
    facts = describe(flags, model, environment)
    peers: list[Peer] = [engine(model, flags.threads, flags.data_type, environment, folder / "engine.log")]
    if flags.llama_server:
        # Room for the longest prompt with its answer, and for the short ones of all slots with theirs.
        longest = max((*flags.prefill, *flags.depth), default=0)
        context = max(8192, longest + 64 + flags.tokens, flags.slots * (64 + flags.tokens))
        log, more = folder / "llama.log", shlex.split(flags.llama_flags)
        peers.append(llama(flags.llama_server, model, flags.threads, flags.slots, context, more, log))
    if flags.transformers:
        convert(model, folder, folder / "convert.log")
        for dtype in ("float32", "bfloat16"):
            log = folder / f"{dtype}.log"
            peers.append(TransformersPeer(folder, dtype, flags.threads, environment, log))
    machine = Machine(flags.patience, 60 * flags.minutes)
    whole = Run(peers, figures, vocab, flags.rounds, flags.minutes, machine)
    try:
        whole.measure()
    finally:  # show the measured figures however the run ends
        show(facts, figures, whole.results)
        if flags.json:
            flags.json.write_text(json.dumps(as_json(facts, figures, whole.results), indent=1) + "\n", "utf-8")


def show(facts: dict[str, str], figures: list[Figure], results: Results) -> None:
    for name, fact in facts.items():
        print(f"{name}: {fact}")
    print(f"\n{table(figures, results.samples)}\n")
    print(
        "Medians of the undisturbed rounds. ~: other programs took CPU in all rounds; the best is shown, and a ratio\n"
        "of it says little. A ratio above 1: the engine is better, whichever way the figure counts."
    )
    idle = ", ".join(f"{name} {share:.1f} %" for name, share in results.idle_percent().items())
    if idle:
        print(f"What each took of a core while the others were measured: {idle}.")


def as_json(facts: dict[str, str], figures: list[Figure], results: Results) -> dict[str, Any]:
    rows = []
    for figure in figures:
        samples = results.samples[figure.key]
        found = {name: summary(figure, values) for name, values in samples.items()}
        row: dict[str, Any] = {"key": figure.key, "title": figure.title, "unit": figure.unit}
        row["more_is_better"] = figure.more_is_better
        row["disturbed"] = [name for name, one in found.items() if one and one.disturbed]
        row["values"] = {name: one.value for name, one in found.items() if one}
        row["ratio_llama"], row["ratio_transformers"] = (one and one.value for one in ratios(figure, found))
        row["rounds"] = {name: [sample._asdict() for sample in values] for name, values in samples.items()}
        rows.append(row)
    return {"facts": facts, "idle_percent": results.idle_percent(), "figures": rows}


def main(argv: Sequence[str] | None = None) -> int:
    flags = parse(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the programs end too
    if flags.transformers and importlib.util.find_spec("transformers") is None:
        say("cpu_peers: transformers is not installed (the extra `bench`): its columns stay empty")
        flags.transformers = False
    try:
        with tempfile.TemporaryDirectory(prefix="cpu_peers-") as folder:
            run(flags, Path(folder))
    except (PeerError, EngineError) as error:
        say(f"cpu_peers: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
