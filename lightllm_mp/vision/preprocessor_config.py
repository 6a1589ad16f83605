"""Reads `preprocessor_config.json`: how images were preprocessed in training. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightllm_mp.errors import ModelError
from lightllm_mp.model_files.model_source import read_json
from lightllm_mp.vision.spec import BICUBIC, CLIP_MEAN, CLIP_STD, RGB, Preprocess, VideoSampling

FILTERS = range(6)
"""Pillow's numbers of its resize filters."""
BILINEAR = 2
HALVES = (0.5, 0.5, 0.5)
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


def square_preprocess(folder: Path, size: int) -> Preprocess:
    """SigLIP's: both edges are resized to the tower's `size`. ModelError for tiles (pan and scan), which are not
    served."""
    found = _found(folder)
    if found.get("do_pan_and_scan"):
        raise ModelError("images cut into tiles (do_pan_and_scan) are not supported (preprocessor_config.json)")
    mean, std = _normalisation({"image_mean": HALVES, "image_std": HALVES, **found})
    if _edge(found.get("size", size))[0] != size or not found.get("do_resize", True):
        raise ModelError(f"images that are not resized to {size} x {size} are not supported (preprocessor_config.json)")
    resample = _resample({"resample": BILINEAR, **found})
    return Preprocess(mode="stretch", size=size, mean=mean, std=std, scale=_scale(found), resample=resample)


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
    found = _found(folder, "video_preprocessor_config.json", "video_processor")
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


def longest_edge_preprocess(folder: Path, block: int) -> Preprocess:
    """Pixtral's: shrunk until no edge is longer than a limit, then rounded up to whole blocks of `block` pixels."""
    found = _found(folder)
    mean, std = _normalisation(found)
    size = found.get("size") or {"longest_edge": 1024}
    edge = int(size["longest_edge"]) if "longest_edge" in size else _edge(size)[0]
    if edge < 1 or not found.get("do_resize", True):
        raise ModelError(f"images of a longest edge of {edge} pixels that are not resized are not supported")
    return Preprocess(
        mode="dynamic",
        fit="edge",
        edge=edge,
        mean=mean,
        std=std,
        scale=_scale(found),
        resample=_resample(found),
        min_pixels=block * block,
        max_pixels=(-(-edge // block) * block) ** 2,
    )


def budget_preprocess(folder: Path, patch: int, pool: int, soft_tokens: int) -> Preprocess:
    """Gemma 4's: as many blocks of `pool` x `pool` patches as the file allows, else `soft_tokens`, in -1..1."""
    found = _found(folder)
    if found.get("do_normalize") or not found.get("do_resize", True):
        raise ModelError("images that are normalised or not resized are not supported (processor_config.json)")
    block, tokens = patch * pool, int(found.get("max_soft_tokens") or soft_tokens)
    if tokens < 1:
        raise ModelError(f"max_soft_tokens {tokens} must be positive (processor_config.json)")
    return Preprocess(
        mode="dynamic",
        fit="budget",
        mean=HALVES,
        std=HALVES,
        scale=_scale(found),
        resample=_resample(found),
        min_pixels=block * block,
        max_pixels=tokens * block * block,
    )


def _found(folder: Path, name: str = "preprocessor_config.json", part: str = "image_processor") -> dict[str, Any]:
    """A file, or the part of processor_config.json that newer folders have in its place."""
    if (folder / name).is_file():
        return read_json(folder / name)
    whole = folder / "processor_config.json"
    return (read_json(whole) if whole.is_file() else {}).get(part) or {}


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
