"""The mixed load of scripts/chaos.py: requests of every kind."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

Body = dict[str, Any]
SAMPLED: Body = {"do_sample": True, "temperature": 0.8}


@dataclass(frozen=True)
class Load:
    """How much a server is asked for: small requests for a model, many tokens where they cost nothing."""

    tokens: tuple[int, int]
    """Least and most tokens of an answer."""
    sentences: int
    """Of a long prompt."""
    too_long: int
    """Repetitions that give more tokens than fit, and not so many characters that nobody counts them."""
    images: bool = False


@dataclass(frozen=True)
class Case:
    """A request. `leave_after`: the client leaves after so many seconds (whole) or events (stream)."""

    kind: str
    path: str
    body: Body
    leave_after: float | None = None
    refused: bool = False
    """With 4xx."""

    @property
    def streams(self) -> bool:
        return self.path == "/generate_stream"


def texts(seed: int, load: Load) -> list[Case]:
    """Requests of every kind without images."""
    rng = random.Random(seed)
    found: list[Case] = []

    def add(
        kind: str,
        *,
        stream: bool,
        prompt: str | None = None,
        leave: float | None = None,
        refused: bool = False,
        **more: Any,
    ) -> None:
        number = len(found)
        inputs = prompt or _chat(f"Tell me a fact about the number {rng.randrange(1000)}.")
        parameters = {"max_new_tokens": rng.randint(*load.tokens), "ignore_eos": True, "seed": number, **more}
        path = "/generate_stream" if stream else "/generate"
        found.append(Case(kind, path, {"inputs": inputs, "parameters": parameters}, leave, refused))

    words = " ".join(f"{n} is a number." for n in range(load.sentences))
    for turn in range(2):
        for stream in (True, False):
            add("greedy", stream=stream)
            add("seeded", stream=stream, **SAMPLED)
            add("long prompt", stream=stream, prompt=f"{turn}{stream} {words}")
            add("logprobs", stream=stream, logprobs=3, return_details=True)
        add("n", stream=False, n=3, **SAMPLED)
        add("prompt logprobs", stream=False, prompt_logprobs=1)
        add("one token", stream=bool(turn), max_new_tokens=1)
        add("leaves", stream=True, leave=rng.randint(0, 8))
        add("leaves", stream=False, leave=rng.random() / 4)
        far = "far too long " * (load.too_long if turn else 20_000)
        add("too long", stream=bool(turn), prompt=far, refused=True)
    found.append(Case("count", "/tokens", {"text": words}))
    return found


def _chat(text: str) -> str:
    return f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


def with_stop(case: Case, text: str) -> Case:
    """The same request with a stop string from the middle of its answer, which is `text`."""
    stop = text[len(text) // 2 : len(text) // 2 + 3]
    parameters = {**case.body["parameters"], "stop_sequences": [stop]}
    return Case("stop string", case.path, {**case.body, "parameters": parameters})
