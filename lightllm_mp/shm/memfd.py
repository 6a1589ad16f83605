"""Creates unnamed files in memory (memfd) and says why when the kernel refuses one."""

from __future__ import annotations

import errno
import os

MFD_NOEXEC_SEAL = 0x0008
"""Linux 6.3: the file can never be executed, and its seals are allowed. Python 3.14 has the name."""

REASONS = {
    errno.EPERM: "a seccomp filter or security module forbids memfd_create; allow it in the container's profile",
    errno.EACCES: "sysctl vm.memfd_noexec=2 or a security module forbids it; set vm.memfd_noexec=1 or allow it there",
    errno.ENOSYS: "this kernel or container runtime has no memfd_create; Linux 3.17 or newer is needed",
    errno.EINVAL: "this kernel or container runtime does not support its flags; Linux 3.17 or newer is needed",
    errno.EMFILE: "the process has too many open files; raise the hard limit (ulimit -Hn, LimitNOFILE= of systemd)",
    errno.ENFILE: "the machine has too many open files; raise sysctl fs.file-max",
    errno.ENOMEM: "too little memory is left; raise the memory limit of the control group",
}
"""Cause and remedy of each refusal."""


def create_memfd(name: str) -> int:
    """The descriptor of a new memfd that allows seals, is never executed and is closed on exec. OSError, with the cause
    and the remedy as its text, if the kernel refuses it."""
    sealable = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        try:
            return os.memfd_create(name, sealable | MFD_NOEXEC_SEAL)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return os.memfd_create(name, sealable)  # before Linux 6.3
    except OSError as error:
        reason = REASONS.get(error.errno or 0, "the kernel refuses it")
        raise OSError(error.errno, f"memfd_create: {error.strerror or error}: {reason}") from error
