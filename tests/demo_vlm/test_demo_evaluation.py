"""The evaluation against a server that is not one: what is asked, what counts as right, and what is reported."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.paths import ROOT
from tools.demo_vlm import evaluate as evaluation
from tools.demo_vlm.card import Figures, table, trained_in, write_card
from tools.demo_vlm.evaluate import Asking, askings, evaluate, missed, write_examples

EXAMPLES = ROOT / "examples"
CHAT = "<user><image>\n{question}<assistant>"


@contextmanager
def answering(answers: dict[str, str]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The address of a server that knows answers by question, and the bodies it got."""
    bodies: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            bodies.append(body)
            said = answers[body["inputs"].split("\n")[1].split("<")[0]]
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"generated_text": [said]}).encode())

        def log_message(self, *arguments: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", bodies
        server.shutdown()
        thread.join()


def test_whole_answers_count() -> None:
    asking = [
        Asking(0, "object", "one?", "A red circle.", b"png"),
        Asking(0, "object", "two?", "A red circle.", b"png"),
        Asking(1, "relation", "three?", "Left of the blue star.", b"png"),
    ]
    out = io.StringIO()
    said = {"one?": " a red circle", "two?": "A red circle. A", "three?": "Left of the blue star."}
    with answering(said) as (url, bodies):
        figures = evaluate(url, CHAT, asking, out)
    assert figures == {"object": Figures(2, 1), "relation": Figures(1, 1)}
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [(line["question"], line["right"]) for line in lines] == [("one?", True), ("two?", False), ("three?", True)]
    assert sorted(body["inputs"] for body in bodies) == sorted(CHAT.replace("{question}", q) for q in said)
    image = {"type": "base64", "data": base64.b64encode(b"png").decode()}
    assert all(body["multimodal_params"] == {"images": [image]} for body in bodies)
    assert all(body["parameters"]["do_sample"] is False for body in bodies)


def test_targets() -> None:
    assert missed(Figures(100, 94), 0.95)
    assert not missed(Figures(100, 95), 0.95)
    assert "| 95 | 100 | 95.0% | 95% |" in table({"object": Figures(100, 95)})


def test_the_card_is_written_anew(tmp_path: Path) -> None:
    trained = {"image": 48, "patches": 36, "steps": 7, "pictures": 70, "seconds": 9, "device": "GPU"}
    write_card(tmp_path, trained, {"object": Figures(4, 3)}, "first")
    write_card(tmp_path, trained_in(tmp_path), {"object": Figures(8, 7)}, "second")
    card = (tmp_path / "README.md").read_text()
    assert "48 x 48 pixels and 36 patches" in card
    assert "7 steps, 70 pictures" in card
    assert "| 7 | 8 |" in card
    assert "| 3 | 4 |" not in card


def test_scenes_asked_about_are_those_of_the_seed() -> None:
    first = list(askings(3))
    assert first == list(askings(3)) != list(askings(3, seed=1))
    assert {one.scene for one in first} == {0, 1, 2}
    with Image.open(io.BytesIO(first[0].file)) as picture:
        assert picture.format == "PNG"


def test_the_examples_are_what_the_program_draws(tmp_path: Path) -> None:
    write_examples(tmp_path)
    assert sorted(file.name for file in EXAMPLES.glob("*.png")) == sorted(f"{n}.png" for n in evaluation.EXAMPLES)
    for file in EXAMPLES.glob("*.png"):
        shown, made = (np.asarray(Image.open(folder / file.name), np.int16) for folder in (EXAMPLES, tmp_path))
        # Another release of Pillow may round the edges otherwise.
        assert np.abs(shown - made).mean() < 1
