"""One piece of shared memory: an unnamed, sealed memfd that travels as a descriptor."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os

from lightllm_mp.errors import StartupError
from lightllm_mp.machine import format_bytes, free_memory

SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_WORTH_A_LOOK = 1 << 20  # bytes; a lane is not worth reading /proc for
_BLOCK = 512  # the unit of st_blocks
_POPULATED = mmap.MAP_SHARED | mmap.MAP_POPULATE


class Segment:
    """A memfd of fixed size, mapped readable and writable.

    It has no name, so nothing is left behind when its last holder dies, however it dies. The seals keep a peer from
    shrinking it. All its pages exist from the start, so lack of memory is an error at start and never a SIGBUS later;
    or it is `sparse`, and whoever writes to it calls `back` first.
    """

    def __init__(self, fd: int, size: int, flags: int = mmap.MAP_SHARED) -> None:
        self.fd = fd
        self.size = size
        self.map = mmap.mmap(fd, size, flags=flags)
        self.view = memoryview(self.map)
        self._open = True

    @classmethod
    def create(cls, name: str, size: int, *, sparse: bool = False) -> Segment:
        """A new segment of `size` bytes, zeroed. `name` only shows in /proc. StartupError when memory lacks; with
        `sparse` too, though nothing is taken yet."""
        if size <= 0:
            raise ValueError(f"segment {name!r}: size {size} is not positive")
        fd = -1
        try:
            _reserve(size)
            fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.fchmod(fd, 0o600)  # it has no name, but /proc/PID/fd is one
            os.ftruncate(fd, size) if sparse else os.posix_fallocate(fd, 0, size)
            segment = cls(fd, size)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
        except (OSError, OverflowError, ValueError) as error:
            if fd >= 0:
                os.close(fd)
            raise StartupError(
                f"no {size} bytes ({format_bytes(size)}) of shared memory for {name!r}: {error}. "
                "Make the queue, cache or arena smaller, or raise the memory limit of the process group"
            ) from error
        return segment

    @classmethod
    def attach(cls, fd: int) -> Segment:
        """Maps an inherited descriptor and owns it from then on. StartupError (`fd` stays open) if it is unfit.

        Pages that exist are mapped at once, for whoever attaches will use them; whoever creates may only watch.
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
        """Make the pages of [start, start + size) exist; those that do stay as they are. False: memory lacks."""
        try:
            _reserve(size)
            os.posix_fallocate(self.fd, start, size)
        except OSError:
            return False
        return True

    def data(self, start: int = 0) -> int | None:
        """Where, from `start` on, the first page stands that somebody has written to; None: nobody has."""
        try:
            return os.lseek(self.fd, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return None

    def close(self) -> None:
        """Gives memory and descriptor back; again is no error. A view somebody still holds keeps the mapping alive."""
        if not self._open:
            return
        self._open = False
        self.view.release()
        with contextlib.suppress(BufferError):
            self.map.close()
        os.close(self.fd)


def _reserve(size: int) -> None:
    """ENOMEM before the kernel starts to hand out pages: short of memory it kills, it does not refuse."""
    if size >= _WORTH_A_LOOK and size > (left := free_memory()):
        raise OSError(errno.ENOMEM, f"{os.strerror(errno.ENOMEM)}, {left} bytes are left")
