"""kill -9 of every process of a running server under streams: what is lost, what differs, how long it takes.

    python scripts/kill_matrix.py [--kills 10] [--streams 16] [--tokens 80]

For each of tokenizer, router, detokenizer and worker0 and each of --kills rounds: --streams requests stream from the
default model (every second one samples with a seed), the victim is killed at a random moment, and every text is
compared with the undisturbed run. A recovery is the longest pause of a stream in that round. Exit code 1 if a request
was lost or a text differs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import sys
import time
from pathlib import Path

import aiohttp

from lightllm_mp import Config, launch
from lightllm_mp.config import EngineConfig, HttpConfig, SupervisorConfig

VICTIMS = ("tokenizer", "router", "detokenizer", "worker0")


def body(number: int, tokens: int) -> dict[str, object]:
    return {
        "inputs": f"<|im_start|>user\nTell me a fact about the number {number}.<|im_end|>\n<|im_start|>assistant\n",
        "parameters": {
            "max_new_tokens": tokens,
            "ignore_eos": True,
            "do_sample": number % 2 == 1,
            "temperature": 0.8,
            "seed": number,
        },
    }


async def stream(session: aiohttp.ClientSession, number: int, tokens: int) -> tuple[str, float]:
    """Text and the longest pause between two events, in seconds; an error's text begins with "LOST"."""
    text, pause, last, finished = "", 0.0, time.monotonic(), False
    try:
        async with session.post("/generate_stream", json=body(number, tokens)) as reply:
            async for line in reply.content:
                if not line.startswith(b"data:"):
                    continue
                now = time.monotonic()
                pause, last = max(pause, now - last), now
                event = json.loads(line[5:])
                text += event["token"]["text"]
                finished = event["finished"]
    except (aiohttp.ClientError, KeyError, ValueError) as error:
        return f"LOST {error!r}", pause
    return (text if finished else f"LOST after {text!r}"), pause


def pid_of(name: str, parent: int) -> int:
    """The child process that plays `name`."""
    for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if name.encode() in arguments:
            return int(pid)
    raise LookupError(name)


async def run(url: str, parent: int, flags: argparse.Namespace) -> bool:
    timeout = aiohttp.ClientTimeout(total=300)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(url, timeout=timeout, connector=connector) as session:

        async def everybody() -> list[tuple[str, float]]:
            return await asyncio.gather(*(stream(session, n, flags.tokens) for n in range(flags.streams)))

        start = time.monotonic()
        expected = [text for text, _ in await everybody()]
        alone = time.monotonic() - start
        print(f"undisturbed: {flags.streams} streams of {flags.tokens} tokens in {alone:.1f} s")
        print("killed       kills  streams  lost different  recovery s: median    max")
        good = True
        for victim in VICTIMS:
            lost = different = 0
            recoveries = []
            for _ in range(flags.kills):
                going = asyncio.create_task(everybody())
                await asyncio.sleep(random.uniform(0.0, 0.8 * alone))
                os.kill(pid_of(victim, parent), signal.SIGKILL)
                results = await going
                lost += sum(text.startswith("LOST") for text, _ in results)
                different += sum(text != want for (text, _), want in zip(results, expected, strict=True))
                recoveries.append(max(pause for _, pause in results))
            median, most = statistics.median(recoveries), max(recoveries)
            count = flags.kills * flags.streams
            print(f"{victim:<12} {flags.kills:>5} {count:>8} {lost:>5} {different:>9} {median:>19.2f} {most:>6.2f}")
            good = good and not lost and not different
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=80)
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    random.seed(flags.seed)
    config = Config(
        engine=EngineConfig(max_total_token_num=40_000),
        http=HttpConfig(port=0, disable_access_log=True),
        supervisor=SupervisorConfig(max_restarts=100_000, log_level="error"),
    )
    with launch(config) as server:
        server.wait_ready()
        good = asyncio.run(run(server.base_url, server.pid, flags))
    print("nothing lost, no text differs" if good else "FAILED")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
