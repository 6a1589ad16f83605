"""What nvidia-smi says about this machine's GPUs: nobody has to import torch for it."""

from __future__ import annotations

import shutil
import subprocess

from msgspec import Struct


class GpuLine(Struct, frozen=True):
    """A line of nvidia-smi; sizes in MiB."""

    name: str
    driver: str
    total: int
    free: int


def see_gpus() -> list[GpuLine] | str:
    """GPUs, or why nvidia-smi could not say."""
    if (program := shutil.which("nvidia-smi")) is None:
        return []
    query = [program, "--query-gpu=name,driver_version,memory.total,memory.free", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        return type(error).__name__
    if done.returncode:
        return (done.stdout or done.stderr).strip().splitlines()[-1] if done.stdout + done.stderr else "no reason given"
    return parse_gpus(done.stdout)


def parse_gpus(text: str) -> list[GpuLine] | str:
    try:
        rows = [[cell.strip() for cell in line.rsplit(",", 3)] for line in text.splitlines() if line.strip()]
        return [GpuLine(name, driver, int(total), int(free)) for name, driver, total, free in rows]
    except ValueError:
        return "an answer that is not understood"
