"""A whole server as its operator sees it: HTTPS, JSON logs, listening ports, and messages about wrong settings."""

from __future__ import annotations

import contextlib
import json
import os
import ssl
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

import lightllm_mp
from lightllm_mp.config import Config, EngineConfig, HttpConfig, ModelConfig
from tests.end_to_end.test_serve_command import DEADLINE, GOLDEN, ROOT, Serving, environment, run, serving

TLS = ROOT / "tests" / "data" / "tls"
CERTIFICATE, KEY = str(TLS / "server.crt"), str(TLS / "server.key")
FLAGS = ("--log-json", "--ssl-certfile", CERTIFICATE, "--ssl-keyfile", KEY)
SECRET = "a-prompt-nobody-may-read"


LISTEN = "0A"


def listening(pids: list[int]) -> set[tuple[str, int]]:
    """Addresses (IPv4 in the kernel's byte order) and ports on which these processes accept connections."""
    inodes = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                inodes.add(os.readlink(link))
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == LISTEN and f"socket:[{words[9]}]" in inodes:
                address, port = words[1].split(":")
                found.add((address, int(port, 16)))
    return found


def entries(server: Serving) -> list[dict]:
    return [json.loads(line) for line in server.log.splitlines()]


def test_json_logs_https_keys_and_nothing_else_listens(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("user-key\nadmin:admin-key\n")
    with serving(*FLAGS, "--api-key-file", str(keys), "--splitfuse_mode") as server:
        url = server.until(r'"url":"(https://\S+?)"')[1]
        pids = [server.process.pid, *server.children]
        assert len(pids) == 7
        assert listening(pids) == {("0100007F", int(url.rsplit(":", 1)[1]))}
        body = json.dumps({"inputs": [5, 6, 7], "parameters": {"max_new_tokens": 4}, SECRET: SECRET}).encode()
        headers = {"Authorization": "Bearer admin-key", "X-Request-Id": "one"}
        trust = ssl.create_default_context(cafile=CERTIFICATE)
        with urllib.request.urlopen(urllib.request.Request(f"{url}/generate", body, headers), context=trust) as reply:
            assert json.load(reply)["count_output_tokens"] == 4
        server.until('"request":"one".*\n')
        found = entries(server)
    assert {"supervisor", "http"} <= {entry["actor"] for entry in found}
    assert all({"time", "level", "actor", "pid", "message"} <= set(entry) for entry in found)
    assert any("--splitfuse-mode has no effect" in entry["message"] for entry in found)
    request = found[-1]
    assert (request["actor"], request["status"], request["output"], request["finish"]) == ("http", 200, 4, "length")
    stages = [request[name] for name in ("received_ms", "scheduled_ms", "first_ms", "last_ms", "total_ms")]
    assert stages == sorted(stages)
    assert len(request["client"]) == 8
    assert not any(secret in server.log for secret in (SECRET, "user-key", "admin-key", str(keys)))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--ssl-certfile", CERTIFICATE, "--ssl-keyfile", str(TLS / "other.key")), "the key does not belong to"),
        (("--ssl-keyfile", KEY), "--ssl-keyfile without --ssl-certfile"),
        (("--ssl-certfile", "/nowhere.crt"), "--ssl-certfile /nowhere.crt: No such file or directory"),
        (("--cors-allow-origin", "https://a.example", "--cors-allow-origin", "null"), "--cors-allow-origin null"),
    ],
)
def test_wrong_settings_are_one_line_before_anything_starts(flags: tuple[str, ...], said: str) -> None:
    ended = run("--port", "0", "--model-dir", str(GOLDEN), *flags)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert said in ended.stderr
    ended = run("--port", "0", "--model-dir", str(GOLDEN), "--log-json", *flags)
    assert said in json.loads(ended.stderr)["message"]


@pytest.mark.parametrize("flags", [(), ("--trust-remote-code",)])
def test_code_of_a_model_folder_is_not_run(tmp_path: Path, flags: tuple[str, ...]) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((GOLDEN / name).read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    auto_map = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own", "AutoTokenizer": ["own.Own", None]}
    (tmp_path / "config.json").write_text(json.dumps({**config, "auto_map": auto_map}))
    for name in ("own.py", "__init__.py", "sitecustomize.py"):
        (tmp_path / name).write_text("from pathlib import Path\nPath(__file__).with_name('marker').touch()\n")
    with serving("--model-dir", str(tmp_path), *flags) as server:
        assert server.get("/health") == 200
    assert not (tmp_path / "marker").exists()


def test_code_of_the_working_directory_is_not_run(tmp_path: Path) -> None:
    """The working folder may be a model's folder: `cd model && lightllm-mp serve --model-dir .`"""
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((GOLDEN / name).read_bytes())
    for name in ("numpy", "json", "torch", "msgspec", "aiohttp", "PIL", "lightllm_mp", "safetensors", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text("from pathlib import Path\nPath(__file__).with_name('marker').touch()\n")
    with serving("--model-dir", ".", "--enable-multimodal", cwd=tmp_path) as server:
        assert server.get("/health") == 200
    looked = subprocess.run(
        [sys.executable, "-P", "-m", "lightllm_mp", "doctor", "--model-dir", "."],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    assert "torch" in looked.stdout
    assert not (tmp_path / "marker").exists()


def test_a_launched_server_with_a_certificate_of_its_own_is_healthy() -> None:
    config = Config(
        model=ModelConfig(model_dir=str(GOLDEN)),
        engine=EngineConfig(max_total_token_num=3000),
        http=HttpConfig(port=0, ssl_certfile=CERTIFICATE, ssl_keyfile=KEY),
    )
    with lightllm_mp.launch(config) as server:
        server.wait_ready(timeout=90)
        assert server.base_url.startswith("https://")
        assert server.health()
