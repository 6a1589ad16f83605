"""Sends bodies of random shapes and of every size up to the limit to a running server.

    python -m tools.fuzz.large_bodies [--minutes 30] [--seed 0] [--found DIR]

The coverage-guided targets (run.py) see short inputs. Here a body is a valid request, some of whose values, names or
brackets are repeated until it is up to 32 MiB long; some are cut or damaged. The workers have no model
(tools/faults/hostile_requests.py). Meanwhile the tool asks /liveness and a stream runs. A body is found if its answer
is neither 200 nor 4xx, or if it delays the stream or /liveness by more than --gap ms; it is written to DIR. Exit code 1
if any is found, a process dies, or a request is live at the end.
"""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from tools.faults.hostile_requests import Watch, ask, number, serving
from tools.harness.command_line import ToolParser
from tools.harness.figures import Figures

MIB = 1 << 20
LIMIT = 32 * MIB
ROUTES = ("/generate", "/generate_stream", "/", "/tokens", "/get_score", "/v1/embeddings", "/v1/rerank", "/v1/score")
FIELDS = (
    *("inputs", "text", "chat", "ids", "parameters", "multimodal_params", "stream", "unknown"),
    *("input", "documents", "text_1", "text_2"),
)
PARAMETERS = ("logit_bias", "stop_sequences", "allowed_token_ids", "guided_json", "guided_grammar", "n", "unknown")
LETTERS = ("a", "9", " ", "\\n", "\\u0041", "\\ud83d\\ude00", "é", "😀", '\\"', "\x7f", "[", "{")


def sized(rng: random.Random, part: Callable[[int], str], size: int, between: str = ",") -> str:
    """A row of parts of about `size` characters."""
    count = max(size // (len(part(0)) + len(between)), 1)
    return between.join([part(i) for i in range(count)]) if rng.random() < 0.5 else between.join([part(0)] * count)


def text(rng: random.Random, size: int) -> str:
    letters = rng.sample(LETTERS, rng.randint(1, 3))
    chunk = "".join(rng.choices([x for x in letters if x not in '[{"'] or ["a"], k=64))
    return '"' + chunk * max(size // len(chunk), 1) + '"'


def numbers(rng: random.Random, size: int) -> str:
    number = rng.choice(("7", "-200", "2147483647", "1e308", "0.1", "1" * 300, "-0", "true", "null"))
    return "[" + sized(rng, lambda i: number, size) + "]"


def names(rng: random.Random, size: int) -> str:
    """An object with many names, all different or all alike."""
    value = rng.choice(("1", '"a"', "[]", "{}", "null"))
    return "{" + sized(rng, lambda i: f'"n{i:07}":{value}', size) + "}"


def digits(rng: random.Random, size: int) -> str:
    """An object like a logit_bias."""
    return "{" + sized(rng, lambda i: f'"{i}":1.5', size) + "}"


def nested(rng: random.Random, size: int) -> str:
    open_, close = rng.choice((("[", "]"), ('{"a":', "}"), ("[[],", "]")))
    depth = max(size // (len(open_) + len(close)), 1)
    return open_ * depth + "1" + close * depth


def lists(rng: random.Random, size: int) -> str:
    part = rng.choice(("[]", "{}", '""', '"a"', '{"type":"base64","data":"AAAA"}', '{"type":"url","data":"http://x/"}'))
    return "[" + sized(rng, lambda i: part, size) + "]"


def image(rng: random.Random, size: int) -> str:
    data = rng.choice(("AAAA", "====", "\\u0041AAA", "/+/+"))
    kind = rng.choice(("base64", "url", "other"))
    return '{"images":[{"type":"' + kind + '","data":"' + data * max(size // len(data), 1) + '"}]}'


VALUES = (text, numbers, names, digits, nested, lists, image)


def value(rng: random.Random, size: int) -> str:
    return rng.choice(VALUES)(rng, size)


def body(rng: random.Random) -> tuple[str, bytes]:
    """(path, body)"""
    size = min(int(2 ** rng.uniform(8, 25.2)), LIMIT)
    members = {"inputs": '"Tell me"', "text": '"Tell me"', "parameters": '{"max_new_tokens":2}'}
    field = rng.choice(FIELDS)
    if field == "parameters" and rng.random() < 0.8:
        members[field] = '{"max_new_tokens":2,"' + rng.choice(PARAMETERS) + '":' + value(rng, size) + "}"
    elif field == "multimodal_params":
        members[field] = rng.choice((image, value))(rng, size)
    else:
        members[field] = value(rng, size)
    order = list(members)
    rng.shuffle(order)
    data = bytearray(("{" + ",".join(f'"{name}":{members[name]}' for name in order) + "}").encode("utf-8", "replace"))
    if rng.random() < 0.1:
        del data[rng.randrange(len(data)) :]
    for _ in range(rng.choice((0, 0, 0, 1, 5))):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return rng.choice(ROUTES), bytes(data[:LIMIT])


def main(argv: Sequence[str] | None = None) -> int:
    parser = ToolParser(__doc__, minutes=0.05)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--gap", type=float, default=250.0, help="ms; the client shares the machine's cores")
    parser.add_argument("--found", type=Path, help="a folder for the bodies that are found")
    flags = parser.parse(argv)
    rng, statuses, found, sent = random.Random(flags.seed), Counter[str](), 0, 0
    worst = {"liveness": 0.0, "gap": 0.0}
    with serving() as port:
        watch = Watch(port)
        with watch.watching():
            end = time.monotonic() + 60 * flags.minutes
            while time.monotonic() < end:
                path, data = body(rng)
                time.sleep(0.1)  # so that the cost of making the body is over
                watch.liveness = watch.gap = 0.0
                status = ask(port, path, data)
                time.sleep(0.05)
                statuses[f"{path} {status}"] += 1
                sent += len(data)
                for name in worst:
                    worst[name] = max(worst[name], getattr(watch, name))
                late = max(watch.gap, watch.liveness) * 1e3 > flags.gap and not flags.smoke
                if late or not status.startswith(("2", "4")):
                    found += 1
                    print(
                        f"found: {path} {len(data)} bytes {data[:60]!r}: {status}, {watch.gap:.3f} s", file=sys.stderr
                    )
                    if flags.found is not None:
                        flags.found.mkdir(parents=True, exist_ok=True)
                        (flags.found / f"{flags.seed}-{statuses.total()}").write_bytes(path.encode() + b"\n" + data)
        time.sleep(0.5)
        died, live = number(port, "actor_restarts_total"), number(port, "live_requests")
    figures = Figures()
    figures.add("bodies", statuses.total(), statuses=dict(sorted(statuses.items())))
    figures.add("sent", sent / MIB, "MiB")
    figures.add("longest /liveness", worst["liveness"] * 1e3, "ms")
    figures.add("longest gap of a stream", worst["gap"] * 1e3, "ms")
    figures.add("found", found)
    figures.add("processes that died", died)
    figures.add("live afterwards", live)
    return 1 if found or died or live else 0


if __name__ == "__main__":
    sys.exit(main())
