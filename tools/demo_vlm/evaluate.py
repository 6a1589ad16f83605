"""Asks a server about held-out scenes, with greedy decoding, and says how often it is right.

    python -m tools.demo_vlm.evaluate [--scenes 1000] [--url URL | --model-dir DIR] [--card] [--out FILE]

Without --url it starts a server of its own: `lightllm-mp serve --enable-multimodal`, with the demo model or the one of
--model-dir. Prints a table by kind of question and writes a line of JSON for each answer to --out. --card puts the
table into the model's README.md. The exit code is 1 where a target is missed.

    python -m tools.demo_vlm.evaluate --examples examples

draws the example pictures and prints what the truth about them is.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import sys
import tempfile
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
from PIL import Image

from lightllm_mp.model_files.default_model import demo_model
from lightllm_mp.text.tokenizer import load_tokenizer
from tools.demo_vlm.card import TARGETS, Figures, table, trained_in, write_card
from tools.demo_vlm.drawing import drawn
from tools.demo_vlm.prompts import QUESTION, styles
from tools.demo_vlm.questions import KINDS, asked, general
from tools.demo_vlm.scenes import Scene, Thing, sample
from tools.harness.command_line import ToolParser
from tools.harness.serving import serving

SEED, EXAMPLES_SEED = 3, 4
"""Of the scenes asked about, and of the looks of the examples: others than those of training."""
QUESTIONS = 3
"""Of a scene."""
MOST_TOKENS = 32
TOGETHER = 8
"""Requests at a time."""
EXAMPLES = {
    "circle": Scene("single", 240, 240, (Thing("red", "circle", 0.03, -0.02, 0.27, "large", "middle"),)),
    "star": Scene("single", 240, 240, (Thing("blue", "star", -0.3, 0.28, 0.16, "medium", "bottom left"),)),
    "pair": Scene(
        "pair",
        320,
        240,
        (
            Thing("green", "triangle", -0.37, 0.08, 0.17, relation="left of"),
            Thing("purple", "square", 0.36, -0.06, 0.16, relation="right of"),
        ),
    ),
    "hearts": Scene(
        "groups",
        240,
        240,
        (
            *(Thing("pink", "heart", x, y, 0.09) for x, y in ((-0.3, -0.28), (0.02, 0.0), (0.3, 0.31))),
            *(Thing("black", "ring", x, y, 0.08) for x, y in ((0.32, -0.3), (-0.28, 0.3))),
        ),
    ),
    "word": Scene("word", 320, 240, text="HELLO", colour="blue"),
    "number": Scene("word", 240, 240, text="42", colour="orange"),
}


@dataclass(frozen=True, slots=True)
class Asking:
    """A question about a picture (a PNG file), and the true answer."""

    scene: int
    kind: str
    question: str
    answer: str
    file: bytes


def main(argv: Sequence[str] | None = None) -> int:
    parser = ToolParser(__doc__, scenes=2)
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--url", help="of a server that runs already")
    parser.add_argument("--model-dir", type=Path, help="of the server to start; without it the demo model")
    parser.add_argument("--card", action="store_true", help="write the table into the model's README.md")
    parser.add_argument("--out", type=Path, help="file for a line of JSON for each answer")
    parser.add_argument("--examples", type=Path, help="draw the examples into this folder, and nothing else")
    flags = parser.parse(argv)
    if flags.examples is not None:
        write_examples(flags.examples)
        return 0
    with contextlib.ExitStack() as stack:
        folder = flags.model_dir
        if folder is None and flags.smoke:
            folder = untrained(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        folder = folder or demo_model()
        url = flags.url or stack.enter_context(serving("--enable-multimodal", "--model-dir", str(folder))).base_url
        out = stack.enter_context(flags.out.open("w")) if flags.out else None
        figures = evaluate(url, prompt(folder), askings(flags.scenes), out)
    print(table(figures))
    if flags.card:
        write_card(folder, trained_in(folder), figures, f"through the server, tools.demo_vlm.evaluate, seed {SEED}")
    missing = any(kind in figures and missed(figures[kind], least) for kind, least in TARGETS.items())
    return int(missing and not flags.smoke)


def missed(one: Figures, least: float) -> bool:
    return one.right < least * one.asked


def untrained(folder: Path) -> Path:
    """`folder`, with a tiny tower and a tiny language model of random weights in it."""
    from tests.demo_vlm.tiny_language import HIDDEN, write_tiny_language
    from tools.demo_vlm.tower import Shape, Tower, write_model

    write_tiny_language(folder / "tiny.gguf")
    write_model(folder, Tower(Shape(image=48, patch=16, width=32, layers=2, heads=2, out=HIDDEN)), "tiny.gguf")
    return folder


def askings(scenes: int, seed: int = SEED) -> Iterator[Asking]:
    """Questions about so many scenes."""
    for number in range(scenes):
        draw = np.random.default_rng((seed, number))
        scene = sample(draw)
        file = png(drawn(scene, draw))
        for one in asked(scene, draw, QUESTIONS):
            yield Asking(number, one.kind, one.question, one.answer, file)


def png(picture: Image.Image) -> bytes:
    data = io.BytesIO()
    picture.save(data, "PNG", optimize=True)
    return data.getvalue()


def prompt(model: Path) -> str:
    """The chat of the model, with the picture's tag and QUESTION in the user's turn."""
    template = load_tokenizer(model).chat_template
    assert template is not None
    return styles(template)[0].text


def evaluate(url: str, chat: str, asking: Iterable[Asking], out: TextIO | None = None) -> dict[str, Figures]:
    """Accuracy by kind of question, in the order of questions.KINDS: the whole answer must be the true one."""
    counts: dict[str, list[int]] = {kind: [0, 0] for kind in KINDS}
    with ThreadPoolExecutor(TOGETHER) as pool:
        for one, said in pool.map(
            lambda one: (one, answer(url, chat.replace(QUESTION, one.question), one.file)), asking
        ):
            right = normal(said) == normal(one.answer)
            counts[one.kind][0] += 1
            counts[one.kind][1] += right
            if out is not None:
                line = {"scene": one.scene, "kind": one.kind, "question": one.question, "answer": one.answer}
                out.write(json.dumps({**line, "said": said, "right": right}) + "\n")
    return {kind: Figures(*count) for kind, count in counts.items() if count[0]}


def normal(text: str) -> str:
    """Without what is of no matter to whether an answer is true."""
    return text.strip().rstrip(".").casefold()


def answer(url: str, prompt: str, file: bytes) -> str:
    """What the server says to a prompt with one picture."""
    picture = {"type": "base64", "data": base64.b64encode(file).decode()}
    parameters = {"max_new_tokens": MOST_TOKENS, "do_sample": False}
    body = {"inputs": prompt, "parameters": parameters, "multimodal_params": {"images": [picture]}}
    request = urllib.request.Request(f"{url}/generate", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=120) as reply:
        return str(json.load(reply)["generated_text"][0])


def write_examples(folder: Path) -> None:
    """A PNG file for each of EXAMPLES, and what is in it on the standard output."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (name, scene) in enumerate(EXAMPLES.items()):
        picture = drawn(scene, np.random.default_rng((EXAMPLES_SEED, number)), clean=True)
        (folder / f"{name}.png").write_bytes(png(picture))
        print(f"{folder / name}.png: {general(scene)}")


if __name__ == "__main__":
    sys.exit(main())
