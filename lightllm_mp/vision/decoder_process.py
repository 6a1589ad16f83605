"""A process that decodes image files for the visual actor: `python -m lightllm_mp.vision.decoder_process FD SPEC`.

C code decodes files from untrusted clients, and a crash must end no other process. So this one holds no model, no
secret and no descriptor but its own piece of memory (FD), through which files come in and pixels go out. A line of JSON
on standard input asks for one image, a line on standard output answers; at the end of input the process exits.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import signal
import sys

import msgspec
import numpy as np

from lightllm_mp.errors import EngineError, InvalidRequest, PayloadTooLarge
from lightllm_mp.vision.decode import decode
from lightllm_mp.vision.header import ImageLimits, read_header
from lightllm_mp.vision.preprocess import preprocess
from lightllm_mp.vision.spec import VisionSpec

PR_SET_PDEATHSIG = 1
BASE_MEMORY, BYTES_PER_PIXEL = 2 << 30, 24
"""Limit of the address space in bytes: the interpreter with its libraries, and per pixel (most for 16-bit grey)."""
NICE = 5
"""Niceness: text has priority."""


class Settings(msgspec.Struct, frozen=True):
    """The settings of this process, an argument on its command line."""

    spec: VisionSpec
    max_bytes: int
    max_pixels: int


class DecodeTask(msgspec.Struct, frozen=True):
    """An image file of `length` bytes at the start of the memory, and the size that its header gave."""

    length: int
    width: int
    height: int


class Done(msgspec.Struct, frozen=True):
    """float32 pixels of this shape at the start of the memory, or an error."""

    shape: tuple[int, ...] = ()
    grid: tuple[int, int, int] = (0, 0, 0)
    status: int = 0
    """HTTP status of the error; 0: success."""
    message: str = ""
    code: str = ""


def main() -> int:
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    settings = msgspec.json.decode(sys.argv[2], type=Settings)
    most = BASE_MEMORY + BYTES_PER_PIXEL * settings.max_pixels
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(NICE)
    memory = mmap.mmap(int(sys.argv[1]), 0)
    tasks = msgspec.json.Decoder(DecodeTask)
    for line in sys.stdin.buffer:
        done = answer(tasks.decode(line), memory, settings)
        sys.stdout.buffer.write(msgspec.json.encode(done) + b"\n")
        sys.stdout.buffer.flush()
    return 0


def answer(task: DecodeTask, memory: mmap.mmap, settings: Settings) -> Done:
    try:
        return _decoded(task, memory, settings)
    except MemoryError:
        return _failed(PayloadTooLarge("an image needs too much memory to be decoded"))
    except EngineError as error:
        return _failed(error)
    except Exception:  # anything that a hostile file makes a reader raise
        return _failed(InvalidRequest("an image cannot be decoded"))


def _decoded(task: DecodeTask, memory: mmap.mmap, settings: Settings) -> Done:
    data = memory[: task.length]
    header = read_header(data, ImageLimits(max_bytes=settings.max_bytes, max_pixels=settings.max_pixels))
    if (header.width, header.height) != (task.width, task.height):
        raise InvalidRequest("an image changed its size on the way")
    made = preprocess(decode(data, header), settings.spec)
    if made.pixels.nbytes > len(memory):
        raise PayloadTooLarge("an image becomes too large")
    np.frombuffer(memory, np.float32, made.pixels.size)[:] = made.pixels.ravel()
    frames, rows, columns = made.grid
    return Done(made.pixels.shape, (frames, rows, columns))


def _failed(error: EngineError) -> Done:
    return Done(status=error.status, message=error.message, code=error.code)


if __name__ == "__main__":
    sys.exit(main())
