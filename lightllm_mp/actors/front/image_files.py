"""Image files at the front: checked by their headers, kept while their requests live, lent to the visual actor."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lightllm_mp.actors.front.fair_shares import FULL, FairShares
from lightllm_mp.actors.front.send_queue import Send
from lightllm_mp.config import MultimodalConfig
from lightllm_mp.errors import InvalidRequest, Overloaded, PayloadTooLarge, PromptTooLong
from lightllm_mp.messages import Abort, Encode, ImageInfo, RawImage
from lightllm_mp.shm import BlockRef
from lightllm_mp.vision.digest import content_digest, image_key, model_digest
from lightllm_mp.vision.header import ImageLimits, read_header
from lightllm_mp.vision.sizing import grid_tokens, patch_grid
from lightllm_mp.vision.video.video_files import NEEDS_PYAV, decodes_files, read_video
from lightllm_mp.vision.video.video_sampling import patch_seconds, sampled, video_grid

if TYPE_CHECKING:
    from lightllm_mp.vision.spec import VisionModel

PARAM = "multimodal_params"
TEXT_ONLY = "this server takes text only; images need a model with a vision tower and --enable_multimodal"
RETRY = 2.0
"""Retry-After in seconds when image files fill their memory."""

Lend = Callable[[bytes, BlockRef | None], BlockRef | None]


@dataclass(frozen=True, slots=True, eq=False)
class Upload:
    """An image file that passed the checks."""

    image: ImageInfo
    data: bytes

    @property
    def key(self) -> bytes:
        return self.image.key


class ImageJudge:
    """Checks image files against the server's limits and computes their cache keys. Thread-safe."""

    def __init__(self, limits: MultimodalConfig, data_type: str, vision: VisionModel) -> None:
        self.spec, self.limits = vision.spec, limits
        self._header = ImageLimits(self.limits.max_bytes_per_image, self.limits.max_pixels_per_image)
        self._model = model_digest(vision.spec, str(vision.folder), data_type)

    def upload(self, data: bytes, tenant: bytes = b"") -> Upload:
        """Raises InvalidRequest, PayloadTooLarge or UnsupportedMedia for a file that the server does not accept."""
        header = read_header(data, self._header)
        key = image_key(content_digest(data), self._model, tenant)
        return Upload(self.described(header.width, header.height, key), data)

    def video(self, data: bytes, tenant: bytes = b"") -> Upload:
        """The same for a video: a file, or a packed list of frames (vision/video/video_files.py)."""
        spec = self.spec
        if spec.video is None:
            raise InvalidRequest("this model takes no videos", param=PARAM)
        header = read_video(data, self._header)
        if not (header.packed or decodes_files()):
            raise InvalidRequest(NEEDS_PYAV, param=PARAM)
        numbers = sampled(header, spec.video, spec.temporal)
        grid = video_grid(spec, header, len(numbers))
        seconds = patch_seconds(numbers, header.fps, spec.temporal)
        key = image_key(content_digest(data), self._model, tenant)
        return Upload(ImageInfo(key, header.width, header.height, grid_tokens(spec, grid), tuple(grid), seconds), data)

    def described(self, width: int, height: int, key: bytes = b"") -> ImageInfo:
        """ImageInfo of an image of this size in pixels. Raises InvalidRequest for a shape the model does not accept."""
        grid = patch_grid(self.spec, width, height)
        by_grid = self.spec.preprocess.mode == "dynamic" and not self.spec.plain_positions
        told = tuple(grid) if by_grid else ()
        return ImageInfo(key, width, height, grid_tokens(self.spec, grid), told)

    def check(self, uploads: Sequence[Upload]) -> None:
        """Check the limits of one request. Raises InvalidRequest or PayloadTooLarge."""
        files = {upload.key: upload for upload in uploads}
        limits = self.limits
        if len(uploads) > limits.max_images_per_request:
            raise InvalidRequest(
                f"the request has {len(uploads)} images, at most {limits.max_images_per_request} are served",
                param=PARAM,
            )
        if len(files) > limits.cache_capacity:
            raise InvalidRequest(
                f"the request has {len(files)} different images, the cache holds {limits.cache_capacity}", param=PARAM
            )
        if (size := sum(len(file.data) for file in files.values())) > limits.max_image_bytes_per_request:
            raise PayloadTooLarge(
                f"the request's images have {size} bytes, at most {limits.max_image_bytes_per_request} are served",
                param=PARAM,
            )


class Files:
    """The image files of all live requests, each stored once, and the bytes of files still arriving; at most `most`, of
    which each of the `tenants` has a fair share. No two tenants share a file, since its key covers the tenant."""

    def __init__(self, most: int, tenants: int = 1) -> None:
        self.shares = FairShares(most, max(tenants, 1))
        self._held: dict[bytes, tuple[Upload, bytes, int]] = {}
        """key -> (file, tenant, number of requests that use it)"""

    @property
    def size(self) -> int:
        """Bytes."""
        return self.shares.total

    @contextmanager
    def arriving(self, tenant: bytes = b"") -> Iterator[Callable[[int], None]]:
        """Yields a function to call with the size of every received piece; it raises Overloaded above the limit."""
        taken = 0

        def take(size: int) -> None:
            nonlocal taken
            self._check(tenant, size)
            self.shares.take(tenant, size)
            taken += size

        try:
            yield take
        finally:
            self.shares.give_back(tenant, taken)

    def hold(self, uploads: Sequence[Upload], tenant: bytes = b"", *, checked: bool = True) -> tuple[Upload, ...]:
        """Keep the files and return them; a file already held replaces its new copy. Raises Overloaded if `checked`."""
        files = {upload.key: upload for upload in uploads}
        size = sum(len(file.data) for key, file in files.items() if key not in self._held)
        if checked and size:
            self._check(tenant, size)
        self.shares.take(tenant, size)
        for key, file in files.items():
            known, owner, requests = self._held.get(key, (file, tenant, 0))
            self._held[key] = (known, owner, requests + 1)
        return tuple(self._held[upload.key][0] for upload in uploads)

    def let_go(self, uploads: Sequence[Upload]) -> list[bytes]:
        """Release a request's files. Returns the keys that no request holds any more."""
        gone = []
        for key in {upload.key for upload in uploads}:
            file, tenant, requests = self._held.pop(key)
            if requests > 1:
                self._held[key] = (file, tenant, requests - 1)
            else:
                self.shares.give_back(tenant, len(file.data))
                gone.append(key)
        return gone

    def _check(self, tenant: bytes, size: int) -> None:
        """Raises Overloaded if the tenant must not take `size` bytes more."""
        if reason := self.shares.refusal(tenant, size):
            whose = "live requests take all" if reason == FULL else "this key's requests take their share of"
            raise Overloaded(f"the images of {whose} memory for them", retry_after=RETRY)


class ImageLane:
    """The lane to the visual actor: files go into shared memory, then an Encode names them. What does not fit waits.

    `lend(data, known)` lends bytes and reuses the `known` block if it still holds them; `send` is a Send on the lane.
    """

    def __init__(
        self, judge: ImageJudge, files: Files, lend: Lend, take_back: Callable[[BlockRef], None], send: Send
    ) -> None:
        self.judge, self.files = judge, files
        self._lend, self._take_back, self._send = lend, take_back, send
        self._held: deque[tuple[int, tuple[Upload, ...]]] = deque()
        """Requests that wait; an entry without files is an Abort."""
        self._lent: dict[bytes, BlockRef] = {}
        """A file's last block; the visual actor may have given it back since."""

    takes_images = True

    def check(self, uploads: Sequence[Upload], max_input: int) -> None:
        """Check the limits of one request. Raises InvalidRequest, PromptTooLong or PayloadTooLarge."""
        self.judge.check(uploads)
        slots = sum(upload.image.tokens for upload in uploads)
        if max_input and slots > max_input:
            raise PromptTooLong(f"the images take {slots} tokens, the longest prompt is {max_input}", param=PARAM)

    @property
    def waiting(self) -> int:
        return len(self._held)

    def push(self, rid: int, uploads: tuple[Upload, ...]) -> None:
        self._held.append((rid, uploads))
        self.flush()

    def abort(self, rid: int) -> None:
        """Drop the request's Encode if it still waits, else send an Abort."""
        for entry in self._held:
            if entry[0] == rid and entry[1]:
                self._held.remove(entry)
                return
        self.push(rid, ())

    @property
    def file_bytes(self) -> int:
        return self.files.size

    def arriving(self, tenant: bytes) -> AbstractContextManager[Callable[[int], None]]:
        """See Files.arriving."""
        return self.files.arriving(tenant)

    def hold(self, uploads: Sequence[Upload], tenant: bytes, *, checked: bool = True) -> tuple[Upload, ...]:
        """Keep the files until `let_go`. Raises Overloaded if `checked`."""
        return self.files.hold(uploads, tenant, checked=checked)

    def largest_holder(self) -> bytes | None:
        """The tenant whose files take most memory."""
        return self.files.shares.largest()

    def let_go(self, uploads: Sequence[Upload]) -> None:
        for key in self.files.let_go(uploads):
            self._lent.pop(key, None)

    def flush(self) -> None:
        while self._held and self._sent(*self._held[0]):
            self._held.popleft()

    def clear(self) -> None:
        """The lane is gone, and all lent blocks with it."""
        self._held.clear()
        self._lent.clear()

    def _sent(self, rid: int, uploads: tuple[Upload, ...]) -> bool:
        if not uploads:
            return self._send(Abort(rid))
        images: list[RawImage] = []
        for upload in {upload.key: upload for upload in uploads}.values():
            ref = self._lend(upload.data, self._lent.get(upload.key))
            if ref is None:
                break
            self._lent[upload.key] = ref
            images.append(RawImage(upload.image, ref.offset, ref.length, ref.generation))
        else:
            if self._send(Encode(rid, tuple(images))):
                return True
        # All or nothing: partly lent requests could block each other for ever.
        for image in images:
            self._take_back(BlockRef(image.offset, image.length, image.generation))
        return False


class NoImageLane:
    """Stands in for ImageLane in a text-only server: refuses every image."""

    takes_images = False
    file_bytes = waiting = 0

    @property
    def judge(self) -> ImageJudge:
        """Raises InvalidRequest: the server takes text only."""
        raise InvalidRequest(TEXT_ONLY, param=PARAM)

    def check(self, uploads: Sequence[Upload], max_input: int) -> None:
        if uploads:
            raise InvalidRequest(TEXT_ONLY, param=PARAM)

    def arriving(self, tenant: bytes) -> AbstractContextManager[Callable[[int], None]]:
        return nullcontext(lambda size: None)

    def hold(self, uploads: Sequence[Upload], tenant: bytes, *, checked: bool = True) -> tuple[Upload, ...]:
        return ()

    def largest_holder(self) -> bytes | None:
        return None

    def push(self, rid: int, uploads: tuple[Upload, ...]) -> None: ...
    def abort(self, rid: int) -> None: ...
    def let_go(self, uploads: Sequence[Upload]) -> None: ...
    def flush(self) -> None: ...
    def clear(self) -> None: ...
