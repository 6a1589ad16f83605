"""A process that decodes image files for the visual actor: `python -m lightllm_mp.vision.decoder_process FD SPEC`.

A picture is decoded by C code from a file that anybody sent. What goes wrong there ends this process and no other: it
holds no model, no secret and no descriptor but a piece of memory of its own (FD), in which files come and pixels go. A
line of JSON on standard input asks for one image, a line on standard output answers; at the end of input it leaves.
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
"""Address space: the interpreter and its libraries, and what a pixel takes on its way (grey of 16 bits takes most)."""
NICE = 5
"""Text goes first."""


class Settings(msgspec.Struct, frozen=True):
    """What this process is told once, as an argument."""

    spec: VisionSpec
    max_bytes: int
    max_pixels: int


class DecodeTask(msgspec.Struct, frozen=True):
    """An image file of `length` bytes at the start of the memory, as large as its header had said."""

    length: int
    width: int
    height: int


class Done(msgspec.Struct, frozen=True):
    """float32 pixels of this shape at the start of the memory, or why there are none."""

    shape: tuple[int, ...] = ()
    grid: tuple[int, int, int] = (0, 0, 0)
    status: int = 0
    """0: all is well."""
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
    except Exception:  # whatever a reader of a hostile file stumbles over
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
