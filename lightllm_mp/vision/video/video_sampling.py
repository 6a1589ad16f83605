"""Chooses the frames of a video that a model sees, with their size and times. Imports neither torch nor PyAV."""

from __future__ import annotations

from collections.abc import Sequence

from lightllm_mp.errors import InvalidRequest
from lightllm_mp.vision.sizing import PatchGrid, smart_resize
from lightllm_mp.vision.spec import VideoSampling, VisionSpec
from lightllm_mp.vision.video.video_files import VideoHeader


def sampled(header: VideoHeader, sampling: VideoSampling, temporal: int) -> list[int]:
    """Numbers of the frames that the model sees, in order: `fps` per second, from the first to the last one.

    Raises InvalidRequest for fewer frames than a patch has, and for a list of more than the model takes.
    """
    count = header.frames
    if not header.packed:
        count = min(max(int(count / header.fps * sampling.fps), sampling.min_frames), sampling.max_frames, count)
    if count < temporal:
        raise InvalidRequest(f"a video has {count} frames; it needs at least {temporal}, else send an image")
    if count > sampling.max_frames:
        raise InvalidRequest(f"a video has {count} frames, the model takes at most {sampling.max_frames}")
    step = (header.frames - 1) / (count - 1) if count > 1 else 0.0
    return [round(number * step) for number in range(count)]


def video_grid(spec: VisionSpec, header: VideoHeader, frames: int) -> PatchGrid:
    """The patches of `frames` frames. Raises InvalidRequest for a shape that the model does not take."""
    steps = spec.video
    assert steps is not None
    across, down = smart_resize(
        header.width,
        header.height,
        spec.patch * spec.merge,
        steps.min_pixels,
        steps.max_pixels,
        frames=frames,
        temporal=spec.temporal,
    )
    return PatchGrid(-(-frames // spec.temporal), down // spec.patch, across // spec.patch)


def patch_seconds(numbers: Sequence[int], fps: float, temporal: int) -> tuple[float, ...]:
    """The time of each patch's frames: the middle between its first and last one, the last frame filling up."""
    filled = [*numbers, *[numbers[-1]] * (-len(numbers) % temporal)]
    first, last = filled[::temporal], filled[temporal - 1 :: temporal]
    return tuple((a / fps + b / fps) / 2 for a, b in zip(first, last, strict=True))
