"""A decoder in a container that refuses seccomp and Landlock."""

from __future__ import annotations

import errno
import platform
import sys

from lightllm_mp.sandbox import ARCHITECTURES, PR_SET_NO_NEW_PRIVS, Instruction, install_filter, prctl
from lightllm_mp.vision.decoder_process import decode_image, main


def refuse(calls: list[int]) -> list[Instruction]:
    """A filter that refuses these system calls with EPERM and allows all others."""
    program: list[Instruction] = [(0x20, 0, 0, 0)]
    for number in calls:
        program += [(0x15, 0, 1, number), (0x06, 0, 0, 0x00050000 | errno.EPERM)]
    return [*program, (0x06, 0, 0, 0x7FFF0000)]


if __name__ == "__main__":
    here = ARCHITECTURES[platform.machine()]
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    install_filter(here, refuse([here.seccomp, 444, 445, 446]))
    sys.exit(main(decode_image))
