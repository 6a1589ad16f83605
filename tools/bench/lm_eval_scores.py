"""Compares scores of lm-eval over this server's APIs with those of transformers with the same weights.

    python -m venv /tmp/lm && /tmp/lm/bin/pip install 'lm-eval[api,hf]==0.4.13'
    python -m tools.bench.lm_eval_scores --lm-eval /tmp/lm/bin/lm_eval

The default model, with dense weights and in float32 on both sides, answers 20 questions: as multiple choice
(log-likelihoods of token ids, with echo), and as generated text, plain and as a chat. Exit code 1 if a score, a text or
a choice differs.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lightllm_mp.model_files.default_model import find_default_model
from tools.bench.transformers_child import convert
from tools.harness.command_line import ToolParser, skip
from tools.harness.serving import serving

QUESTIONS = (
    ("The opposite of hot is", "cold green seven table", 0),
    ("Two plus two equals", "sky four blue nine", 1),
    ("The capital of France is", "London Paris Tokyo milk", 1),
    ("Grass is usually", "purple loud green square", 2),
    ("A baby dog is called a", "kitten puppy calf chick", 1),
    ("Water freezes into", "ice sand gold wood", 0),
    ("The sun rises in the", "kitchen west north east", 3),
    ("You read a", "soup book cloud river", 1),
    ("A triangle has this many sides:", "three four nine ten", 0),
    ("Birds can", "type fly drive boil", 1),
    ("The color of a ripe banana is", "blue yellow black pink", 1),
    ("The day after Monday is", "Sunday Tuesday Friday June", 1),
    ("We sleep at", "night fork apple paper", 0),
    ("Fish live in the", "fire sky water desk", 2),
    ("The first month of the year is", "May January Monday winter", 1),
    ("A car drives on the", "moon spoon piano road", 3),
    ("Sugar tastes", "sweet loud tall heavy", 0),
    ("The largest ocean is the", "Pacific Baltic Arctic garden", 0),
    ("An apple is a kind of", "metal animal fruit car", 2),
    ("Snow is", "hot white green loud", 1),
)
CHOICE, TEXT = "choice", "text"
TASKS = {
    CHOICE: """output_type: multiple_choice
doc_to_target: answer
doc_to_choice: choices
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""",
    TEXT: """output_type: generate_until
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 12, do_sample: false, temperature: 0.0}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true, ignore_case: true}]
filter_list: [{name: word, filter: [{function: regex, regex_pattern: '(\\w+)'}, {function: take_first}]}]
""",
}
ANSWERS = "filtered_resps"
"""Field of a sample: the log-likelihood of each choice, and whether it is greedy."""
CLOSE = 1e-3
"""Tolerance of two log-likelihoods in float32."""


def write_files(folder: Path) -> None:
    """The model for both sides, and the tasks."""
    from transformers import AutoTokenizer

    gguf = find_default_model(fetch=False)
    convert(gguf, folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
    rows = [{"question": q, "choices": choices.split(), "answer": answer} for q, choices, answer in QUESTIONS]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in TASKS.items():
        data = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {folder}/rows.jsonl}}}}\ntest_split: test\n"
        (folder / f"{name}.yaml").write_text(f'task: {name}\n{data}doc_to_text: "{{{{question}}}}"\n{text}')


def evaluate(program: str, folder: Path, model: str, options: str, tasks: str, limit: int, *more: str) -> Path:
    """Runs lm-eval; returns the folder of its results."""
    out = folder / f"{model}-{tasks}-{len(more)}"
    words = ["run", "--model", model, "--model_args", options, "--tasks", tasks, "--include_path", str(folder)]
    words += ["--batch_size", "1", "--limit", str(limit), "--output_path", str(out), "--log_samples", *more]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OPENAI_API_KEY": "none", "OMP_NUM_THREADS": "1"}
    subprocess.run([program, *words], env=os.environ | offline, check=True, stdout=subprocess.DEVNULL)
    return out


def samples(out: Path, task: str) -> list[dict[str, Any]]:
    (file,) = out.rglob(f"samples_{task}_*.jsonl")
    return sorted((json.loads(line) for line in file.read_text().splitlines()), key=lambda row: int(row["doc_id"]))


def agree(ours: Path, theirs: Path, task: str) -> bool:
    """Prints the scores; returns whether both sides agree."""
    metric = "acc" if task == CHOICE else "exact_match"
    pairs = list(zip(samples(ours, task), samples(theirs, task), strict=True))
    scores = [sum(row[metric] for row in side) / len(side) for side in zip(*pairs, strict=True)]
    found = f"{metric} {scores[0]:.3f}, transformers {scores[1]:.3f}"
    if task == CHOICE:
        both = [(a, b) for one, other in pairs for a, b in zip(one[ANSWERS], other[ANSWERS], strict=True)]
        apart = max(abs(float(a[0]) - float(b[0])) for a, b in both)
        found += f"; log-likelihoods differ by at most {apart:.1e}"
        same = apart < CLOSE and all(a[1] == b[1] for a, b in both)
    else:
        equal = sum(one["resps"] == other["resps"] for one, other in pairs)
        found += f"; {equal} of {len(pairs)} texts are equal"
        same = equal == len(pairs)
    print(f"{ours.name}: {found}", flush=True)
    return scores[0] == scores[1] and same


def main(argv: Sequence[str] | None = None) -> int:
    parser = ToolParser(__doc__, limit=2)
    parser.add_argument("--lm-eval", default="lm_eval", help="the program of lm-eval")
    parser.add_argument("--limit", type=int, default=len(QUESTIONS), help="questions")
    flags = parser.parse(argv)
    program = shutil.which(flags.lm_eval) or skip(f"{flags.lm_eval}: no such program")
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_files(folder)
        local = f"pretrained={folder},dtype=float32"
        chat = "--apply_chat_template"
        theirs = evaluate(program, folder, "hf", local, f"{CHOICE},{TEXT}", flags.limit, "--device", "cpu")
        chatted = evaluate(program, folder, "hf", local, TEXT, flags.limit, "--device", "cpu", chat)
        with serving("--model-dir", str(folder), "--data-type", "float32") as server:
            url = f"base_url={server.base_url}/v1"
            options = f"{url}/completions,model=any,tokenizer={folder},num_concurrent=4"
            plain = evaluate(program, folder, "local-completions", options, f"{CHOICE},{TEXT}", flags.limit)
            options = f"{url}/chat/completions,model=any,num_concurrent=4"
            chats = evaluate(program, folder, "local-chat-completions", options, TEXT, flags.limit, chat)
        cases = ((plain, theirs, CHOICE), (plain, theirs, TEXT), (chats, chatted, TEXT))
        found = [agree(*case) for case in cases]
        return 0 if all(found) else 1


if __name__ == "__main__":
    sys.exit(main())
