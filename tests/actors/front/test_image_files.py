"""The front's image files: what is held, what is lent, in which order, and what goes back."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import msgspec
import pytest

from lightllm_mp import messages as say
from lightllm_mp.actors.front.image_files import Files, ImageJudge, ImageLane, NoImageLane, Upload
from lightllm_mp.actors.front.request_limits import RequestLimits
from lightllm_mp.actors.front.request_table import RequestTable
from lightllm_mp.actors.front.resumable_table import ResumableTable
from lightllm_mp.actors.http import image_inputs, schema
from lightllm_mp.actors.http.image_inputs import ImageInputs
from lightllm_mp.config import MultimodalConfig
from lightllm_mp.errors import EngineError, InvalidRequest, Overloaded, PayloadTooLarge, Unavailable
from lightllm_mp.facts import EngineLimits, Facts
from lightllm_mp.messages import ErrorInfo, Sampling, Terms
from lightllm_mp.shm import BlockRef
from lightllm_mp.vision.vision_config import read_vision
from tests.actors.front.front_lanes import FACTS, Lanes
from tests.actors.visual.seeing import png
from tests.paths import GOLDENS

FOLDER = GOLDENS / "llava_hf"


class Way:
    """A lane to visual and its memory, with room for `blocks` blocks."""

    def __init__(self, blocks: int = 100, **settings: Any) -> None:
        self.blocks, self.room = blocks, True
        self.sent: list[say.Wire] = []
        self.lent: dict[int, tuple[bytes, int]] = {}
        """offset -> (data, leases)"""
        self.offset = 0
        vision = read_vision(FOLDER)
        assert vision is not None
        self.settings = MultimodalConfig(enable_multimodal=True, cache_capacity=4, **settings)
        judge = ImageJudge(self.settings, "auto", vision)
        files = Files(self.settings.max_image_bytes_live)
        self.lane = ImageLane(judge, files, self.lend, self.take_back, self.send)

    def lend(self, data: bytes, known: BlockRef | None) -> BlockRef | None:
        if known is not None and known.offset in self.lent:
            self.lent[known.offset] = (data, self.lent[known.offset][1] + 1)
            return known
        if len(self.lent) >= self.blocks:
            return None
        self.offset += 1
        self.lent[self.offset] = (data, 1)
        return BlockRef(self.offset, len(data), self.offset)

    def take_back(self, ref: BlockRef) -> None:
        data, leases = self.lent.pop(ref.offset)
        if leases > 1:
            self.lent[ref.offset] = (data, leases - 1)

    def send(self, message: say.Wire) -> bool:
        if self.room:
            self.sent.append(message)
        return self.room

    def upload(self, number: int, tenant: bytes = b"") -> Upload:
        return self.lane.judge.upload(png(number), tenant)

    def read_all(self) -> None:
        """Visual has read everything."""
        self.lent.clear()
        self.lane.flush()

    def rids(self) -> list[tuple[type, int]]:
        return [(type(message), message.rid) for message in self.sent]  # type: ignore[attr-defined]


def test_a_file_is_lent_once_for_many_requests() -> None:
    way = Way()
    a, b = way.upload(1), way.upload(2)
    way.lane.push(1, (a, b, a))
    way.lane.push(2, (a,))
    assert [len(m.images) for m in way.sent if isinstance(m, say.Encode)] == [2, 1]
    assert sorted(leases for _, leases in way.lent.values()) == [1, 2]
    image = way.sent[0].images[0]  # type: ignore[attr-defined]
    assert (way.lent[image.offset][0], image.length, image.image.width, image.image.height) == (
        a.data,
        len(a.data),
        40,
        30,
    )


def test_what_finds_no_room_waits_in_order_and_holds_nothing() -> None:
    way = Way(blocks=2)
    way.lane.push(1, (way.upload(1),))
    way.lane.push(2, (way.upload(2), way.upload(3)))
    way.lane.push(3, (way.upload(1),))
    assert way.rids() == [(say.Encode, 1)]
    assert len(way.lent) == 1
    way.read_all()
    assert way.rids() == [(say.Encode, 1), (say.Encode, 2)]
    way.read_all()
    assert way.rids()[2:] == [(say.Encode, 3)]
    way.room = False
    way.lane.push(4, (way.upload(4),))
    assert len(way.lent) == 1


def test_an_end_follows_what_was_sent_and_replaces_what_was_not() -> None:
    way = Way(blocks=1)
    way.lane.push(1, (way.upload(1),))
    way.lane.push(2, (way.upload(2),))
    way.lane.abort(2)
    way.lane.abort(1)
    assert way.rids() == [(say.Encode, 1), (say.Abort, 1)]
    assert way.lane.waiting == 0


def test_files_are_held_once_and_bounded() -> None:
    way = Way()
    size = len(way.upload(1).data)
    files = Files(3 * size)
    first = files.hold([way.upload(1)])
    second = files.hold([way.upload(1), way.upload(2)])
    assert second[0] is first[0]
    assert files.size == 2 * size
    with files.arriving() as take:
        take(size)
        with pytest.raises(Overloaded):
            take(1)
    with pytest.raises(Overloaded):
        files.hold([way.upload(3), way.upload(4)])
    assert files.let_go(first) == []
    assert set(files.let_go(second)) == {upload.key for upload in second}
    assert files.size == 0


def test_image_bytes_of_one_tenant_leave_room_for_another() -> None:
    way = Way()
    size = len(way.upload(1).data)
    files = Files(8 * size + 8, tenants=2)
    held = [files.hold([way.upload(number, b"greedy")], b"greedy") for number in range(6)]
    with files.arriving(b"greedy") as take, pytest.raises(Overloaded, match="this key's"):
        take(size)
    with pytest.raises(Overloaded, match="this key's"):
        files.hold([way.upload(7, b"greedy")], b"greedy")
    with files.arriving(b"other") as take:
        take(2 * size)
    held += [files.hold([way.upload(number, b"other")], b"other") for number in range(2)]
    with pytest.raises(Overloaded, match="take all"):
        files.hold([way.upload(7, b"other")], b"other")
    held.append(files.hold([way.upload(7, b"other")], b"other", checked=False))  # what a dead front had accepted
    for uploads in held:
        files.let_go(uploads)
    assert files.size == 0


def test_images_retained_for_a_tenant_make_room_for_those_of_that_tenant_only() -> None:
    """A retained image of the largest holder goes when memory is short, and nobody else's."""

    async def body() -> None:
        size = len(Way().upload(1).data)
        way = Way(max_image_bytes_live=max(1024, 8 * size))
        way.lane.files = Files(8 * size, tenants=2)
        frontend, _ = seeing_front(way, resume_window=60.0)

        def ask(number: int, tenant: bytes):
            terms = Terms(Sampling(seed=7), tenant=tenant)
            return frontend.submit("<image>", terms, images=[way.upload(number, tenant)], label=f"{number}")

        for number in range(2):
            ask(number, b"other").close()
        for number in range(6):
            ask(10 + number, b"greedy").close()
        ask(20, b"greedy").close()
        assert way.lane.files.shares.held(b"other") == 2 * len(way.upload(0).data)
        assert len(frontend.retained) == 8

    asyncio.run(body())


def test_keys_tell_contents_and_tenants_apart() -> None:
    way = Way()
    uploads = [way.upload(1), way.upload(1), way.upload(2), way.upload(1, b"tenant"), way.upload(1, b"other")]
    assert len({upload.key for upload in uploads}) == 4


def submit(frontend: RequestTable, images: list[Upload], n: int = 1):
    return frontend.submit("<image>" * len(images), Terms(Sampling(seed=7), n=n), images=images, stream=False)


def seeing_front(way: Way, **options: Any) -> tuple[ResumableTable, Lanes]:
    lanes = Lanes()
    frontend = ResumableTable(lanes.to_tokenizer, lanes.to_router, limits=RequestLimits(8), images=way.lane, **options)
    frontend.begin(say.Begin(epoch=0, facts=Facts(engine=EngineLimits(vocab_size=100, max_input=100))))
    return frontend, lanes


def test_the_front_tells_tokenizer_and_visual_at_once() -> None:
    way = Way()
    frontend, lanes = seeing_front(way)
    live = submit(frontend, [way.upload(1)], n=2)
    request = lanes.tokenizer[0]
    assert isinstance(request, say.Generate)
    assert [(image.width, image.height) for image in request.images] == [(40, 30)]
    assert way.rids() == [(say.Encode, live.rid)]
    live.close()
    assert way.rids()[1:] == [(say.Abort, live.rid), (say.Abort, live.rid + 1)]
    assert way.lane.files.size == 0


def test_a_failed_image_ends_the_request_everywhere() -> None:
    async def body() -> None:
        way = Way()
        frontend, lanes = seeing_front(way)
        live = submit(frontend, [way.upload(1)], n=2)
        frontend.deliver(say.ImageFailed(live.rid, ErrorInfo(415, "no", "invalid_request_error", "x", "p")))
        with pytest.raises(EngineError) as caught:
            await live.answer()
        assert caught.value.status == 415  # type: ignore[attr-defined]
        ends = [(say.Abort, live.rid), (say.Abort, live.rid + 1)]
        assert [(type(m), m.rid) for m in lanes.tokenizer[1:]] == ends  # type: ignore[attr-defined]
        assert [(type(m), m.rid) for m in lanes.router] == ends  # type: ignore[attr-defined]
        live.close()
        assert way.lane.files.size == 0

    asyncio.run(body())


def test_a_request_that_the_tokenizer_refuses_gives_its_images_back() -> None:
    way = Way()
    frontend, _ = seeing_front(way)
    live = submit(frontend, [way.upload(1)])
    frontend.deliver(say.Rejected(live.rid, ErrorInfo(400, "no", "invalid_request_error", "invalid_request")))
    assert way.rids() == [(say.Encode, live.rid), (say.Abort, live.rid)]


def test_after_a_repair_files_are_sent_again() -> None:
    way = Way()
    frontend, lanes = seeing_front(way)
    live = submit(frontend, [way.upload(1)], n=2)
    frontend.reset()
    way.lent.clear()
    way.sent.clear()
    frontend.begin(say.Begin(epoch=1, facts=FACTS, restarted=("visual",)))
    assert way.rids() == [(say.Encode, live.rid), (say.Encode, live.rid + 1)]
    assert [m.images for m in lanes.tokenizer[-2:]] == [live.request.images] * 2  # type: ignore[attr-defined]
    assert live.fruitless == 1
    frontend.reset()
    frontend.begin(say.Begin(epoch=2, facts=FACTS))  # nobody died: visual has joined
    assert live.fruitless == 1


def test_without_the_visual_actor_images_are_refused_and_text_goes_on() -> None:
    way = Way()
    frontend, lanes = seeing_front(way)
    image, text = submit(frontend, [way.upload(1)]), submit(frontend, [])
    frontend.health(say.Health(True, away=("visual",)))
    assert frontend.ready
    assert isinstance(image.error, Unavailable)
    assert image.error.status == 503
    assert text.error is None
    with pytest.raises(Unavailable, match="image encoder"):
        submit(frontend, [way.upload(2)])
    lanes.tokenizer.clear()
    other = submit(frontend, [])
    assert [m.rid for m in lanes.tokenizer] == [other.rid]  # type: ignore[attr-defined]
    for live in (image, text, other):
        live.close()
    assert way.lane.files.size == 0
    frontend.health(say.Health(True))
    assert submit(frontend, [way.upload(2)]).error is None


def test_a_visual_actor_that_dies_with_an_image_again_and_again_makes_it_a_suspect() -> None:
    way = Way()
    frontend, lanes = seeing_front(way)
    blamed: list[tuple[str, int]] = []
    frontend.on_blame = lambda name, epoch: blamed.append((name, epoch))
    poison, text = submit(frontend, [way.upload(1)]), submit(frontend, [])
    for epoch in (2, 3, 4):
        frontend.reset()
        lanes.tokenizer.clear()
        frontend.begin(say.Begin(epoch=epoch, facts=FACTS, restarted=("visual",)))
        assert text.rid in [m.rid for m in lanes.tokenizer]  # type: ignore[attr-defined]
    assert isinstance(poison.error, EngineError)
    assert text.error is None
    assert sorted(set(blamed)) == [("visual", 2), ("visual", 3), ("visual", 4)]


def test_limits_of_a_request() -> None:
    size = len(png(1))
    way = Way(max_images_per_request=5, max_image_bytes_per_request=max(1024, 3 * size))
    frontend, _ = seeing_front(way)
    same = [way.upload(1)]
    for images, saying in (
        (same * 6, "6 images, at most 5"),
        ([way.upload(i) for i in range(5)], "5 different images, the cache holds 4"),
    ):
        with pytest.raises(InvalidRequest, match=saying):
            submit(frontend, images)
    with pytest.raises(PayloadTooLarge, match="have"):
        submit(frontend, [way.upload(i) for i in range(4)])
    frontend.begin(say.Begin(epoch=1, facts=Facts(engine=EngineLimits(vocab_size=100, max_input=79))))
    with pytest.raises(InvalidRequest, match="the images take 80 tokens, the longest prompt is 79"):
        submit(frontend, same * 5)
    assert way.sent == []


# --- what clients send ------------------------------------------------------------------------------------------------


def media(*images: dict[str, Any]) -> schema.Multimodal:
    return schema.Multimodal(images=msgspec.Raw(msgspec.json.encode(images)))


def base64_image(data: bytes) -> dict[str, str]:
    return {"type": "base64", "data": base64.b64encode(data).decode()}


def uploads(way: Way | None, *images: dict[str, Any]) -> tuple[Upload, ...]:
    async def body() -> tuple[Upload, ...]:
        desk = ImageInputs(way.settings if way else MultimodalConfig(), way.lane if way else NoImageLane())
        with desk.arriving(b"") as take:
            return await desk.uploads(media(*images), b"", take)

    return asyncio.run(body())


def test_base64_in_order_with_lines_and_twice() -> None:
    way = Way()
    lines = {"type": "base64", "data": " " + base64.encodebytes(png(1)).decode()}
    found = uploads(way, base64_image(png(1)), base64_image(png(2)), lines, base64_image(png(1)))
    assert [upload.data for upload in found] == [png(1), png(2), png(1), png(1)]
    assert found[0].key == found[2].key
    assert way.lane.files.size == 0


def test_sizes_are_judged_before_anything_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightllm_mp.actors.http.image_inputs.decoded", lambda *rest: pytest.fail("decoded"))
    with pytest.raises(PayloadTooLarge, match="larger than 1024 bytes"):
        uploads(Way(max_bytes_per_image=1024), {"type": "base64", "data": "A" * 2000})
    way = Way(max_image_bytes_live=1024)
    with pytest.raises(Overloaded):
        uploads(way, {"type": "base64", "data": "A" * 2000})
    assert way.lane.files.size == 0


def test_base64_is_decoded_in_pieces_like_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytes(range(256)) * 3
    text = base64.encodebytes(data).decode()
    forms = [
        json.dumps(text),
        json.dumps(text).replace("/", "\\/"),
        '"' + "".join(f"\\u{ord(letter):04x}" for letter in text) + '"',
        json.dumps(base64.b64encode(data + b"x").decode() + " " * 50),
    ]
    for piece in (7, 8, 13, 100, 1 << 18):
        monkeypatch.setattr(image_inputs, "PIECE", piece)
        assert [image_inputs.decoded(msgspec.Raw(form.encode()), 1000) for form in forms] == [data] * 3 + [data + b"x"]
        with pytest.raises(PayloadTooLarge, match="larger than 700 bytes"):
            image_inputs.decoded(msgspec.Raw(forms[0].encode()), 700)
        for wrong in (
            "QUI=QUJD",
            "QUI=" + " " * 200 + "QUJD",
            "é" * 99,
            "A" * 99 + "\\",
            "Q",
            "data:," + text,
        ):
            with pytest.raises(InvalidRequest):
                image_inputs.decoded(msgspec.Raw(json.dumps(wrong).encode()), 1000)


def test_a_text_server_says_so() -> None:
    assert uploads(None) == ()
    with pytest.raises(InvalidRequest, match="text only"):
        uploads(None, base64_image(png(1)))


def test_each_url_is_fetched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    async def fetch(self: object, url: str, *rest: object) -> bytes:
        asked.append(url)
        await asyncio.sleep(0)
        return png(1)

    monkeypatch.setattr("lightllm_mp.actors.http.image_fetch.Fetcher.fetch", fetch)
    same = {"type": "url", "data": "http://a.example/x"}
    found = uploads(Way(), same, same, {"type": "url", "data": "http://b.example/x"}, same)
    assert sorted(asked) == ["http://a.example/x", "http://b.example/x"]
    assert len(found) == 4
    assert len({upload.key for upload in found}) == 1
