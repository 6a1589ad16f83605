"""`lightllm-mp completion`: what real shells offer after they have read the script."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lightllm_mp.cli import main
from lightllm_mp.cli.completion import PARSERS, SCRIPTS, commands, words_of
from lightllm_mp.cli.flags.fields import fields
from tests.cli.terminal import terminal
from tests.paths import ROOT

SAY = "lightllm-mp() { echo said $*; }"
"""What a line is after its completion."""
DEVICES = {"auto", "cpu", "cuda"}


def needs(shell: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(shell) is None, reason=f"{shell} is not installed")


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The script of each shell."""
    folder = tmp_path_factory.mktemp("completion")
    found = {shell: folder / f"script.{shell}" for shell in SCRIPTS}
    for shell, file in found.items():
        file.write_text(SCRIPTS[shell]())
    return found


def bash_offers(script: Path, *words: str, cwd: Path | None = None) -> set[str]:
    program = f"""
source {shlex.quote(str(script))}
COMP_WORDS=({shlex.join(("lightllm-mp", *words))})
COMP_CWORD={len(words)}
_lightllm_mp
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    command = ["bash", "--norc", "-c", program]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=20, check=True)
    assert done.stderr == ""
    return set(done.stdout.split("\n")) - {""}


def fish_offers(script: Path, line: str, cwd: Path) -> set[str]:
    program = f"source {shlex.quote(str(script))}; complete -C {shlex.quote(line)}"
    env = {**os.environ, "HOME": str(cwd), "XDG_CONFIG_HOME": str(cwd), "XDG_DATA_HOME": str(cwd)}
    command = ["fish", "--no-config", "-c", program]
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=20, check=True)
    assert done.stderr == ""
    return {offer.split("\t")[0] for offer in done.stdout.splitlines()}


def test_every_command_is_known() -> None:
    assert set(commands()) == set(main.COMMANDS) == {*PARSERS, "serve"}
    assert {word.name for word in words_of("serve")} >= {field.flag for field in fields().values()}
    for command in commands():
        assert all(word.text and "\n" not in word.text for word in words_of(command))


def test_bash(scripts: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "model a").mkdir()
    (tmp_path / "model.gguf").touch()
    script = scripts["bash"]
    assert bash_offers(script, "") == {*commands(), "--help", "--version"}
    assert bash_offers(script, "se") == {"serve"}
    assert bash_offers(script, "serve", "--devi") == {"--device"}
    assert bash_offers(script, "serve", "--device", "") == DEVICES
    assert bash_offers(script, "serve", "--device", "=", "cu") == {"cuda"}
    assert bash_offers(script, "serve", "--device", "=") == DEVICES
    assert bash_offers(script, "serve", "--port", "") == set()
    assert bash_offers(script, "serve", "--log-json", "--log-l") == {"--log-level"}
    assert bash_offers(script, "serve", "--model-dir", "mod", cwd=tmp_path) == {"model a", "model.gguf"}
    assert bash_offers(script, "inspect", "model.", cwd=tmp_path) == {"model.gguf"}
    assert bash_offers(script, "completion", "") == set(SCRIPTS)
    assert {"--url", "--image", "--help"} <= bash_offers(script, "chat", "--")


def test_bash_at_a_prompt(scripts: dict[str, Path]) -> None:
    with terminal(["bash", "--norc", "-i"], {**os.environ, "PS1": "$ "}) as shell:
        shell.until(r"\$ ")
        shell.type(f"source {scripts['bash']}; {SAY}\r")
        shell.until(r"\n.*\$ ")
        shell.type("lightllm-mp serve --kv-c\tint\tx\r")
        shell.until("said serve --kv-cache-dtype int8 x")


@needs("zsh")
def test_zsh_at_a_prompt(scripts: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()
    env = {**os.environ, "PS1": "%% ", "ZDOTDIR": str(tmp_path)}
    with terminal(["zsh", "-f", "-i"], env) as shell:
        shell.until("% ")
        shell.type(f"cd {tmp_path}; unsetopt zle_bracketed_paste; autoload -U compinit; compinit -u -D\r")
        shell.type(f"source {scripts['zsh']}; {SAY}\r")
        shell.until(r"\n.*% ")
        shell.type("lightllm-mp serve --kv-c\tint\t--model-dir mod\t--help-l\tx\r")
        shell.until("said serve --kv-cache-dtype=int8 --model-dir model.gguf --help-lightllm x")
        shell.type("lightllm-mp \t")
        shell.until("chat in the terminal")


@needs("zsh")
def test_zsh_reads_it(scripts: dict[str, Path]) -> None:
    subprocess.run(["zsh", "-n", str(scripts["zsh"])], check=True, timeout=20)


@needs("fish")
def test_fish(scripts: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()
    script = scripts["fish"]
    assert fish_offers(script, "lightllm-mp ", tmp_path) == set(commands())
    assert fish_offers(script, "lightllm-mp serve --device ", tmp_path) == DEVICES
    assert fish_offers(script, "lightllm-mp serve --devi", tmp_path) == {"--device"}
    assert fish_offers(script, "lightllm-mp serve --model-dir mod", tmp_path) == {"model.gguf"}
    assert fish_offers(script, "lightllm-mp inspect mod", tmp_path) == {"model.gguf"}
    assert fish_offers(script, "lightllm-mp completion ", tmp_path) == set(SCRIPTS)


def test_another_shell(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["completion", "tcsh"]) == main.main(["completion"]) == 2
    assert "bash" in capsys.readouterr().err


def test_the_script_comes_from_the_command() -> None:
    command = [sys.executable, "-P", "-m", "lightllm_mp", "completion", "bash"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == SCRIPTS["bash"]()
