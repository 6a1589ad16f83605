"""What a wall clock that is set back, or a fork beside threads and CUDA, would break is not used; nobody sleeps."""

from __future__ import annotations

import re

from tests.repository.package import modules

WALL = re.compile(r"\btime\.time(_ns)?\b|\bdate(time)?\.(now|today|utcnow)\b|from time import [^\n]*\btime\b")
FORK = re.compile(r"\bos\.(fork|forkpty|posix_spawn)\b|\bpty\.fork\b|from os import [^\n]*\bfork|\bpreexec_fn\b")
SLEEP = re.compile(r"\btime\.sleep\b|from time import [^\n]*\bsleep\b")
MAY_TELL_THE_TIME = {
    "lightllm_mp.actors.http.context": "when an answer was created, for OpenAI's clients",
    "lightllm_mp.actors.http.traces": "when a span began, for collectors",
    "lightllm_mp.cli.doctor.machine": "whether the clock is set",
    "lightllm_mp.text.chat.template_sandbox": "the date for a chat template",
}


def using(pattern: re.Pattern[str]) -> set[str]:
    return {name for name, file in modules().items() if pattern.search(file.read_text("utf-8"))}


def test_timeouts_and_deadlines_are_monotonic() -> None:
    assert using(WALL) == set(MAY_TELL_THE_TIME)


def test_processes_are_started_by_exec() -> None:
    assert using(FORK) == set()


def test_actors_wait_for_messages_and_not_for_time() -> None:
    assert using(SLEEP) == {"lightllm_mp.server", "lightllm_mp.client"}, "a program that launches or asks one may"


def test_the_checks_see() -> None:
    assert all(
        map(WALL.search, ("time.time() + 5", "datetime.now()", "from time import monotonic, time", "time.time_ns()"))
    )
    assert all(map(FORK.search, ("os.fork()", "Popen(x, preexec_fn=f)", "from os import getpid, fork")))
    assert not any(map(WALL.search, ("time.monotonic()", "from time import monotonic", "runtime.timer()")))
