"""The command `lightllm-mp doctor`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from lightllm_mp.cli.doctor.finding import Finding, Findings
from lightllm_mp.cli.flags.parser import Parser, parse
from lightllm_mp.config import HttpConfig
from lightllm_mp.errors import ConfigError

DESCRIPTION = """Check whether this machine can serve: Python, torch, GPUs, memory, limits, port, model. The command
changes nothing and loads no model. Exit code 1 if a check fails."""
INDENT = 20


def parser() -> Parser:
    found = Parser(prog="lightllm-mp doctor", description=DESCRIPTION, allow_abbrev=False)
    found.add_argument("--model-dir", metavar="PATH", help="folder or .gguf file to check; by default the small model")
    found.add_argument("--host", default=HttpConfig().host, help="address of the server")
    found.add_argument("--port", type=int, default=HttpConfig().port, metavar="N", help="port of the server")
    found.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    return found


def main(argv: Sequence[str]) -> int:
    """Runs all checks and prints the findings. ConfigError for wrong flags."""
    args = parse(parser(), argv)
    if not 0 <= args.port <= 65535:
        raise ConfigError(f"--port {args.port}: expected a whole number from 0 to 65535")
    found = examine(args.model_dir, args.host, args.port, print_line=None if args.json else print)
    failed = any(finding.status == "FAIL" for finding in found)
    if args.json:
        print(msgspec.json.encode({"ok": not failed, "checks": found}).decode())
    return 1 if failed else 0


def examine(
    model_dir: str | None, host: str, port: int, *, print_line: Callable[[str], None] | None = None
) -> list[Finding]:
    """Runs all checks in order. `print_line` gets each finding as soon as it is known."""
    # Imported here, so that `doctor --help` is quick.
    from lightllm_mp.cli.doctor import machine, model, software

    checks: tuple[Callable[[], Findings], ...] = (
        software.python,
        software.torch_and_gpus,
        software.extensions,
        software.image_decoder,
        machine.memory,
        machine.shared_memory,
        machine.limits,
        machine.clock,
        machine.disk,
        lambda: machine.port(port, host),
        lambda: model.model(model_dir),
    )
    found = []
    for check in checks:
        for finding in check():
            found.append(finding)
            if print_line is not None:
                print_line(line(finding))
    return found


def line(finding: Finding) -> str:
    head = f"{finding.status:<5} {finding.name:<13} {finding.text}"
    return f"{head}\n{' ' * INDENT}-> {finding.advice}" if finding.advice else head
