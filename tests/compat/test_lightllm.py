"""compat/lightllm as an installed distribution: LightLLM's command line starts this engine, and it says it is ready."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.paths import GOLDENS, ROOT
from tests.text.tokenizer_samples import default_model

DEADLINE = 120.0
LAZYLLM = (
    "--tp=1 --max_total_token_num=64000 --eos_id=2 --port=0 --host=127.0.0.1 --nccl_port=21234 --tokenizer_mode=auto "
    "--running_max_req_size=4 --data_type=float16 --max_req_total_len=64000 --max_req_input_len=4096 "
    "--long_truncation_mode=head --trust_remote_code"
)
"""The words of lazyllm 1.4.0 behind --model_dir; the port is its choice."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the wheel is installed."""
    folder = tmp_path_factory.mktemp("lightllm")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    source = folder / "source"
    source.mkdir()
    subprocess.run(["cp", "-r", str(ROOT / "compat" / "lightllm"), str(source)], check=True)
    wheel = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(source / "lightllm")]
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(wheel, env=own, check=True, timeout=DEADLINE)
    (built,) = folder.glob("lightllm-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(folder / "site"), str(built)], env=own, check=True)
    return folder / "site"


def environment(site: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)]), "PYTHONSAFEPATH": "1"}


@pytest.fixture(params=["module", "script"])
def program(site: Path, request: pytest.FixtureRequest) -> list[str]:
    if request.param == "module":
        return [sys.executable, "-m", "lightllm.server.api_server"]
    return [sys.executable, str(site / "bin" / "lightllm")]


@pytest.fixture
def server(site: Path, program: list[str]) -> Iterator[subprocess.Popen[str]]:
    words = [*program, "--model_dir", str(GOLDENS / "llama"), *LAZYLLM.split(), "--disable_log_stats"]
    process = subprocess.Popen(
        words, env=environment(site), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def test_lazyllms_command_line_starts_it(server: subprocess.Popen[str]) -> None:
    assert server.stdout is not None
    log = []
    for line in server.stdout:
        log.append(line)
        if "Uvicorn running on" in line:
            break
    assert re.fullmatch(r"INFO:     Uvicorn running on http://127.0.0.1:\d+ \(Press CTRL\+C to quit\)\n", log[-1]), log
    assert any(line.startswith("WARNING:  --disable-log-stats has no effect") for line in log)
    url = log[-1].split()[4]
    body = {"inputs": [5, 6, 7], "parameters": {"max_new_tokens": 8192, "ignore_eos": False, "top_p": 1, "top_k": -1}}
    with urllib.request.urlopen(f"{url}/generate", json.dumps(body).encode(), timeout=DEADLINE) as reply:
        assert json.load(reply)["count_output_tokens"] >= 1
    server.send_signal(signal.SIGTERM)
    log += server.stdout.readlines()
    assert server.wait(DEADLINE) == 0
    assert not [line for line in log if line.lstrip().startswith("ERROR:")]


@pytest.mark.parametrize(
    ("words", "said", "code"),
    [
        (["--enable_monitor_auth"], "ERROR:    --enable-monitor-auth is not supported: use --api-key-file", 2),
        (["--no_such_flag", "1"], "ERROR:    unknown flag --no-such-flag", 2),
        (["--model_dir", "/nowhere"], "ERROR:    the server ended with exit code 2", 2),
    ],
)
def test_what_cannot_start_says_so_as_launchers_expect(site: Path, words: list[str], said: str, code: int) -> None:
    program = [sys.executable, "-m", "lightllm.server.api_server", *words]
    ended = subprocess.run(program, env=environment(site), capture_output=True, text=True, timeout=DEADLINE)
    assert ended.returncode == code
    assert [line for line in ended.stderr.splitlines() if line.startswith(said)], ended.stderr
    assert sum(line.startswith("ERROR:") for line in ended.stderr.splitlines()) == 1


def test_its_defaults_are_lightllms_unless_the_command_line_says_otherwise(site: Path) -> None:
    program = (
        "import sys; from lightllm_mp.cli import serve; from lightllm.server import api_server\n"
        "def main(config, **others):\n"
        "    flags = config.engine.clamp_max_total_token_num, config.http.no_skipping_special_tokens\n"
        "    print(*flags, config.model.eos_id)\n"
        "    return 0\n"
        "serve.main = main; sys.exit(api_server.main(sys.argv[1:]))"
    )
    model = str(default_model())
    for words, expected, warned in (
        ([], "True True ()", False),
        (["--no_skipping_special_tokens", "false"], "True False ()", False),
        (["--model_dir", model, "--eos_id", "2"], "True True (2,)", False),
        (["--model_dir", model, "--eos_id", "2", "77"], "True True (2,)", True),
        (["--model_dir", str(GOLDENS / "llama"), "--eos_id", "77"], "True True (77,)", False),  # it has no tokenizer
    ):
        run = [sys.executable, "-c", program, *words]
        done = subprocess.run(run, env=environment(site), text=True, timeout=DEADLINE, capture_output=True, check=True)
        assert done.stdout == expected + "\n"
        assert ("--eos-id 77 is ignored: it is ordinary text" in done.stderr) == warned
