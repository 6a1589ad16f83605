"""Decodes the frames of a video, in the decoder process: files with PyAV, lists of frames with Pillow."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any

from PIL import Image

from lightllm_mp.errors import InvalidRequest, PayloadTooLarge
from lightllm_mp.vision.decode import decode
from lightllm_mp.vision.header import ImageLimits, read_header
from lightllm_mp.vision.video.video_files import VideoHeader, unpacked_frames

TURNS = {90: Image.Transpose.ROTATE_270, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_90}
"""The transposition that turns a frame clockwise by this many degrees."""
SAMPLE_SIZE, SAMPLE_FRAMES = (64, 48), 8
MOST_MISSING = 0.1
"""Share of the claimed frames that may be missing at the end, because an edit list hides frames."""


def video_frames(
    data: bytes, header: VideoHeader, numbers: Sequence[int], limits: ImageLimits
) -> Iterator[Image.Image]:
    """The frames `numbers` (ascending) as upright RGB images. The last existing one replaces missing ones.

    Raises InvalidRequest for a damaged file, PayloadTooLarge for frames that are larger than the header says.
    """
    if header.packed:
        files = unpacked_frames(data)[1]
        yield from (decode(files[number], read_header(files[number], limits)) for number in numbers)
        return
    wanted, image, seen = list(numbers), None, 0
    for seen, frame in enumerate(_decoded(data, limits), 1):
        if wanted and seen - 1 == wanted[0]:
            image = frame.to_image()
            if header.turn in TURNS:
                image = image.transpose(TURNS[header.turn])
            yield image
            wanted.pop(0)
        if not wanted:
            return
    if image is None or seen < (1 - MOST_MISSING) * header.frames:
        raise InvalidRequest("a video is damaged or cut off")
    yield from [image] * len(wanted)


def sample_video() -> bytes:
    """A file with a few small frames, for a test. FFmpeg itself has the codec."""
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as made:
        stream = made.add_stream("mpeg4", rate=2)
        stream.width, stream.height, stream.pix_fmt = *SAMPLE_SIZE, "yuv420p"
        stream.codec_context.thread_count = 1
        for shade in range(SAMPLE_FRAMES):
            frame = av.VideoFrame.from_image(Image.new("RGB", SAMPLE_SIZE, (shade, 0, 0)))
            made.mux(stream.encode(frame))
        made.mux(stream.encode(None))
    data = file.getvalue()
    for frame in _decoded(data, ImageLimits()):  # PyAV imports its modules
        frame.to_image()
    return data


def _decoded(data: bytes, limits: ImageLimits) -> Iterator[Any]:
    """All frames of a file, as PyAV's `VideoFrame`. One thread decodes: a confined process has no other."""
    import av

    try:
        with av.open(io.BytesIO(data), "r", format="mp4") as opened:
            stream = opened.streams.video[0]
            stream.thread_type = "NONE"
            stream.codec_context.thread_count = 1
            for frame in opened.decode(stream):
                if frame.width * frame.height > limits.max_pixels:
                    raise PayloadTooLarge("a video's frames are larger than it says")
                yield frame
    except (InvalidRequest, PayloadTooLarge, MemoryError):
        raise
    except Exception as error:  # FFmpeg's errors are of many types
        raise InvalidRequest("a video is damaged or cut off") from error
