"""A piece of shared memory: an unnamed, sealed memfd that children inherit as a descriptor."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os

from lightllm_mp.errors import StartupError
from lightllm_mp.machine import format_bytes, free_memory
from lightllm_mp.shm.memfd import create_memfd

SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_WORTH_A_LOOK = 1 << 20  # bytes; smaller segments are not checked against the free memory
_BLOCK = 512  # the unit of st_blocks
_POPULATED = mmap.MAP_SHARED | mmap.MAP_POPULATE


class Segment:
    """A memfd of fixed size, mapped readable and writable.

    It has no name, so the kernel frees it when the last process that holds it ends, even by a crash. Its seals keep a
    peer from shrinking it. All its pages exist from the start, so lack of memory is an error at start and never a
    SIGBUS later. In a `sparse` segment the writer must call `back` before it writes.
    """

    def __init__(self, fd: int, size: int, flags: int = mmap.MAP_SHARED) -> None:
        self.fd = fd
        self.size = size
        self.map = mmap.mmap(fd, size, flags=flags)
        self.view = memoryview(self.map)
        self._open = True

    @classmethod
    def create(cls, name: str, size: int, *, sparse: bool = False) -> Segment:
        """A new segment of `size` zero bytes. `name` appears only in /proc. StartupError if there is too little memory,
        also for a `sparse` segment, which takes no memory yet, or if the kernel refuses a memfd."""
        if size <= 0:
            raise ValueError(f"segment {name!r}: size {size} is not positive")
        try:
            fd = create_memfd(name)
        except OSError as error:
            raise StartupError(f"no shared memory for {name!r}: {error.strerror}") from error
        try:
            _reserve(size)
            os.fchmod(fd, 0o600)  # other users could open it through /proc/PID/fd
            os.ftruncate(fd, size) if sparse else os.posix_fallocate(fd, 0, size)
            segment = cls(fd, size)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
        except (OSError, OverflowError, ValueError) as error:
            os.close(fd)
            raise StartupError(
                f"no {size} bytes ({format_bytes(size)}) of shared memory for {name!r}: {error}. "
                "Make the queue, cache or arena smaller, or raise the memory limit of the control group"
            ) from error
        return segment

    @classmethod
    def attach(cls, fd: int) -> Segment:
        """Maps an inherited descriptor and takes ownership of it. StartupError (`fd` stays open) if it is not a sealed
        segment.

        Existing pages are mapped at once, since the process that attaches uses them. `create` does not: the supervisor
        creates segments that it never reads.
        """
        try:
            seals, size = fcntl.fcntl(fd, fcntl.F_GET_SEALS), os.fstat(fd).st_size
        except OSError as error:
            raise StartupError(f"descriptor {fd} is not shared memory: {error}") from error
        if seals & SEALS != SEALS or size == 0:
            raise StartupError(f"descriptor {fd} is not a sealed segment (seals {seals:#x}, {size} bytes)")
        try:
            whole = os.fstat(fd).st_blocks * _BLOCK >= size
            return cls(fd, size, _POPULATED if whole else mmap.MAP_SHARED)
        except (OSError, ValueError) as error:
            raise StartupError(f"cannot map {size} bytes of shared memory: {error}") from error

    def back(self, start: int, size: int) -> bool:
        """Allocates the pages of [start, start + size). Existing pages keep their content. False: too little memory."""
        try:
            _reserve(size)
            os.posix_fallocate(self.fd, start, size)
        except OSError:
            return False
        return True

    def data(self, start: int = 0) -> int | None:
        """The offset of the first page at or after `start` that exists (was written to); None if there is none."""
        try:
            return os.lseek(self.fd, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return None

    def close(self) -> None:
        """Unmaps the memory and closes the descriptor. Idempotent. The mapping lives on while a view of it exists."""
        if not self._open:
            return
        self._open = False
        self.view.release()
        with contextlib.suppress(BufferError):
            self.map.close()
        os.close(self.fd)


def _reserve(size: int) -> None:
    """OSError ENOMEM before the kernel allocates pages: if they run out, it kills processes instead of failing."""
    if size >= _WORTH_A_LOOK and size > (left := free_memory()):
        raise OSError(errno.ENOMEM, f"{os.strerror(errno.ENOMEM)}, {left} bytes are left")
