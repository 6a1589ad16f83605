"""Memory files: never executable where the kernel knows the flag, and a refusal that names its cause."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable

import pytest

from lightllm_mp.errors import StartupError
from lightllm_mp.shm import Segment
from lightllm_mp.shm.memfd import MFD_NOEXEC_SEAL, create_memfd

F_SEAL_EXEC = 0x0020
SEALABLE = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING


def kernel(monkeypatch: pytest.MonkeyPatch, refuses: Callable[[int], int]) -> list[int]:
    """A kernel that refuses flags with the number that `refuses` returns (0: granted). Returns the flags asked for."""
    asked, real = [], os.memfd_create

    def create(name: str, flags: int) -> int:
        asked.append(flags)
        if number := refuses(flags):
            raise OSError(number, os.strerror(number))
        return real(name, SEALABLE)

    monkeypatch.setattr(os, "memfd_create", create)
    return asked


def test_a_memory_file_is_never_executable() -> None:
    fd = create_memfd("plain")
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        if not seals & F_SEAL_EXEC:
            pytest.skip("this kernel is older than 6.3")
        assert stat.S_IMODE(os.fstat(fd).st_mode) & 0o111 == 0
        with pytest.raises(PermissionError):
            os.fchmod(fd, 0o700)
    finally:
        os.close(fd)


def test_the_kernel_is_asked_for_no_execution(monkeypatch: pytest.MonkeyPatch) -> None:
    """As under vm.memfd_noexec=2."""
    asked = kernel(monkeypatch, lambda flags: 0 if flags & MFD_NOEXEC_SEAL else errno.EACCES)
    Segment.create("one", 4096).close()
    assert asked == [SEALABLE | MFD_NOEXEC_SEAL]


def test_an_older_kernel_gets_the_flags_that_it_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = kernel(monkeypatch, lambda flags: errno.EINVAL if flags & MFD_NOEXEC_SEAL else 0)
    Segment.create("one", 4096).close()
    assert asked == [SEALABLE | MFD_NOEXEC_SEAL, SEALABLE]


@pytest.mark.parametrize(
    ("number", "cause"),
    [
        (errno.EPERM, "seccomp filter or security module.*allow it in the container's profile"),
        (errno.EACCES, "vm.memfd_noexec=2 .*set vm.memfd_noexec=1"),
        (errno.ENOSYS, "has no memfd_create; Linux 3.17"),
        (errno.EINVAL, "does not support its flags"),
        (errno.EMFILE, "too many open files; raise the hard limit"),
        (errno.ENFILE, "fs.file-max"),
        (errno.ENOMEM, "memory limit of the control group"),
        (errno.EIO, "Input/output error: the kernel refuses it"),
    ],
)
def test_a_refusal_names_its_cause_and_not_the_size(monkeypatch: pytest.MonkeyPatch, number: int, cause: str) -> None:
    kernel(monkeypatch, lambda flags: number)
    with pytest.raises(StartupError, match=f"no shared memory for 'cache': memfd_create: .*{cause}") as caught:
        Segment.create("cache", 4096)
    assert "smaller" not in caught.value.message


def test_every_memory_file_of_the_package_is_created_here() -> None:
    from tests.repository.package import modules

    users = [name for name, file in modules().items() if "os.memfd_create(" in file.read_text()]
    assert users == ["lightllm_mp.shm.memfd"]
