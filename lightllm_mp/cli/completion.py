"""The command `lightllm-mp completion`: prints a shell's completion script, made from the tables of flags."""

from __future__ import annotations

import argparse
import re
import shlex
import typing
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Literal, NamedTuple

from lightllm_mp.cli.flags.fields import fields
from lightllm_mp.cli.flags.help import field_docs, metavar
from lightllm_mp.cli.flags.parser import Parser, parse
from lightllm_mp.cli.main import USAGE

DESCRIPTION = """\
Print the completion script of a shell. bash: source <(lightllm-mp completion bash) in ~/.bashrc. zsh: the same in
~/.zshrc, behind compinit. fish: lightllm-mp completion fish | source in ~/.config/fish/config.fish."""
PARSERS = {
    "chat": "chat.command",
    "pull": "pull",
    "inspect": "inspect.command",
    "doctor": "doctor.command",
    "bench": "bench.command",
    "docker": "docker",
    "health": "health",
    "completion": "completion",
}
"""Command -> its module with an argparse parser. The flags of `serve` come from config.py."""

Takes = Literal["nothing", "text", "path"]


class CompletedWord(NamedTuple):
    """A flag, or a positional argument, whose name is empty. `choices`: its possible values."""

    name: str
    text: str
    takes: Takes = "text"
    choices: tuple[str, ...] = ()


def parser() -> Parser:
    found = Parser(prog="lightllm-mp completion", description=DESCRIPTION, allow_abbrev=False)
    found.add_argument("shell", choices=tuple(SCRIPTS), help="the shell")
    return found


def main(argv: Sequence[str]) -> int:
    """Print the script. ConfigError for an unknown shell."""
    print(SCRIPTS[parse(parser(), argv).shell](), end="")
    return 0


def commands() -> dict[str, str]:
    """Command -> its description in the help."""
    return dict(re.findall(r"^  (\w+)  +(.+)$", USAGE, re.MULTILINE))


def words_of(command: str) -> list[CompletedWord]:
    if command == "serve":
        return list(_serve_flags())
    its = import_module(f"lightllm_mp.cli.{PARSERS[command]}").parser()
    return [_of_action(action, name) for action in its.actions for name in _names(action)]


def _names(action: argparse.Action) -> list[str]:
    return [name for name in action.option_strings if name.startswith("--")] or [""]


def _of_action(action: argparse.Action, name: str) -> CompletedWord:
    takes: Takes = "nothing" if action.nargs == 0 else "path" if action.metavar == "PATH" else "text"
    text = (action.help or "").replace("%(default)s", str(action.default))
    return CompletedWord(name, _brief(text), takes, tuple(map(str, action.choices or ())))


def _serve_flags() -> Iterator[CompletedWord]:
    docs = field_docs()
    for field in fields().values():
        takes: Takes = "nothing" if field.type is bool else "path" if metavar(field) == "PATH" else "text"
        literal = [field.type, *typing.get_args(field.type)]
        choices = [choice for kind in literal if typing.get_origin(kind) is Literal for choice in typing.get_args(kind)]
        yield CompletedWord(field.flag, _brief(docs[field.name]), takes, tuple(choices))
    yield CompletedWord("--config", "Read settings from a TOML or JSON file", "path")
    yield CompletedWord("--help-lightllm", "Show how each flag of LightLLM is treated", "nothing")
    yield CompletedWord("--help", "Show all flags", "nothing")


def _brief(text: str) -> str:
    """The first sentence of a help text."""
    return re.split(r"(?<=\w)[.:;] |\.$", " ".join(text.split()))[0]


def bash() -> str:
    cases, flags = [], []
    for command in commands():
        words = words_of(command)
        flags.append(f"        {command}) flags={shlex.quote(' '.join(word.name for word in words if word.name))} ;;")
        for word in words:
            if word.takes != "nothing":
                cases.append(f"        {shlex.quote(f'{command} {word.name}')}) {_bash_values(word)} ;;")
    return _filled(BASH, commands=" ".join(commands()), cases="\n".join(cases), flags="\n".join(flags))


def _bash_values(word: CompletedWord) -> str:
    if word.choices:
        return f"_lightllm_mp_words {shlex.quote(' '.join(word.choices))}; return"
    return "_lightllm_mp_files; return" if word.takes == "path" else "[[ $flag ]] && return"


BASH = """\
# bash completion for lightllm-mp: source <(lightllm-mp completion bash)
_lightllm_mp_words() { mapfile -t COMPREPLY < <(compgen -W "$1" -- "$word"); }
_lightllm_mp_files() { compopt -o filenames 2>/dev/null; mapfile -t COMPREPLY < <(compgen -f -- "$word"); }
_lightllm_mp() {
    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} command=${COMP_WORDS[1]} flag= flags=
    COMPREPLY=()
    if ((COMP_CWORD == 1)); then
        _lightllm_mp_words '@commands@ --help --version'
        return
    fi
    # --flag=value is three words for bash.
    if [[ $word == = ]]; then word=; elif [[ $before == = ]]; then before=${COMP_WORDS[COMP_CWORD - 2]}; fi
    [[ $before != --* ]] || flag=$before
    [[ $word == -* ]] || case "$command $flag" in
@cases@
    esac
    case $command in
@flags@
    esac
    _lightllm_mp_words "$flags"
}
complete -F _lightllm_mp lightllm-mp
"""


def zsh() -> str:
    listed = "\n".join(f"        {shlex.quote(f'{name}:{text}')}" for name, text in commands().items())
    cases = []
    for command in commands():
        specs = " ".join(shlex.quote(_zsh_spec(word)) for word in words_of(command))
        cases.append(f"        {command}) _arguments -S {specs} ;;")
    return _filled(ZSH, commands=listed, cases="\n".join(cases))


def _zsh_spec(word: CompletedWord) -> str:
    values = f"({' '.join(word.choices)})" if word.choices else "_files" if word.takes == "path" else " "
    text = re.sub(r"([\[\]:\\])", r"\\\1", word.text)
    if not word.name:
        return f"*:{text}:{values}"
    return f"{word.name}[{text}]" if word.takes == "nothing" else f"{word.name}=[{text}]:value:{values}"


ZSH = """\
#compdef lightllm-mp
# zsh completion for lightllm-mp: source <(lightllm-mp completion zsh)
_lightllm_mp() {
    local -a commands=(
@commands@
    )
    if (( CURRENT == 2 )); then
        _describe command commands
        return
    fi
    local command=$words[2]
    shift words
    (( CURRENT-- ))
    case $command in
@cases@
    esac
}
if [[ $funcstack[1] == _lightllm_mp ]]; then _lightllm_mp "$@"; else compdef _lightllm_mp lightllm-mp; fi
"""


def fish() -> str:
    lines = ["# fish completion for lightllm-mp: lightllm-mp completion fish | source", "complete -c lightllm-mp -f"]
    for command, text in commands().items():
        lines.append(f"complete -c lightllm-mp -n __fish_use_subcommand -a {command} -d {_fish_quoted(text)}")
    for command in commands():
        at = f"complete -c lightllm-mp -n '__fish_seen_subcommand_from {command}'"
        for word in words_of(command):
            name = f" -l {word.name[2:]}" if word.name else ""
            needs = {"nothing": "", "text": " -x", "path": " -r -F"}[word.takes] if name or word.takes == "path" else ""
            values = f" -a {_fish_quoted(' '.join(word.choices))}" if word.choices else ""
            if name or needs or values:
                lines.append(f"{at}{name}{needs}{values} -d {_fish_quoted(word.text)}")
    return "\n".join(lines) + "\n"


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _filled(template: str, **parts: str) -> str:
    for name, text in parts.items():
        template = template.replace(f"@{name}@", text)
    return template


SCRIPTS = {"bash": bash, "zsh": zsh, "fish": fish}
