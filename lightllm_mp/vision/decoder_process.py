"""A process that decodes image files for the visual actor: `python -m lightllm_mp.vision.decoder_process FD SETTINGS`.

C code decodes files from untrusted clients, and a crash must end no other process. So this one holds no model, no
secret and no descriptor but its own piece of memory (FD), through which files come in and pixels go out; and before the
first file comes, it gives up the right to open anything (sandbox.py). A line of JSON on standard input asks for one
image, a line on standard output answers; at the end of input the process exits.

Whoever reads the answers trusts nothing that comes from here (actors/visual/decoder_pool.py).
"""

from __future__ import annotations

import importlib
import io
import mmap
import os
import signal
import sys
from collections.abc import Callable
from typing import Annotated

import msgspec
import numpy as np
from PIL import Image

from lightllm_mp.errors import EngineError, InvalidRequest, PayloadTooLarge
from lightllm_mp.sandbox import PR_SET_PDEATHSIG, Layer, confine, prctl
from lightllm_mp.vision.decode import decode
from lightllm_mp.vision.header import ALLOWED, Format, ImageLimits, read_header
from lightllm_mp.vision.preprocess import Preprocessed, preprocess, preprocess_video
from lightllm_mp.vision.spec import VisionSpec
from lightllm_mp.vision.video.video_decode import sample_video, video_frames
from lightllm_mp.vision.video.video_files import decodes_files, read_video
from lightllm_mp.vision.video.video_sampling import sampled, video_grid

BASE_MEMORY, BYTES_PER_PIXEL = 2 << 30, 24
"""Limit of the address space in bytes: the interpreter with its libraries, and per pixel (most for 16-bit grey)."""
NICE = 5
"""Niceness: text has priority."""
LIBRARIES = (
    *(f"PIL.{name}ImagePlugin" for name in ("Bmp", "Gif", "Jpeg", "Mpo", "Png", "Ppm", "Tiff", "WebP")),
    *(f"PIL.{name}" for name in ("ImageColor", "ImageFile", "ImageOps", "ImagePalette")),
)
"""What Pillow imports when it first needs it. Nothing can be imported later."""
SAMPLE_EDGES = (64, 1024)
"""Edges in pixels of the images that a new process decodes as a trial. The larger one's memory is mapped on its own."""
MOST_TEXT = 200
"""Characters of an error's message."""
Text = Annotated[str, msgspec.Meta(max_length=MOST_TEXT, pattern=r"^[ -~]*$")]


class Settings(msgspec.Struct, frozen=True):
    """The settings of this process, an argument on its command line."""

    spec: VisionSpec
    max_bytes: int
    max_pixels: int

    @property
    def limits(self) -> ImageLimits:
        return ImageLimits(max_bytes=self.max_bytes, max_pixels=self.max_pixels)


class DecodeTask(msgspec.Struct, frozen=True):
    """An image file or video of `length` bytes at the start of the memory, and the size that its header gave."""

    length: int
    width: int
    height: int
    video: bool = False


class Confined(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The first line: the process is confined. `missing`: layers that the confinement lacks. `problem`: what does not
    work in it; empty: the process is ready."""

    missing: tuple[Layer, ...]
    problem: Text


class Done(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The pixels (float32) lie at the start of the memory, or there was an error. Their shape follows from the size in
    the task, so it is not said."""

    code: Annotated[str, msgspec.Meta(max_length=64)]
    """The error's code; empty: success."""
    message: Text


Answering = Callable[[DecodeTask, mmap.mmap, Settings], Done]


def main(answer: Answering) -> int:
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    settings = msgspec.json.decode(sys.argv[2], type=Settings)
    memory = mmap.mmap(int(sys.argv[1]), 0)
    for name in LIBRARIES:
        importlib.import_module(name)
    files = {name: [sample(name, edge) for edge in SAMPLE_EDGES] for name in ALLOWED}
    videos = [sample_video()] if settings.spec.video is not None and decodes_files() else []
    os.nice(NICE)
    # Libraries describe damaged files there: that is text of clients, which is none for the log.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    missing = confine(BASE_MEMORY + BYTES_PER_PIXEL * settings.max_pixels)
    _say(Confined(missing, problem(files, videos, settings)))
    del files, videos
    tasks = msgspec.json.Decoder(DecodeTask)
    for line in sys.stdin.buffer:
        _say(answer(tasks.decode(line), memory, settings))
    return 0


def _say(reply: Confined | Done) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(reply) + b"\n")
    sys.stdout.buffer.flush()


def sample(name: Format, edge: int) -> bytes:
    """An image file of this format, of edge x edge pixels."""
    file = io.BytesIO()
    Image.linear_gradient("L").resize((edge, edge)).convert("RGB").save(file, name)
    return file.getvalue()


def problem(files: dict[Format, list[bytes]], videos: list[bytes], settings: Settings) -> str:
    """What keeps this process from decoding its sample files; empty: nothing.

    A system call that this libc or Python needs and the confinement refuses shows here, not in a client's image.
    """
    trials = [(f"a {name} image", data, _image) for name, samples in files.items() for data in samples]
    for what, data, make in [*trials, *(("a video", data, _video) for data in videos)]:
        try:
            make(data, ImageLimits(), settings.spec)
        except Exception as error:
            cause = error.__cause__ or error
            return _printable(f"{what} cannot be decoded: {type(cause).__name__}: {cause}")
    return ""


def _image(data: bytes, limits: ImageLimits, spec: VisionSpec) -> tuple[tuple[int, int], Preprocessed]:
    """Size as displayed, and pixels."""
    header = read_header(data, limits)
    return (header.width, header.height), preprocess(decode(data, header), spec)


def _video(data: bytes, limits: ImageLimits, spec: VisionSpec) -> tuple[tuple[int, int], Preprocessed]:
    """Size as displayed, and pixels of the frames that the model sees."""
    header = read_video(data, limits)
    assert spec.video is not None
    numbers = sampled(header, spec.video, spec.temporal)
    grid = video_grid(spec, header, len(numbers))
    pixels = preprocess_video(video_frames(data, header, numbers, limits), grid, spec)
    return (header.width, header.height), pixels


def decode_image(task: DecodeTask, memory: mmap.mmap, settings: Settings) -> Done:
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
    size, made = (_video if task.video else _image)(data, settings.limits, settings.spec)
    if size != (task.width, task.height):
        raise InvalidRequest("an image changed its size on the way")
    if made.pixels.nbytes > len(memory):
        raise PayloadTooLarge("an image becomes too large")
    np.frombuffer(memory, np.float32, made.pixels.size)[:] = made.pixels.ravel()
    return Done("", "")


def _failed(error: EngineError) -> Done:
    return Done(error.code, _printable(error.message))


def _printable(text: str) -> str:
    return "".join(c if " " <= c <= "~" else "?" for c in text[:MOST_TEXT])


if __name__ == "__main__":
    sys.exit(main(decode_image))
