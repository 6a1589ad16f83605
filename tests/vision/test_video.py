"""Videos: headers, the frames that are seen, their sizes and times, and their places in a prompt."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightllm_mp.actors.front.image_files import ImageJudge
from lightllm_mp.config import MultimodalConfig
from lightllm_mp.errors import EngineError, InvalidRequest, PayloadTooLarge, UnsupportedMedia
from lightllm_mp.messages import ImageInfo
from lightllm_mp.vision.header import ImageLimits
from lightllm_mp.vision.placeholders import (
    VIDEO_TAG,
    expand_ids,
    join_chunks,
    pseudo_ids,
    split_text,
    tags_of_frames,
)
from lightllm_mp.vision.preprocess import preprocess_video
from lightllm_mp.vision.sizing import PatchGrid
from lightllm_mp.vision.spec import VideoSampling, VisionModel
from lightllm_mp.vision.tower.tower_loader import load_encoder
from lightllm_mp.vision.video import video_files
from lightllm_mp.vision.video.video_decode import video_frames
from lightllm_mp.vision.video.video_files import VideoHeader, pack_frames, read_video, unpacked_frames
from lightllm_mp.vision.video.video_sampling import patch_seconds, sampled, video_grid
from tests.vision.image_files import encoded
from tests.vision.video_files import box, frame_files, mp4_index, picture
from tests.vision.vision_golden import model

SAMPLING = VideoSampling(min_pixels=4096, max_pixels=24576 * 32 * 32)
TAG = "<|vision_start|><|image_pad|><|vision_end|>"


@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_what_an_mp4_says(turn: int) -> None:
    size = (72, 48) if turn % 180 == 0 else (48, 72)
    assert read_video(mp4_index(turn=turn)) == VideoHeader(*size, 60, 30.0, turn)


@pytest.mark.parametrize(
    ("data", "error", "said"),
    [
        (b"RIFF" + bytes(100), UnsupportedMedia, "none of the formats MP4, MOV"),
        (mp4_index()[:-60], InvalidRequest, "damaged, cut off or without an index"),
        (box(b"ftyp", b"isom") + box(b"mdat", bytes(50)), InvalidRequest, "damaged, cut off or without an index"),
        (box(b"ftyp", b"isom") + struct.pack(">I", 2) + b"moov", InvalidRequest, "damaged"),
        (mp4_index(0), InvalidRequest, "without an index of its frames"),
        (mp4_index(delta=0), InvalidRequest, "without an index of its frames"),
        (mp4_index(1 << 20), PayloadTooLarge, "has 1048576 frames, at most 65536"),
        (mp4_index(60_000, size=(800, 600)), PayloadTooLarge, "more than 17179869184 pixels: send fewer or smaller"),
        (mp4_index(size=(0, 48)), InvalidRequest, "no frames or no size"),
        (mp4_index(size=(60_000, 2000)), PayloadTooLarge, "over the limit for an image"),
        (mp4_index() + bytes(40_000_000), PayloadTooLarge, "over the limit of"),
        (pack_frames([], 1.0), InvalidRequest, "cut off or empty"),
        (pack_frames(frame_files(2), 1.0)[:-1], InvalidRequest, "cut off"),
        (pack_frames(frame_files(1), None)[:15], InvalidRequest, "cut off"),
        (pack_frames([b"text", b"text"], 1.0), UnsupportedMedia, "none of the formats PNG"),
        (pack_frames([*frame_files(1), encoded(picture(0, 40), "PNG")], 1.0), InvalidRequest, "different sizes"),
        (pack_frames(frame_files(2), float("inf")), InvalidRequest, "no rate of frames"),
    ],
)
def test_files_that_are_refused(data: bytes, error: type[EngineError], said: str) -> None:
    with pytest.raises(error, match=said):
        read_video(data)


def test_no_part_of_an_index_is_trusted() -> None:
    whole = mp4_index()
    for at in range(len(whole)):
        for byte in (0, 1, 255):
            changed = whole[:at] + bytes((byte,)) + whole[at + 1 :]
            try:
                read_video(changed)
            except EngineError:
                continue


def test_a_list_of_frames_is_packed_and_unpacked() -> None:
    files = frame_files(3)
    assert unpacked_frames(pack_frames(files, 4.0)) == (4.0, files)
    assert read_video(pack_frames(files, None)) == VideoHeader(72, 48, 3, 2.0, packed=True)


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        (VideoHeader(1, 1, 60, 30.0), [0, 20, 39, 59]),  # two a second, and at least four
        (VideoHeader(1, 1, 90, 15.0), [0, 8, 16, 24, 32, 40, 49, 57, 65, 73, 81, 89]),
        (VideoHeader(1, 1, 3, 30.0), [0, 1, 2]),
        (VideoHeader(1, 1, 5, 30.0, packed=True), [0, 1, 2, 3, 4]),
    ],
)
def test_frames_that_are_seen(header: VideoHeader, wanted: list[int]) -> None:
    """As numpy's linspace chooses them, rounded, in Qwen3VLVideoProcessor."""
    found = sampled(header, SAMPLING, 2)
    assert found == wanted == np.linspace(0, header.frames - 1, len(wanted)).round().astype(int).tolist()


def test_a_long_video_has_fewer_frames_a_second() -> None:
    assert len(sampled(VideoHeader(1, 1, 50_000, 10.0), SAMPLING, 2)) == 768


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (VideoHeader(1, 1, 1, 30.0), "1 frames; it needs at least 2"),
        (VideoHeader(1, 1, 769, 2.0, packed=True), "at most 768"),
    ],
)
def test_too_few_and_too_many_frames(header: VideoHeader, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        sampled(header, SAMPLING, 2)


def test_times_are_the_middles_of_patches() -> None:
    assert patch_seconds([0, 1, 2, 3, 4], 2.0, 2) == (0.25, 1.25, 2.0)
    assert patch_seconds([0, 20, 39, 59], 30.0, 2) == pytest.approx((1 / 3, 49 / 30))


@pytest.mark.parametrize(
    ("size", "frames", "wanted"),
    [
        ((1280, 720), 4, (2, 44, 80)),  # near its own size
        ((1280, 720), 64, (32, 28, 52)),  # fewer pixels for each of many frames
        ((20, 40), 5, (3, 4, 2)),  # smaller than a slot, and five frames count as four
        ((33, 33), 2, (1, 4, 4)),  # enlarged
    ],
)
def test_sizes_of_frames(size: tuple[int, int], frames: int, wanted: tuple[int, int, int]) -> None:
    """As `smart_resize` of Qwen3VLVideoProcessor gives them, for the released models' patches of 16."""
    spec = model("qwen3_vl").spec.__replace__(patch=16, video=SAMPLING)
    assert video_grid(spec, VideoHeader(*size, frames, 2.0), frames) == wanted


def of_video(frames: int = 3, each: int = 4) -> ImageInfo:
    seconds = tuple(0.25 + number for number in range(frames))
    return ImageInfo(b"video", 32, 32, frames * each, (frames, 4, each), seconds)


def test_a_video_becomes_frames_with_their_times() -> None:
    tags, still = model("qwen3_vl").spec.tags, ImageInfo(b"still", 16, 16, 2, (1, 4, 2))
    text = f"a{TAG}b{VIDEO_TAG}c{TAG}"
    found, spans = tags_of_frames(tags, text, [still, of_video(2), still])
    assert found == f"a{TAG}b<0.2 seconds>{TAG}<1.2 seconds>{TAG}c{TAG}"
    assert [(span.image.key, span.frame, span.first, span.tokens) for span in spans] == [
        (b"still", 0, 0, 2),
        (b"video", 0, 0, 4),
        (b"video", 1, 4, 4),
        (b"still", 0, 0, 2),
    ]
    chunks = [np.full(2, number, np.int32) for number in range(len(split_text(tags, found, len(spans))))]
    ids, placed = join_chunks(tags, chunks, spans, 1000)
    drawn = np.concatenate([ids[span.start : span.end] for span in placed if span.image.key == b"video"])
    assert np.array_equal(drawn, pseudo_ids(of_video(2), 1000))
    assert [span.start for span in placed] == [3, 9, 17, 25]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a", "0 places for videos"),
        (VIDEO_TAG * 2, "2 places for videos .* brings 1"),
        (VIDEO_TAG + TAG, r"1 places for images .* brings 0"),
    ],
)
def test_tags_that_do_not_fit(text: str, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        tags_of_frames(model("qwen3_vl").spec.tags, text, [of_video()])


def test_a_video_needs_text() -> None:
    with pytest.raises(InvalidRequest, match="a prompt of ids takes no videos"):
        expand_ids([1, -200, 2], [of_video()], 1000)


def judge(folder: str, **limits: Any) -> ImageJudge:
    return ImageJudge(MultimodalConfig(**limits), "float32", model(folder))


def test_a_video_at_the_door(monkeypatch: pytest.MonkeyPatch) -> None:
    found = judge("qwen3_vl").video(pack_frames(frame_files(5), 2.0)).image
    assert (found.grid[0], found.seconds) == (3, (0.25, 1.25, 2.0))
    assert found.tokens == 3 * found.grid[1] * found.grid[2] // 4
    monkeypatch.setattr(video_files, "find_spec", lambda name: None)
    video_files.decodes_files.cache_clear()
    try:
        with pytest.raises(InvalidRequest, match=r"need PyAV.*pip install 'lightllm-mp\[video\]'") as caught:
            judge("qwen3_vl").video(mp4_index())
        assert caught.value.status == 400
        judge("qwen3_vl").video(pack_frames(frame_files(2), None))  # needs none
    finally:
        monkeypatch.undo()
        video_files.decodes_files.cache_clear()


def test_bounds_at_the_door() -> None:
    with pytest.raises(InvalidRequest, match="takes no videos"):
        judge("qwen2_5_vl").video(pack_frames(frame_files(2), None))
    with pytest.raises(PayloadTooLarge, match="over the limit"):
        judge("qwen3_vl", max_bytes_per_image=1024).video(pack_frames(frame_files(8), None))
    with pytest.raises(PayloadTooLarge, match="over the limit"):
        judge("qwen3_vl", max_pixels_per_image=1000).video(pack_frames(frame_files(2), None))


def seen(vision: VisionModel, data: bytes) -> Any:
    header = read_video(data)
    assert vision.spec.video is not None
    numbers = sampled(header, vision.spec.video, vision.spec.temporal)
    grid = video_grid(vision.spec, header, len(numbers))
    return preprocess_video(video_frames(data, header, numbers, ImageLimits()), grid, vision.spec)


def test_a_frame_does_not_see_the_others() -> None:
    """Each patch of two frames is encoded as if it were alone, and equal ones get equal embeddings."""
    vision = model("qwen3_vl")
    tower = load_encoder(vision, dtype=torch.float32)
    two, other = frame_files(1) * 2, frame_files(3)[2:] * 2
    image = seen(vision, pack_frames(two + other + two, None))
    assert image.grid.frames == 3
    first, second, third = tower.encode([image])[0].chunk(3, dim=1)
    assert torch.equal(first, third)
    assert not torch.allclose(first, second)
    alone = image.grid.patches // 3
    still = type(image)(image.pixels[:alone], PatchGrid(1, *image.grid[1:]))
    assert (tower.encode([still])[0] - first).abs().max() < 1e-5


@pytest.fixture(scope="module")
def made() -> Callable[..., bytes]:
    """Writes an MP4 file of the frames of `frame_files`."""
    av = pytest.importorskip("av", reason="PyAV is not installed")

    def write(path: Path, count: int, rate: int) -> bytes:
        with av.open(str(path), "w", format="mp4") as file:
            stream = file.add_stream("mpeg4", rate=rate, options={"qscale": "2"})
            stream.width, stream.height, stream.pix_fmt = 72, 48, "yuv420p"
            for number in range(count):
                file.mux(stream.encode(av.VideoFrame.from_image(picture(number % 5))))
            file.mux(stream.encode(None))
        return path.read_bytes()

    return write


def test_the_frames_of_a_file(made: Callable[..., bytes], tmp_path: Path) -> None:
    data = made(tmp_path / "video.mp4", 40, 10)
    header = read_video(data)
    assert header == VideoHeader(72, 48, 40, 10.0)
    numbers = sampled(header, SAMPLING, 2)
    found = list(video_frames(data, header, numbers, ImageLimits()))
    assert len(found) == len(numbers) == 8
    for number, frame in zip(numbers, found, strict=True):
        differences = [np.abs(np.asarray(frame).astype(int) - np.asarray(picture(i))).mean() for i in range(5)]
        assert np.argmin(differences) == number % 5  # the codec loses some
    turned = list(video_frames(data, header._replace(turn=90, width=48, height=72), [0], ImageLimits()))
    assert turned[0].size == (48, 72)
    assert np.array_equal(np.asarray(turned[0]), np.rot90(np.asarray(found[0]), -1))


def test_files_that_end_early(made: Callable[..., bytes], tmp_path: Path) -> None:
    data = made(tmp_path / "video.mp4", 40, 10)
    header = read_video(data)._replace(frames=42)
    *_, before, last = video_frames(data, header, [0, 39, 41], ImageLimits())
    assert last is before
    with pytest.raises(InvalidRequest, match="damaged or cut off"):
        list(video_frames(data, header._replace(frames=60), [0, 59], ImageLimits()))
    with pytest.raises(InvalidRequest, match="damaged or cut off"):
        list(video_frames(mp4_index(), read_video(mp4_index()), [0, 59], ImageLimits()))
    with pytest.raises(PayloadTooLarge, match="larger than it says"):
        list(video_frames(data, header, [0], ImageLimits(max_pixels=100)))
