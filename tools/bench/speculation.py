"""Measures the gain of drafts: tokens a second with and without them (--speculative-algorithm ngram), in turns.

    python -m tools.bench.speculation [--tokens 300] [--rounds 5] [--parallel 1 4] [--file FILE]
                                      [more flags of lightllm-mp serve]

`edit`: repeat a code file with another name for its class, greedy and sampled. `story`: a text with few repetitions.
Rounds alternate between requests with `speculate` false and true; `--parallel` requests run at once. Prints the median
rates from the first to the last token and their ratio. Exit code 1 if a text differs.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from lightllm_mp import Engine
from lightllm_mp.cli.flags import resolve
from lightllm_mp.scheduler import slot_pool
from tools.harness.command_line import ToolParser
from tools.harness.figures import Figures
from tools.harness.models import write_tiny_model

CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
"""As the default model is asked."""
EDIT = "Repeat this Python file, but rename the class SlotPool to KvPool.\n\n```python\n{}```"
STORY = "Write a long story about a keeper of a lighthouse and her dog. Part {}."
DRAWN = {"do_sample": True, "temperature": 0.7, "top_p": 0.95}


@dataclass
class Answer:
    ids: list[int]
    first: float
    last: float


def ask(engine: Engine, prompt: str, parameters: dict[str, Any]) -> Answer:
    first, ids = 0.0, list[int]()
    for event in engine.stream(prompt, **parameters):
        first = first or perf_counter()
        ids.append(event.id)
    return Answer(ids, first, perf_counter())


def prompts(what: str, file: str, parallel: int) -> list[str]:
    if what == "story":
        return [CHAT.format(STORY.format(number + 1)) for number in range(parallel)]
    return [CHAT.format(EDIT.format(file)) + "```python\n"] * parallel


def rate(answers: list[Answer]) -> float:
    """Tokens a second from the first to the last token."""
    spent = max(answer.last for answer in answers) - min(answer.first for answer in answers)
    return sum(len(answer.ids) - 1 for answer in answers) / spent


def measure(figures: Figures, engine: Engine, what: str, file: str, parallel: int, how: dict[str, Any]) -> bool:
    """Print the rates of one workload. Returns False if a text differs."""
    asked, rounds = prompts(what, file, parallel), how["rounds"]
    drawn, equal = bool(how["rules"]), True
    rates: dict[bool, list[float]] = {False: [], True: []}
    with ThreadPoolExecutor(parallel) as threads:
        for number in range(rounds + 1):
            texts: list[list[list[int]]] = []
            for speculate in (False, True):
                common = {"max_new_tokens": how["tokens"], "speculate": speculate, **how["rules"]}

                def one(index: int, common: dict[str, Any] = common, number: int = number) -> Answer:
                    return ask(engine, asked[index], common | {"seed": 100 * number + index})

                answers = list(threads.map(one, range(parallel)))
                texts.append([answer.ids for answer in answers])
                if number:  # the first round fills the prompt cache
                    rates[speculate].append(rate(answers))
            equal = equal and texts[0] == texts[1]
    without, drafted = (statistics.median(found) for found in rates.values())
    ratio = statistics.median(b / a for a, b in zip(*rates.values(), strict=True))
    title = f"{what}, {'drawn' if drawn else 'greedy'}, {parallel} at once"
    figures.add(f"{title}: without drafts", without, "tokens/s")
    figures.add(f"{title}: with drafts", drafted, "tokens/s")
    figures.add(f"{title}: ratio", ratio, "times", equal=equal)
    return equal


def main(argv: Sequence[str] | None = None) -> int:
    parser = ToolParser(__doc__, tokens=12, rounds=1, parallel=[1])
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parallel", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--file", type=Path, default=Path(str(slot_pool.__file__)))
    parser.add_argument("--json", type=Path)
    flags, serve = parser.parse_some(argv)
    with tempfile.TemporaryDirectory() as folder:
        if flags.smoke:
            serve = ["--model-dir", str(write_tiny_model(Path(folder))), "--max-total-token-num", "20000", *serve]
        config, _ = resolve(["--speculative-algorithm", "ngram", "--log-level", "warning", *serve], os.environ)
        with Engine(config) as engine:
            file = flags.file.read_text("utf-8")
            figures, equal = Figures(), True
            for parallel in flags.parallel:
                for what, rules in (("edit", {}), ("edit", DRAWN), ("story", {}), ("story", DRAWN)):
                    how = {"tokens": flags.tokens, "rounds": flags.rounds, "rules": rules}
                    equal = measure(figures, engine, what, file, parallel, how) and equal
            figures.table()
            figures.write(flags.json)
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
