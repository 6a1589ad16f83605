"""The visual actor: encodes image files to embeddings in shared memory. It owns the image cache (vision/cache.py).

One event loop handles messages and never computes: decoder processes decode files, and each tower runs in a thread. So
a request whose images are all cached is answered at once, even while other images are decoded or encoded.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from dataclasses import dataclass
from time import monotonic, perf_counter

import torch

from lightllm_mp.actors.runtime.actor_settings import VisualSettings
from lightllm_mp.actors.runtime.async_actor import AsyncActor
from lightllm_mp.actors.runtime.launch_spec import LaunchSpec
from lightllm_mp.actors.runtime.mailbox import Mailbox
from lightllm_mp.actors.runtime.stats_page import StatsPage
from lightllm_mp.actors.topology import ROUTER
from lightllm_mp.actors.visual.cache_state import image_cache_state
from lightllm_mp.actors.visual.decoder_pool import PROGRAM, DecoderPool, check_decoder
from lightllm_mp.engine.image_embeddings import PORTABLE, pin
from lightllm_mp.errors import ConfigError, EngineError, InvalidRequest
from lightllm_mp.kernels.select import DTYPES, default_dtype, set_threads
from lightllm_mp.machine import format_bytes, physical_cores
from lightllm_mp.messages import (
    Abort,
    Embedded,
    Encode,
    ErrorInfo,
    ImageBlock,
    ImageFailed,
    ImageInfo,
    Inspect,
    RawImage,
    Release,
    Wire,
)
from lightllm_mp.models.spec import ModelSpec
from lightllm_mp.shm import Arena, Block, BlockRef
from lightllm_mp.shm.arena import BLOCK_HEADER
from lightllm_mp.vision.cache import CachedImage, ImageCache, LeaseGrant, WantedImage
from lightllm_mp.vision.decoder_process import Settings
from lightllm_mp.vision.sizing import PatchGrid
from lightllm_mp.vision.tower.encoder_pool import EncoderPool
from lightllm_mp.vision.tower.tower_loader import load_encoder

log = logging.getLogger("lightllm_mp.visual")

PATCHES = {"cpu": 2400, "cuda": 40_000}
"""Most patches per batch: about four images of a usual tower on CPU, seventy on CUDA."""
DECODERS = 4
"""Most decoder processes per tower."""
PIXELS = 100_000_000
"""Most pixels of all images being decoded at once; a single image may have more."""
NICE = 5
"""Niceness of this process on CPU: text generation has priority."""


@dataclass(frozen=True, slots=True)
class EncodeJob:
    """An image to decode and encode. `ref`: the block with its file, lent by the front."""

    image: ImageInfo
    ref: BlockRef

    @property
    def key(self) -> bytes:
        return self.image.key

    @property
    def pixels(self) -> int:
        return self.image.width * self.image.height


class VisualActor(AsyncActor):
    DECODER = PROGRAM
    """The module that decoder processes run."""

    def __init__(self, launch: LaunchSpec[VisualSettings], mailbox: Mailbox, stats: StatsPage) -> None:
        super().__init__(mailbox, stats)
        self._front = launch.front
        self._jobs: deque[EncodeJob] = deque()
        """Jobs that have not begun; their files lie in the front's shared memory."""
        self._working: dict[asyncio.Task[None], int] = {}
        """Tasks that decode or encode -> pixels being decoded; 0 once decoded."""
        self._files: dict[int, dict[bytes, RawImage]] = {}
        """rid -> files of a request that waits for space in the cache."""
        self._passed_on: set[int] = set()
        """Requests whose leases the router holds."""
        self._since: dict[int, float] = {}
        """rid -> when an unanswered request came (perf_counter)."""
        self._decoded = self._failures = self._answered = 0
        self._decode_seconds = self._wait_seconds = 0.0
        settings = launch.settings
        vision = launch.model.vision
        if vision is None:
            raise ConfigError("this model has no vision tower")
        self._spec = vision.spec
        devices, self._dtype, inner = self.placement(settings, launch.model.spec)
        kind = devices[0].type
        if kind == "cpu":
            os.nice(NICE)
            set_threads(settings.threads)
        self._arena = Arena.adopt(launch.images_fd)
        if kind == "cuda":
            pin(torch.frombuffer(self._arena.segment.view, dtype=torch.uint8), devices[0], PORTABLE)
        self._cache = ImageCache(settings.images.cache_capacity, self._arena)
        self.stage("loading the vision tower")
        load_format = settings.model.load_format
        encoders = [load_encoder(vision, device=one, dtype=inner, load_format=load_format) for one in devices]
        self._towers = EncoderPool(encoders, PATCHES[kind])
        images = settings.images
        self._decoding = Settings(self._spec, images.max_bytes_per_image, images.max_pixels_per_image)
        check_decoder(self._decoding, self.DECODER)
        log.info("images are encoded on %s in %s", ", ".join(map(str, devices)), inner)
        self._publish()

    # --- start and stop -----------------------------------------------------------------------------------------------

    @staticmethod
    def placement(settings: VisualSettings, spec: ModelSpec) -> tuple[list[torch.device], torch.dtype, torch.dtype]:
        """The towers' devices (all of one kind), the language model's dtype, and the towers' dtype. Raises ConfigError
        for a device that does not exist."""
        there = torch.cuda.is_available()
        model_device = torch.device("cuda" if there and settings.model.device != "cpu" else "cpu")
        named = DTYPES.get(settings.model.data_type)
        dtype = named or default_dtype(spec, model_device)
        asked = settings.images.visual_device
        if asked == "cuda" and not there:
            raise ConfigError("--visual-device cuda: torch finds no CUDA device on this machine", param="visual_device")
        if (asked if asked != "auto" else model_device.type) == "cpu":
            return [torch.device("cpu")], dtype, dtype if model_device.type == "cpu" else torch.float32
        numbers = settings.images.visual_gpu_ids or (0,)
        for number in numbers:
            if not 0 <= number < torch.cuda.device_count():
                raise ConfigError(f"--visual-gpu-ids {number}: there is no such GPU", param="visual_gpu_ids")
        return [torch.device("cuda", number) for number in numbers], dtype, dtype

    def run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        size = min(DECODERS * len(self._towers), physical_cores())
        self._pool = DecoderPool(self._decoding, size, self.DECODER)
        await self._pool.start()
        self.listen()
        try:
            await self.until_stopped()
        finally:
            for task in self._working:
                task.cancel()
            await asyncio.gather(*self._working, return_exceptions=True)
            await self._pool.close()
            self._towers.close()

    def on_reset(self) -> None:
        """Keep cached images; drop all leases, requests and files: the front's memory is about to be emptied."""
        self._cache.release_all()
        for job in self._jobs:
            self._cache.fail(job.key)
        self._jobs.clear()
        self._files.clear()
        self._passed_on.clear()
        self._since.clear()

    # --- messages -----------------------------------------------------------------------------------------------------

    def on_message(self, peer: str, message: Wire) -> None:
        match message:
            case Encode(rid, images):
                self._encode(rid, {raw.image.key: raw for raw in images})
            case Release(rid):
                self._passed_on.discard(rid)
                self._drop(rid)
            case Abort(rid):
                self._abort(rid)
            case Inspect():
                state = image_cache_state(self._cache, self._arena, len(self._jobs) + len(self._working), monotonic())
                self.mailbox.send(self._front, state)

    def after_records(self) -> None:
        self._go_on()

    def _encode(self, rid: int, files: dict[bytes, RawImage]) -> None:
        try:
            if not self._cache.ask(rid, [self._wanted(raw.image) for raw in files.values()]):
                raise self._too_much(len(files))
            self._files[rid] = files
            self._since[rid] = perf_counter()
        except EngineError as error:
            self._give_back(files)
            self._failed(rid, error)

    def _wanted(self, image: ImageInfo) -> WantedImage:
        return WantedImage(image.key, image.tokens, image.tokens * self._spec.slot_values * self._dtype.itemsize)

    def _too_much(self, images: int) -> EngineError:
        return InvalidRequest(
            f"the request's {images} different images do not fit the image cache together "
            f"({self._cache.capacity} images, {format_bytes(self._arena.capacity)})",
            param="multimodal_params",
        )

    def _abort(self, rid: int) -> None:
        if rid in self._passed_on:  # sent after its Embedded; the router returns the leases
            self.mailbox.post(ROUTER, Abort(rid))
            return
        self._drop(rid)

    def _drop(self, rid: int) -> None:
        self._since.pop(rid, None)
        self._give_back(self._files.pop(rid, {}))
        orphans = set(self._cache.release(rid))
        for job in [job for job in self._jobs if job.key in orphans]:
            self._jobs.remove(job)
            self._cache.fail(job.key)
            self.mailbox.give_back(self._front, job.ref)

    # --- work ---------------------------------------------------------------------------------------------------------

    def _go_on(self) -> None:
        """Grant leases and start decoding where there is room, and publish the stats."""
        for grant in self._cache.grant():
            self._granted(grant)
        while self._jobs and self._may_begin(self._jobs[0]):
            job = self._jobs.popleft()
            # Copy here, not in the task: the next repair empties the front's memory.
            data = self.mailbox.read(self._front, job.ref)
            self.mailbox.give_back(self._front, job.ref)
            task = asyncio.create_task(self._fill(job, data))
            self._working[task] = job.pixels
            task.add_done_callback(self._finished)
        self._publish()

    def _may_begin(self, job: EncodeJob) -> bool:
        """Whether a decoder is free, the towers keep up, and the pixels being decoded stay within PIXELS."""
        pixels = sum(self._working.values())
        return (
            len(self._working) < self._pool.size + self._towers.queued
            and not self._towers.full
            and (not pixels or pixels + job.pixels <= PIXELS)
        )

    def _granted(self, grant: LeaseGrant) -> None:
        files = self._files.pop(grant.rid)
        for wanted in grant.missing:
            raw = files.pop(wanted.key)
            self._jobs.append(EncodeJob(raw.image, _ref(raw)))
        self._give_back(files)
        if self._cache.complete(grant.rid):
            self._embedded(grant.rid)

    async def _fill(self, job: EncodeJob, data: bytes) -> None:
        """Decode and encode one file into its cache block; answer the requests that wait for it."""
        entry = self._cache.entry(job.key)
        assert entry is not None
        try:
            begin = perf_counter()
            video = PatchGrid(*job.image.grid) if job.image.seconds else None
            pixels = await self._pool.decode(data, job.image.width, job.image.height, video)
            self._decoded, self._decode_seconds = self._decoded + 1, self._decode_seconds + perf_counter() - begin
            encoded = self._towers.encode(pixels, lambda rows: self._write(entry, rows))
            self._decoded_one()
            await encoded
        except EngineError as error:
            self._failures += 1
            for rid in self._cache.fail(job.key):
                self._failed(rid, error)
            return
        self._arena.commit(entry.block, entry.wanted.nbytes)
        for rid in self._cache.ready(job.key):
            self._embedded(rid)

    def _decoded_one(self) -> None:
        """The current task's image is decoded: its decoder is free and its pixels no longer count."""
        task = asyncio.current_task()
        assert task is not None
        self._working[task] = 0
        if self.live:
            self._go_on()

    def _write(self, entry: CachedImage, rows: torch.Tensor) -> None:
        """Write embeddings to the block. Runs in an encoder's thread; only this job uses a FILLING block."""
        with self._arena.payload(entry.block) as room:
            place = torch.frombuffer(room, dtype=self._dtype, count=rows.numel())
            place.view(rows.shape).copy_(rows)
            del place

    def _finished(self, task: asyncio.Task[None]) -> None:
        del self._working[task]
        if task.cancelled():
            return
        if (bug := task.exception()) is not None:
            self.fail(bug)
        elif self.live:
            self._go_on()

    # --- answers ------------------------------------------------------------------------------------------------------

    def _embedded(self, rid: int) -> None:
        images = tuple(_block(entry) for entry in self._cache.images(rid))
        self._passed_on.add(rid)
        self._answered += 1
        self._wait_seconds += perf_counter() - self._since.pop(rid)
        self.mailbox.post(ROUTER, Embedded(rid, images))

    def _failed(self, rid: int, error: EngineError) -> None:
        self._since.pop(rid, None)
        message = ImageFailed(rid, ErrorInfo.of(error))
        self.mailbox.post(ROUTER, message)
        self.mailbox.post(self._front, message)

    def _give_back(self, files: dict[bytes, RawImage]) -> None:
        for raw in files.values():
            self.mailbox.give_back(self._front, _ref(raw))

    def _publish(self) -> None:
        cache, counts, towers = self._cache, self._cache.counts, self._towers
        self.stats.write(
            {
                "items": cache.items,
                "items_total": cache.capacity,
                "bytes": self._arena.used,
                "bytes_total": self._arena.capacity,
                "leased": cache.leased,
                "waiting": cache.waiting,
                "working": len(self._jobs) + len(self._working),
                "hits": counts.hits,
                "joins": counts.joins,
                "misses": counts.misses,
                "evictions": counts.evictions,
                "refusals": counts.refusals,
                "failures": self._failures,
                "encoded": towers.images,
                "batches": towers.batches,
                "decode_seconds": self._decode_seconds,
                "encode_seconds": towers.seconds,
                "decoded": self._decoded,
                "answered": self._answered,
                "wait_seconds": self._wait_seconds,
                "towers": len(towers),
            }
        )


def _ref(raw: RawImage) -> BlockRef:
    return BlockRef(raw.offset, raw.length, raw.generation)


def _block(entry: CachedImage) -> ImageBlock:
    block: Block = entry.block
    return ImageBlock(entry.wanted.key, block.offset + BLOCK_HEADER, entry.wanted.rows, block.generation)
