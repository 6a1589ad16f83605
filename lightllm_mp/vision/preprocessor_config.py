"""Reads `preprocessor_config.json`: how images were preprocessed in training. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightllm_mp.errors import ModelError
from lightllm_mp.model_files.model_source import read_json
from lightllm_mp.vision.spec import BICUBIC, CLIP_MEAN, CLIP_STD, RGB, Preprocess, VideoSampling

FILTERS = range(6)
"""Pillow's numbers of its resize filters."""
NO_CHANGE: tuple[RGB, RGB] = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def clip_preprocess(folder: Path, size: int, *, pad: bool) -> Preprocess:
    """CLIP's: resize the shorter edge, crop the middle; without the file, both to the tower's `size`.

    Raises ModelError for unsupported steps and where the result does not have the tower's size.
    """
    found = _found(folder)
    mean, std = _normalisation(found)
    edge, square = _edge(found.get("size", size))
    crops = found.get("do_center_crop", True)
    crop, _ = _edge(found.get("crop_size", size)) if crops else (edge, True)
    if not found.get("do_resize", True) or not (crops or square):
        raise ModelError("images that are not resized to a square are not supported (preprocessor_config.json)")
    if crop != size or edge < crop or (square and edge != size):
        raise ModelError(f"preprocessor_config.json makes images of {crop} pixels, the vision tower takes {size}")
    return Preprocess(
        mode="stretch" if square else "crop",
        size=size,
        edge=edge,
        pad=pad or bool(found.get("do_pad", False)),
        mean=mean,
        std=std,
        scale=_scale(found),
        resample=_resample(found),
    )


def dynamic_preprocess(folder: Path) -> Preprocess:
    """Qwen2-VL's: any size of whole merged patches with an area between two limits."""
    found = _found(folder)
    mean, std = _normalisation(found)
    size = found.get("size") or {}
    low = found.get("min_pixels") or size.get("min_pixels") or size.get("shortest_edge") or 56 * 56
    high = found.get("max_pixels") or size.get("max_pixels") or size.get("longest_edge") or 28 * 28 * 1280
    if not 0 < int(low) <= int(high):
        raise ModelError(f"min_pixels {low} and max_pixels {high} are not a range (preprocessor_config.json)")
    return Preprocess(
        mode="dynamic",
        mean=mean,
        std=std,
        scale=_scale(found),
        resample=_resample(found),
        min_pixels=int(low),
        max_pixels=int(high),
    )


def video_sampling(folder: Path) -> VideoSampling:
    """Qwen3-VL's, of video_preprocessor_config.json; what it leaves out is as in upstream's processor."""
    found = _found(folder, "video_preprocessor_config.json")
    size, own = found.get("size") or {}, VideoSampling(min_pixels=4096, max_pixels=24576 * 32 * 32)
    sampling = VideoSampling(
        fps=float(found.get("fps") or own.fps),
        min_frames=int(found.get("min_frames") or own.min_frames),
        max_frames=int(found.get("max_frames") or own.max_frames),
        min_pixels=int(size.get("shortest_edge") or own.min_pixels),
        max_pixels=int(size.get("longest_edge") or own.max_pixels),
    )
    if not (sampling.fps > 0 and 0 < sampling.min_frames <= sampling.max_frames):
        raise ModelError("fps, min_frames and max_frames are not a range (video_preprocessor_config.json)")
    if not 0 < sampling.min_pixels <= sampling.max_pixels:
        raise ModelError("size is not a range of areas (video_preprocessor_config.json)")
    return sampling


def _found(folder: Path, name: str = "preprocessor_config.json") -> dict[str, Any]:
    file = folder / name
    return read_json(file) if file.is_file() else {}


def _edge(size: Any) -> tuple[int, bool]:
    """(edge in pixels, whether both edges are given)."""
    if not isinstance(size, dict):
        return int(size), False
    if "shortest_edge" in size:
        return int(size["shortest_edge"]), False
    if size["height"] != size["width"]:
        raise ModelError("only square images are supported (preprocessor_config.json)")
    return int(size["height"]), True


def _normalisation(found: dict[str, Any]) -> tuple[RGB, RGB]:
    if not found.get("do_normalize", True):
        return NO_CHANGE
    mean, std = found.get("image_mean", CLIP_MEAN), found.get("image_std", CLIP_STD)
    if len(mean) != 3 or len(std) != 3 or not all(float(x) > 0 for x in std):
        raise ModelError("image_mean and image_std must have three values (preprocessor_config.json)")
    return (float(mean[0]), float(mean[1]), float(mean[2])), (float(std[0]), float(std[1]), float(std[2]))


def _scale(found: dict[str, Any]) -> float:
    return float(found.get("rescale_factor", 1 / 255)) if found.get("do_rescale", True) else 1.0


def _resample(found: dict[str, Any]) -> int:
    number = int(found.get("resample", BICUBIC))
    if number not in FILTERS:
        raise ModelError(f"resize filter {number} is unknown (preprocessor_config.json)")
    return number
