"""tools.bench.cpu_peers: its figures and ratios; it leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from lightllm_mp.errors import ModelError
from lightllm_mp.model_files.default_model import find_default_model
from tests.paths import ROOT
from tools.bench import cpu_peers, peers
from tools.bench.peer_table import Summary, ratios, summary, table
from tools.bench.rounds import Figure, Machine, Sample, Work, turned, works
from tools.harness import procfs

FAKE = Path(__file__).with_name("fake_llama.py")
RATE = Figure("rate", "requests", "tokens/s", more_is_better=True)
TIME = Figure("time", "start", "s", more_is_better=False)


@pytest.fixture
def model() -> Path:
    try:
        return find_default_model(fetch=False)
    except ModelError as error:
        pytest.skip(error.message)


@pytest.fixture
def marked(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Processes started in the test carry this mark; none may be left after it."""
    mark = f"CPU_PEERS_TEST={uuid.uuid4().hex}"
    monkeypatch.setenv(*mark.split("=", 1))
    yield mark
    deadline = time.monotonic() + 10
    while (left := with_mark(mark)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []


def with_mark(mark: str) -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:  # it has ended
            continue
    return found


def tool(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tools.bench.cpu_peers", *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_smoke_run_fills_the_engine_column(tmp_path: Path, model: Path, marked: str) -> None:
    sizes = ("--prefill", "64", "128", "--requests", "2", "4", "--tokens", "8", "--only")
    keys = ("start", "memory", "first", "decode", "prefill", "requests")
    process = tool("--smoke", "--model", str(model), *sizes, *keys, "--json", str(tmp_path / "figures.json"))
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err[-2000:]
    found = json.loads((tmp_path / "figures.json").read_text("utf-8"))
    rows = {row["key"]: row["values"] for row in found["figures"]}
    assert rows.keys() == {
        "start", "memory", "first", "decode", "prefill-64", "prefill-128", "requests-2", "requests-4"
    }  # fmt: skip
    assert all(values.keys() == {"engine"} for values in rows.values())
    assert rows["start"]["engine"] > 0.5
    assert rows["memory"]["engine"] > 90  # the weights' file alone is 94 MiB
    assert rows["first"]["engine"] > rows["decode"]["engine"] > 0
    assert rows["requests-4"]["engine"] > 0
    lines = [line.split(" | ") for line in out.splitlines() if line.startswith("| ")]
    assert len(lines) == 2 + len(rows)
    assert all(line[2:] == ["-", "-", "-", "-", "- |"] for line in lines[2:])
    assert found["facts"]["model"] == model.name


@pytest.mark.slow
def test_a_run_that_is_ended_ends_its_programs(model: Path, marked: str) -> None:
    process = tool("--smoke", "--model", str(model))
    deadline = time.monotonic() + 120
    while (
        not any("lightllm_mp.actors.runtime.child_main" in line for line in with_mark(marked))
        and time.monotonic() < deadline
    ):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "prefil", "nonsense"], "no figure begins with 'nonsense'; there are start, memory, first, "),
        (["--cpu", "avx2", "--llama-server", str(FAKE)], "uses AVX-512: build_llama.sh makes one for avx2"),
        (["--llama-server", "/bin/true"], "/bin/true is not a llama-server that this tool knows"),
        (["--llama-server", "/bin/missing"], "/bin/missing does not run"),
    ],
)
def test_wrong_words_are_one_line(
    words: list[str], message: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cpu_peers.main(["--no-transformers", *words]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_llama_server_is_asked_and_timed(tmp_path: Path, marked: str) -> None:
    assert peers.llama_facts(FAKE) == ("1.2.3 (fake)", "AVX2, AVX512")
    peer = peers.llama(FAKE, Path("model"), 2, 16, 8192, [], tmp_path / "log")
    try:
        assert peer.start() >= 0.3
        answers = peer.generate([[1, 2], [3], [4]], 5)
    finally:
        peer.stop()
    assert [answer.tokens for answer in answers] == [5, 5, 5]
    assert all(answer.first >= 0.02 and answer.first + 0.08 <= answer.last < 10 for answer in answers)


def test_an_answer_that_is_too_short_is_an_error(tmp_path: Path, marked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_MISSING", "1")
    peer = peers.llama(FAKE, Path("model"), 2, 16, 8192, [], tmp_path / "log")
    try:
        peer.start()
        with pytest.raises(peers.PeerError, match=r"llama\.cpp made 4 tokens instead of 5"):
            peer.generate([[1]], 5)
    finally:
        peer.stop()


def test_a_start_that_fails_says_why(tmp_path: Path, marked: str) -> None:
    peer = peers.llama(FAKE, Path("--broken"), 2, 16, 8192, [], tmp_path / "log")
    with pytest.raises(peers.PeerError, match=r"llama\.cpp ended with code 1: no such model"):
        peer.start()
    peer.stop()


def test_transformers_answers_in_a_process_of_its_own(tmp_path: Path, marked: str) -> None:
    transformers = pytest.importorskip("transformers")
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=300, **shape)).save_pretrained(tmp_path)
    peer = peers.TransformersPeer(tmp_path, "float32", 1, {}, tmp_path / "log")
    try:
        peer.start()
        answers = peer.generate([[5, 6, 7], [8]], 4)
    finally:
        peer.stop()
    assert [answer.tokens for answer in answers] == [4, 4]
    assert all(0 < answer.first < answer.last < 60 for answer in answers)


def test_figures_come_from_the_answers_times() -> None:
    figures: dict[str, Work] = {work.key: work for work in works((512,), (4096,), (2,), 9)}
    alone = [peers.Times(first=0.5, last=2.5, tokens=9)]
    assert figures["first"].value(alone) == 500
    assert figures["decode"].value(alone) == 250
    assert figures["prefill-512"].value(alone) == 1024
    assert figures["depth-4096"].length == "4096"
    assert figures["depth-4096"].value(alone) == 250
    assert figures["requests-2"].value([*alone, peers.Times(1.0, 3.0, 9)]) == 6


def test_no_two_rounds_have_a_prompt_in_common() -> None:
    (work,) = (work for work in works((), (), (16,), 9) if work.key == "requests-16")
    prompts = [*work.prompts(1000, "0.0.0"), *work.prompts(1000, "1.0.0"), *work.prompts(1000, "0.1.0")]
    assert len({tuple(prompt[:3]) for prompt in prompts}) == len(prompts) == 48
    assert all(14 <= len(prompt) <= 51 for prompt in prompts)


def test_ratios_say_how_many_times_as_good_the_engine_is() -> None:
    values = {"engine": 6.0, "llama.cpp": 4.0, "transformers float32": 2.0, "transformers bfloat16": 3.0}
    found: dict[str, Summary | None] = {name: Summary(value, False) for name, value in values.items()}
    assert ratios(RATE, found) == (Summary(1.5, False), Summary(2.0, False))
    assert ratios(TIME, found) == (Summary(4 / 6, False), Summary(2 / 6, False))
    assert ratios(RATE, {"engine": found["engine"]}) == (None, None)
    assert ratios(RATE, {"llama.cpp": found["llama.cpp"]}) == (None, None)


def test_disturbed_rounds_count_only_where_there_is_no_other() -> None:
    disturbed = [Sample(2.0, True), Sample(4.0, True), Sample(1.0, True)]
    mixed = [Sample(9.0, True), Sample(5.0, False), Sample(7.0, False)]
    assert summary(RATE, mixed) == summary(TIME, mixed) == Summary(6.0, False)
    assert summary(RATE, disturbed) == Summary(4.0, True)
    assert summary(TIME, disturbed) == Summary(1.0, True)
    assert table([RATE], {"rate": {"engine": mixed, "llama.cpp": disturbed}}).splitlines()[2] == (
        "| requests, tokens/s | 6.00 | ~4.00 | ~1.50x | - | - | - |"
    )
    assert table([RATE], {"rate": {"engine": mixed, "llama.cpp": mixed}}).splitlines()[2] == (
        "| requests, tokens/s | 6.00 | 6.00 | **1.00x** | - | - | - |"
    )


def test_another_one_goes_first_in_each_round() -> None:
    assert [turned([1, 2, 3], number) for number in range(4)] == [[1, 2, 3], [2, 3, 1], [3, 1, 2], [1, 2, 3]]


def test_others_disturb_and_this_programs_own_work_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    others = [0.0]
    monkeypatch.setattr(procfs, "machine_cpu_seconds", lambda: procfs.tree_cpu_seconds(os.getpid()) + others[0])
    machine = Machine(patience=30, seconds=30)
    with machine.watched() as disturbed:
        subprocess.run([sys.executable, "-c", "while __import__('time').process_time() < 0.3: pass"], check=True)
    assert not disturbed()
    with machine.watched() as disturbed:
        time.sleep(0.05)
        others[0] += 0.5
    assert disturbed()
    start = time.monotonic()
    machine.wait_until_quiet()
    assert machine.WINDOW <= time.monotonic() - start < 10


def test_memory_of_a_tree_counts_shared_pages_once() -> None:
    program = """
import os, sys, time
held = bytearray(os.urandom(1 << 20)) * 64
if os.fork() and os.fork():
    print("there", flush=True)
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        process.stdout.readline()
        family = procfs.pids(process.pid)
        held = procfs.tree_resident_mib(process.pid)
    finally:
        for pid in reversed(procfs.pids(process.pid)):
            os.kill(pid, signal.SIGKILL)
        process.communicate()
    assert len(family) == 3
    assert 64 < held < 110
