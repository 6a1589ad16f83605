"""`lightllm-mp serve` as its operator sees it: clear refusals, signals, readiness, and no leftovers."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from tests.paths import ROOT

GOLDEN = ROOT / "tests" / "goldens" / "llama"
DEADLINE = 90.0


def command(*flags: str) -> list[str]:
    return [sys.executable, "-P", "-m", "lightllm_mp", "serve", "--max-total-token-num", "3000", *flags]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*flags), env=environment(), capture_output=True, text=True, timeout=DEADLINE)


class Serving:
    """A server process with a log in which tests wait for a pattern."""

    def __init__(self, *flags: str, cwd: Path | None = None, **more: str) -> None:
        self.process = subprocess.Popen(
            command("--model-dir", str(GOLDEN), "--port", "0", *flags),
            cwd=cwd,
            env=environment(**more),
            stderr=subprocess.PIPE,
            text=True,
        )
        self.log = ""

    def until(self, pattern: str) -> re.Match[str]:
        assert self.process.stderr is not None
        deadline = time.monotonic() + DEADLINE
        while not (found := re.search(pattern, self.log)):
            line = self.process.stderr.readline()
            assert line, f"the server ended: {self.log}"
            assert time.monotonic() < deadline
            self.log += line
        return found

    @property
    def children(self) -> list[int]:
        return [int(pid) for pid in re.findall(r"started, pid (\d+)", self.log)]

    def get(self, path: str) -> int:
        url = self.until(r"url +(http\S+)")[1]
        try:
            with urllib.request.urlopen(url + path, timeout=10) as reply:
                return reply.status
        except urllib.error.HTTPError as error:
            return error.code


@contextlib.contextmanager
def serving(*flags: str, cwd: Path | None = None, **more: str) -> Iterator[Serving]:
    server = Serving(*flags, cwd=cwd, **more)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.communicate(timeout=DEADLINE)


def gone(pids: list[int], seconds: float = 15.0) -> bool:
    deadline = time.monotonic() + seconds
    while left := [pid for pid in pids if Path(f"/proc/{pid}/environ").exists() and _alive(pid)]:
        if time.monotonic() > deadline:
            return not left
        time.sleep(0.05)
    return True


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_taken_port_is_refused_before_any_model_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ended = run("--port", str(taken.getsockname()[1]), "--model-dir", str(GOLDEN))
    assert ended.returncode == 69
    assert re.fullmatch(r"lightllm-mp: cannot listen on 127.0.0.1:\d+: Address already in use\n", ended.stderr)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--model-dir", "/nowhere"), "--model-dir /nowhere: no such folder or file"),
        (("--model-dir", str(GOLDEN), "--tp", "5"), "--tp 5: the model has 4 attention heads"),
        (("--port", "66000"), "port"),
        (("--no-such-flag",), "unknown flag"),
    ],
)
def test_wrong_settings_are_one_line(flags: tuple[str, ...], said: str) -> None:
    ended = run("--port", "0", *flags) if "--port" not in flags else run(*flags)
    assert ended.returncode == 2
    assert said in ended.stderr
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize("flags", [(), ("--log-json",)])
def test_too_little_shared_memory_is_one_line_before_anything_starts(flags: tuple[str, ...]) -> None:
    ended = run("--port", "0", "--model-dir", str(GOLDEN), "--max-body-bytes", str(10**13), *flags)
    assert (ended.returncode, ended.stderr.count("\n")) == (69, 1)
    assert re.search(
        r"no \d+ bytes .* of shared memory for 'arena': .*Cannot allocate memory, \d+ bytes are left", ended.stderr
    )


def copied(to: Path) -> Path:
    """The golden folder without its recorded outputs."""
    for name in ("config.json", "model.safetensors"):
        (to / name).write_bytes((GOLDEN / name).read_bytes())
    return to


def without_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors")


def with_another_shape(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:-1]
    save_file(tensors, folder / "model.safetensors")


def truncated(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def with_a_lie_about_its_header(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(struct.pack("<Q", 1 << 62) + file.read_bytes()[8:])


def with_an_index_of_absent_files(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00009-of-00009.safetensors"}}')


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (without_a_tensor, "missing tensor model.layers.1.mlp.up_proj.weight"),
        (with_another_shape, "tensor model.norm.weight has shape [63], the configuration says [64]"),
        (truncated, "model.safetensors: not a whole safetensors file"),
        (with_a_lie_about_its_header, "model.safetensors: not a whole safetensors file"),
        (with_an_index_of_absent_files, "names 'model-00009-of-00009.safetensors', which is not in the folder"),
    ],
)
def test_a_corrupt_checkpoint_is_one_line_before_anything_starts(
    tmp_path: Path, spoil: Callable[[Path], None], said: str
) -> None:
    spoil(copied(tmp_path))
    ended = run("--port", "0", "--model-dir", str(tmp_path))
    assert ended.returncode == 69
    assert said in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_what_only_the_worker_can_see_ends_the_start(tmp_path: Path) -> None:
    (copied(tmp_path) / "model.safetensors").unlink()
    with zipfile.ZipFile(tmp_path / "pytorch_model.bin", "w") as archive:
        archive.writestr("no/weights", b"")
    ended = run("--port", "0", "--model-dir", str(tmp_path))
    assert ended.returncode == 69
    assert "Traceback" not in ended.stderr
    assert re.search(r"worker0 cannot start: .*pytorch_model\.bin: not a readable weight file", ended.stderr)


def test_readiness_is_notified_and_sigterm_ends_it_cleanly(tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(address)
        notified.settimeout(DEADLINE)
        with serving(NOTIFY_SOCKET=address) as server:
            assert notified.recv(100) == b"READY=1"
            assert server.get("/readiness") == server.get("/health") == 200
            pids = server.children
            server.process.send_signal(signal.SIGTERM)
            assert notified.recv(100) == b"STOPPING=1"
            assert server.process.wait(8) == 0
            assert gone(pids, 0.5)


def test_every_process_may_open_as_many_files_as_the_hard_limit_allows() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    try:
        with serving() as server:
            server.until(r"url +(http\S+)")
            assert len(server.children) == 6
            for pid in server.children:
                assert resource.prlimit(pid, resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_draining_is_not_ready_and_a_second_signal_ends_it() -> None:
    with serving() as server:
        url = server.until(r"url +http://(\S+):(\d+)")
        body = b'{"inputs": [5, 6, 7], "parameters": {"max_new_tokens": 100, "ignore_eos": true, "n": 8}}'
        with contextlib.ExitStack() as stack:
            for _ in range(40):
                client = stack.enter_context(socket.create_connection((url[1], int(url[2]))))
                client.sendall(
                    b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body
                )
            time.sleep(0.1)
            server.process.send_signal(signal.SIGTERM)
            server.until("draining")
            while server.get("/readiness") != 503:  # the http process learns of it a moment later
                time.sleep(0.01)
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(8) == 0


def test_sigterm_while_loading_leaves_nothing() -> None:
    with serving() as server:
        server.until("http started")
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
        assert gone(server.children, 0.5)


def test_a_killed_supervisor_takes_its_children_along() -> None:
    before = set(os.listdir("/dev/shm"))
    with serving() as server:
        server.until(r"url +http")
        os.kill(server.children[1], signal.SIGSTOP)  # also ends a child that cannot react
        server.process.kill()
        server.process.wait(5)
        assert gone(server.children)
    assert set(os.listdir("/dev/shm")) == before
