"""A decoder that an image has taken over: the width of the image says what it tries. Other images it decodes."""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import resource
import signal
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any

from lightllm_mp.vision.decoder_process import DecodeTask, Done, Settings, decode_image, main

PARENT = os.getppid()
LIBC = ctypes.CDLL(None, use_errno=True)
CLIENT = 300
"""Width of the first attack's image."""

# Later it can look up no function of libc, but these lie ready.
syscall = LIBC.syscall
X86 = platform.machine() == "x86_64"
"""Numbers of system calls differ; from 424 on they are the same."""


def call(number: int, *arguments: Any) -> int:
    """A system call by its number, past Python's functions. OSError."""
    result: int = syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def connect() -> None:
    with socket.socket() as one:
        one.connect(("127.0.0.1", 80))


def raise_limit() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))


def peek() -> int:
    """process_vm_readv from the parent."""
    here = ctypes.create_string_buffer(8)
    local = struct.pack("PN", ctypes.addressof(here), 8)
    remote = struct.pack("PN", 0x10000, 8)
    one = ctypes.c_ulong(1)
    return call(310 if X86 else 270, ctypes.c_int(PARENT), local, one, remote, one, ctypes.c_ulong(0))


def punch(memory: mmap.mmap) -> None:
    memory.madvise(9)  # MADV_REMOVE


def own() -> int:
    return int(sys.argv[1])


def path(text: str) -> Callable[[mmap.mmap], object]:
    return lambda _: os.open(text, os.O_RDONLY)


ATTACKS: dict[str, Callable[[mmap.mmap], object]] = {
    "read a file": path(__file__),
    "read the keys it was started with": lambda _: os.environ["LIGHTLLM_MP_API_KEYS"],
    "read the keys": path(f"/proc/{PARENT}/environ"),
    "read the parent": path(f"/proc/{PARENT}/mem"),
    "write the parent": lambda _: os.open(f"/proc/{PARENT}/mem", os.O_RDWR),
    "list the parent's files": lambda _: os.listdir(f"/proc/{PARENT}/fd"),
    "list a folder": lambda _: os.listdir("/"),
    "look at a file": lambda _: os.stat("/etc/passwd"),
    "write a file": lambda _: os.open("/tmp/lightllm-mp-hostile", os.O_WRONLY | os.O_CREAT),
    "make a folder": lambda _: os.mkdir("/tmp/lightllm-mp-hostile"),
    "remove a file": lambda _: os.unlink(__file__),
    "reopen its memory": lambda _: os.open(f"/proc/self/fd/{own()}", os.O_RDWR),
    "openat2": lambda _: call(437, ctypes.c_int(-100), b"/etc/passwd", bytes(24), ctypes.c_size_t(24)),
    "import": lambda _: __import__("xml.dom.minidom"),
    "memfd": lambda _: os.memfd_create("x"),
    "duplicate": lambda _: os.dup(0),
    "socket": lambda _: socket.socket(),
    "unix socket": lambda _: socket.socket(socket.AF_UNIX),
    "netlink": lambda _: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
    "socket pair": lambda _: socket.socketpair(),
    "connect": lambda _: connect(),
    "fork": lambda _: os.fork(),
    "exec": lambda _: os.execv(sys.executable, [sys.executable, "-c", "1"]),
    "io_uring": lambda _: call(425, ctypes.c_uint(1), bytes(120)),
    "ptrace": lambda _: call(101 if X86 else 117, ctypes.c_long(16), ctypes.c_long(PARENT), None, None),
    "process_vm_readv": lambda _: peek(),
    "pidfd": lambda _: os.pidfd_open(PARENT),
    "pidfd_getfd": lambda _: call(438, ctypes.c_int(own()), ctypes.c_int(0), ctypes.c_uint(0)),
    "kill": lambda _: os.kill(PARENT, signal.SIGKILL),
    "stop": lambda _: os.kill(PARENT, signal.SIGSTOP),
    "shrink": lambda _: os.ftruncate(own(), 0),
    "grow": lambda _: os.posix_fallocate(own(), 0, 1 << 36),
    "punch": punch,
    "executable memory": lambda _: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC),
    "huge": lambda _: bytearray(64 << 30),
    "limits": lambda _: raise_limit(),
    "name space": lambda _: call(272 if X86 else 97, ctypes.c_int(0x10000000)),
}
"""What it tries. None may succeed; it tells the error."""

ANSWERS: dict[str, bytes] = {
    "garbage": b"xxx",
    "nothing": b"{}",
    "null": b"null",
    "list": b'["", ""]',
    "a shape": b'{"code":"","message":"","shape":[1000000,1000000]}',
    "the old form": b'{"shape":[3,4,4],"grid":[1,1,1]}',
    "a missing message": b'{"code":""}',
    "a number": b'{"code":7,"message":""}',
    "control characters": b'{"code":"x","message":"\\u001b[2J"}',
    "a long message": b'{"code":"x","message":"%s"}' % (b"x" * 300),
    "no text": b"\xff\xfe",
    "a long line": b"x" * (1 << 20),
    "first line": b'{"missing":[],"problem":""}',
}
"""What it says. Each is a failure of its image, and the end of the process."""

HANG = CLIENT - 1
"""Width of an image that is never answered."""

DEEDS: dict[str, Callable[[mmap.mmap], object]] = {
    "exit": lambda _: os._exit(3),
    "exit as if well": lambda _: os._exit(0),
    "crash": lambda _: ctypes.string_at(0),
    "not a number": lambda memory: _answer(memory, float("nan")),
    "infinity": lambda memory: _answer(memory, float("inf")),
}
"""What it does."""

NAMES = (*ATTACKS, *ANSWERS, *DEEDS)


def width(name: str) -> int:
    """Width of the image that starts this attack."""
    return CLIENT + NAMES.index(name)


def answer(task: DecodeTask, memory: mmap.mmap, settings: Settings) -> Done:
    while task.width == HANG:
        pass
    if not 0 <= task.width - CLIENT < len(NAMES):
        return decode_image(task, memory, settings)
    name = NAMES[task.width - CLIENT]
    if name in ANSWERS:
        os.write(1, ANSWERS[name] + b"\n")
        return Done("", "")
    try:
        (ATTACKS.get(name) or DEEDS[name])(memory)
    except (Exception, SystemExit) as error:
        return Done("attack", f"{name}: {type(error).__name__}")
    return Done("attack", f"{name}: done") if name in ATTACKS else Done("", "")


def _answer(memory: mmap.mmap, value: float) -> None:
    memory[:4] = struct.pack("f", value)


if __name__ == "__main__":
    sys.exit(main(answer))
