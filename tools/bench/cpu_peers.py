"""This engine, llama.cpp and transformers on one CPU: same weights, same threads, same prompts, interleaved.

    python tools/bench/cpu_peers.py --llama-server FOLDER/native/llama-server [--rounds 5] [--json FILE]
    python tools/bench/cpu_peers.py --llama-server FOLDER/avx2/llama-server --cpu avx2
    python tools/bench/cpu_peers.py --only requests decode --rounds 9
    python tools/bench/cpu_peers.py --smoke

`bash tools/bench/build_llama.sh FOLDER [native|avx2]` builds llama-server from the source inside PyPI's package
llama-cpp-python; without --llama-server its columns are empty. transformers needs the extra `bench`; it gets dense
weights made from the same GGUF file, in float32 and in bfloat16.

First each program is started alone, in turn, for the time to its first answer about its health and for its memory. Then
all are up, and each figure is measured on one after the other while the rest idle: the table's last line says how much
CPU they take meanwhile. A round's prompts are random ids that no other round has; prefix caches are off. The engine and
llama.cpp are asked over HTTP and stream; transformers gets all requests of a figure as one padded batch, in its own
process. Every answer has exactly the tokens that were asked for. Medians of the rounds are shown.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import process_tree
from peers import Peer, PeerError, Prompts, Times, TransformersPeer, convert, engine, llama, llama_facts

from lightllm_mp.bench import workload
from lightllm_mp.errors import EngineError
from lightllm_mp.gguf_header import read_header
from lightllm_mp.text.default_model import find_default_model

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = ("engine", "llama.cpp", "transformers float32", "transformers bfloat16")
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
"""What keeps torch's own kernels and libraries to AVX2."""
LEVELS = ("portable C", "AVX-512 BF16", "AMX BF16")
"""What kernels.cpu's `level` means."""
BUSY = 5.0
"""Percent of a core: an idle program that takes more disturbs the others."""

Samples = dict[str, dict[str, list[float]]]
"""Values by figure and program, one for each round."""


@dataclass(frozen=True)
class Figure:
    """One line of the table."""

    key: str
    title: str
    unit: str
    more_is_better: bool


@dataclass(frozen=True)
class Work(Figure):
    """A figure that comes from answers: `requests` at once, with prompts of `length` (bench.workload) tokens."""

    requests: int
    length: str
    tokens: int
    value: Callable[[list[Times]], float]

    def prompts(self, vocab: int, name: str) -> Prompts:
        made = workload.make(self.requests, self.length, str(self.tokens), vocab=vocab, name=f"{self.key}-{name}-")
        return [list(map(int, request.prompt)) for request in made]


STARTS = (
    Figure("start", "start to ready", "s", False),
    Figure("memory", "resident memory after start", "MiB", False),
)


def works(prefills: Sequence[int], crowds: Sequence[int], tokens: int) -> list[Work]:
    """The figures of running programs. `tokens`: how many each answer has where they count."""

    def prefill(length: int) -> Work:
        return Work(
            f"prefill-{length}",
            f"prefill of {length:,} tokens",
            "tokens/s",
            True,
            requests=1,
            length=str(length),
            tokens=1,
            value=lambda answers: length / answers[0].first,
        )

    def crowd(requests: int) -> Work:
        return Work(
            f"requests-{requests}",
            f"{requests} requests at once, {tokens} tokens each",
            "tokens/s",
            True,
            requests=requests,
            length="uniform:14-51",
            tokens=tokens,
            value=lambda answers: sum(one.tokens for one in answers) / max(one.last for one in answers),
        )

    alone: dict[str, Any] = {"unit": "ms", "more_is_better": False, "requests": 1, "length": "16"}
    return [
        Work("first", "first token of a prompt of 16", tokens=1, value=lambda answers: 1e3 * answers[0].first, **alone),
        Work("decode", "decode alone, a token", tokens=tokens, value=lambda answers: 1e3 * gap(answers[0]), **alone),
        *map(prefill, prefills),
        *map(crowd, crowds),
    ]


def gap(answer: Times) -> float:
    """Seconds from token to token."""
    return (answer.last - answer.first) / (answer.tokens - 1)


def measure_starts(peers: list[Peer], wanted: list[Figure], samples: Samples, number: int) -> None:
    """Each program alone on the machine."""
    keys = {figure.key for figure in wanted}
    for peer in turned(peers, number):
        try:
            seconds = peer.start()
            time.sleep(1.0)  # what it does right after its start belongs to its memory
            values = {"start": seconds, "memory": process_tree.resident_mib(peer.pid)}
        finally:
            peer.stop()
        for key in keys & values.keys():
            samples[key][peer.name].append(values[key])


def measure_works(
    peers: list[Peer], wanted: list[Work], samples: Samples, number: int, vocab: int, idle: dict[str, list[float]]
) -> None:
    """Each figure on one program after the other, all of which are up."""
    for work in wanted:
        prompts = work.prompts(vocab, str(number))
        for peer in turned(peers, number):
            before = {other.name: process_tree.cpu_seconds(other.pid) for other in peers if other is not peer}
            start = time.perf_counter()
            samples[work.key][peer.name].append(work.value(peer.generate(prompts, work.tokens)))
            seconds = time.perf_counter() - start
            for other in peers:
                if other is not peer:
                    spent = idle[other.name]
                    spent[0] += process_tree.cpu_seconds(other.pid) - before[other.name]
                    spent[1] += seconds


def turned(peers: list[Peer], number: int) -> list[Peer]:
    """Another one goes first in each round."""
    first = number % len(peers)
    return peers[first:] + peers[:first]


def rounds(most: int, minutes: float) -> Iterator[int]:
    """0, 1, ... below `most`; none that would end after `minutes`, if it takes as long as those before."""
    start = time.monotonic()
    for number in range(most):
        spent = time.monotonic() - start
        if number and spent * (number + 1) / number > 60 * minutes:
            print(f"cpu_peers: no time for more than {number} of {most} rounds", file=sys.stderr)
            return
        yield number


def measure(
    peers: list[Peer], figures: list[Figure], vocab: int, most: int, minutes: float
) -> tuple[Samples, dict[str, float]]:
    """(values, idle percent of a core by program)"""
    samples: Samples = defaultdict(lambda: defaultdict(list))
    idle: dict[str, list[float]] = defaultdict(lambda: [0.0, 1e-9])
    starts = [figure for figure in figures if not isinstance(figure, Work)]
    running = [figure for figure in figures if isinstance(figure, Work)]
    if starts:
        for number in rounds(most, minutes / 3):
            say(f"starts, round {number + 1} of {most}")
            measure_starts(peers, starts, samples, number)
    if running:
        with contextlib.ExitStack() as stack:
            for peer in peers:
                stack.callback(peer.stop)
                peer.start()
                for work in running[:-1]:  # warm; the last one is the longest and has nothing new
                    peer.generate(work.prompts(vocab, "warm"), min(work.tokens, 4))
            for number in rounds(most, minutes):
                say(f"figures, round {number + 1} of {most}")
                measure_works(peers, running, samples, number, vocab, idle)
    return samples, {name: 100 * spent / seconds for name, (spent, seconds) in idle.items()}


def say(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def medians(samples: Samples) -> dict[str, dict[str, float]]:
    return {
        key: {name: statistics.median(values) for name, values in by_peer.items()} for key, by_peer in samples.items()
    }


def advantage(figure: Figure, mine: float | None, others: list[float]) -> float | None:
    """How many times as good the engine is as the best of `others`: above 1 it is better, whichever way it counts."""
    if mine is None or not others:
        return None
    return mine / max(others) if figure.more_is_better else min(others) / mine


def ratios(figure: Figure, values: dict[str, float]) -> tuple[float | None, float | None]:
    """(against llama.cpp, against the better transformers)"""
    mine, *others = (values.get(name) for name in COLUMNS)
    llama_values, theirs = ([v for v in part if v is not None] for part in (others[:1], others[1:]))
    return advantage(figure, mine, llama_values), advantage(figure, mine, theirs)


def table(figures: list[Figure], found: dict[str, dict[str, float]]) -> str:
    """Markdown."""
    names = ("figure", "engine", "llama.cpp", "ratio", "transformers fp32", "bf16", "ratio to the better")
    lines = [names, ("---",) * len(names)]
    for figure in figures:
        values = found.get(figure.key, {})
        shown = [number(values.get(name)) for name in COLUMNS]
        against_llama, against_transformers = (f"**{r:.2f}x**" if r else "-" for r in ratios(figure, values))
        head = (f"{figure.title}, {figure.unit}", *shown[:2], against_llama, *shown[2:], against_transformers)
        lines.append(head)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value: float | None) -> str:
    """About three digits."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def describe(flags: argparse.Namespace, model: Path, environment: dict[str, str]) -> dict[str, str]:
    """What was measured, on what. Raises PeerError for a llama-server that does not suit --cpu."""
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
        facts["llama.cpp"] = f"{version}, {flags.slots} slots; {instructions}"
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
    level = python("from lightllm_mp.kernels.cpu.runtime import native; n = native(); print(n and n.level())", environment)
    if level == "None":
        return "no C extension"
    return LEVELS[int(level)] if level.isdigit() and int(level) < len(LEVELS) else level


def torch_facts(environment: dict[str, str]) -> str:
    return python("import torch; print(torch.__version__, torch.backends.cpu.get_cpu_capability())", environment)


def python(program: str, environment: dict[str, str]) -> str:
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PeerError(f"python failed: {(done.stderr.strip().splitlines() or ['no reason'])[-1]}")
    return done.stdout.strip()


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-server", type=Path, metavar="PATH", help="llama.cpp's server (tools/bench/build_llama.sh)")
    parser.add_argument("--model", type=Path, metavar="GGUF", help="Llama family; by default the small default model")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="compute threads of each")
    parser.add_argument("--slots", type=int, default=16, help="requests that llama-server runs at once; more wait")
    parser.add_argument("--cpu", help="LIGHTLLM_MP_CPU of the engine; avx2 keeps torch to AVX2, too")
    parser.add_argument("--data-type", default="auto", help="of the engine")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of each answer of decode and requests")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=30.0, help="begin no round that would end later")
    parser.add_argument("--only", nargs="+", metavar="FIGURE", help="figures whose key begins so: start, prefill-512, ...")
    parser.add_argument("--no-transformers", dest="transformers", action="store_false")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all values of all rounds")
    parser.add_argument("--smoke", action="store_true", help="one tiny round of the engine alone")
    flags = parser.parse_args(argv)
    if flags.smoke:
        flags.rounds, flags.tokens, flags.transformers, flags.llama_server = 1, 8, False, None
    if flags.tokens < 2 or flags.rounds < 1:
        parser.error("--tokens must be 2 or more, --rounds 1 or more")
    return flags


def choose(flags: argparse.Namespace) -> list[Figure]:
    """The figures that --only names. Raises PeerError where it names none."""
    sizes = ((64, 128), (2, 4)) if flags.smoke else ((512, 4096), (16, 64))
    figures = [*STARTS, *works(*sizes, flags.tokens)]
    if not flags.only:
        return figures
    unknown = [word for word in flags.only if not any(figure.key.startswith(word) for figure in figures)]
    if unknown:
        raise PeerError(f"no figure begins with {unknown[0]!r}; there are {', '.join(f.key for f in figures)}")
    return [figure for figure in figures if figure.key.startswith(tuple(flags.only))]


def run(flags: argparse.Namespace, folder: Path) -> None:
    figures, model = choose(flags), flags.model or find_default_model()
    vocab = len(read_header(model, wanted=lambda key: key == "tokenizer.ggml.tokens")["tokenizer.ggml.tokens"])
    environment = {"LIGHTLLM_MP_CPU": flags.cpu} if flags.cpu else {}
    torch_environment = environment | (AVX2 if flags.cpu == "avx2" else {})
    facts = describe(flags, model, torch_environment)
    peers: list[Peer] = [engine(model, flags.threads, flags.data_type, torch_environment, folder / "engine.log")]
    if flags.llama_server:
        # Room for the longest prompt, and for all slots' short ones with their answers.
        context = max(8192, flags.slots * (64 + flags.tokens))
        peers.append(llama(flags.llama_server, model, flags.threads, flags.slots, context, folder / "llama.log"))
    if flags.transformers:
        convert(model, folder, folder / "convert.log")
        for dtype in ("float32", "bfloat16"):
            log = folder / f"{dtype}.log"
            peers.append(TransformersPeer(folder, dtype, flags.threads, torch_environment, log))
    samples, idle = measure(peers, figures, vocab, flags.rounds, flags.minutes)
    report(flags, facts, figures, samples, idle)


def report(
    flags: argparse.Namespace, facts: dict[str, str], figures: list[Figure], samples: Samples, idle: dict[str, float]
) -> None:
    found = medians(samples)
    for name, fact in facts.items():
        print(f"{name}: {fact}")
    print(f"\n{table(figures, found)}\n")
    print("Medians of the rounds. A ratio above 1: the engine is better, whichever way the figure counts.")
    if idle:
        shares = ", ".join(f"{name} {share:.1f} %" for name, share in idle.items())
        print(f"Idle while others were measured, of one core: {shares}.")
    if any(share > BUSY for share in idle.values()):
        print(f"cpu_peers: one that takes more than {BUSY:.0f} % when idle disturbs the others", file=sys.stderr)
    if flags.json:
        rows = [
            {name: value for name, value in asdict(figure).items() if name != "value"}
            | {"rounds": samples[figure.key], "medians": found[figure.key]}
            | dict(zip(("ratio_llama", "ratio_transformers"), ratios(figure, found[figure.key]), strict=True))
            for figure in figures
        ]
        flags.json.write_text(json.dumps({"facts": facts, "idle_percent": idle, "figures": rows}, indent=1) + "\n", "utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    flags = parse(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the programs are ended, too
    if flags.transformers and importlib.util.find_spec("transformers") is None:
        print("cpu_peers: transformers is not installed (the extra `bench`): its columns stay empty", file=sys.stderr)
        flags.transformers = False
    try:
        with tempfile.TemporaryDirectory(prefix="cpu_peers-") as folder:
            run(flags, Path(folder))
    except (PeerError, EngineError) as error:
        print(f"cpu_peers: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
