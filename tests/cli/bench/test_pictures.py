"""Pictures are the same everywhere, of the size that was asked for, and repeated as often as was asked for."""

from __future__ import annotations

import asyncio
import base64
import io

import aiohttp
import pytest
from PIL import Image

from lightllm_mp.cli.bench.pictures import PictureSize, entries, jpeg
from lightllm_mp.cli.bench.workload import IMAGE_ID, Images, Request, make
from lightllm_mp.errors import ConfigError


def test_a_name_is_a_picture() -> None:
    size = PictureSize(70, 33)
    first = jpeg("a-0", size)
    assert first == jpeg("a-0", size) != jpeg("a-1", size)
    with Image.open(io.BytesIO(first)) as picture:
        assert (picture.format, picture.size, picture.mode) == ("JPEG", (70, 33), "RGB")
        assert len(picture.getcolors(70 * 33)) > 500
    with Image.open(io.BytesIO(jpeg("a-0", PictureSize(1, 1)))) as picture:
        assert picture.size == (1, 1)


@pytest.mark.parametrize(("text", "size"), [("336", PictureSize(336, 336)), ("640x48", PictureSize(640, 48))])
def test_sizes(text: str, size: PictureSize) -> None:
    assert PictureSize.read(text) == size


@pytest.mark.parametrize("text", ["", "0", "x", "3x", "x3", "0x5", "3x4x5", "-3", "1.5", "99999"])
def test_wrong_sizes(text: str) -> None:
    with pytest.raises(ConfigError, match="--image-size"):
        PictureSize.read(text)


def names(requests: list[Request]) -> list[str]:
    return [name for request in requests for name in request.images]


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9, 1.0])
def test_the_share_of_repeated_pictures(share: float) -> None:
    requests = make(500, "4", "4", images=Images(each=2, repeats=share))
    sent = names(requests)
    assert len(sent) == 1000
    assert 1 - len(set(sent)) / 1000 == pytest.approx(share, abs=0.04 if 0 < share < 1 else 0.0011)
    assert requests == make(500, "4", "4", images=Images(each=2, repeats=share))
    assert not set(sent) & set(names(make(500, "4", "4", images=Images(2, share), name="warmup-")))


def test_marks_stand_before_the_prompt() -> None:
    plain, shown = make(3, "5", "4"), make(3, "5", "4", images=Images(each=2))
    assert [request.prompt for request in shown] == [[IMAGE_ID, IMAGE_ID, *request.prompt] for request in plain]
    text = make(1, "5", "4", prompt="text", images=Images(1, tag="<img></img>"))[0]
    assert text.prompt == "<img></img>" + str(make(1, "5", "4", prompt="text")[0].prompt)


def test_entries() -> None:
    async def main() -> None:
        size = PictureSize(40, 30)
        async with entries(size, "base64") as entry:
            sent = entry("a-1")
            assert sent["type"] == "base64"
            assert base64.b64decode(sent["data"]) == jpeg("a-1", size)
        async with entries(size, "url") as entry, aiohttp.ClientSession() as session:
            sent = entry("a-1")
            assert sent["type"] == "url"
            async with session.get(sent["data"]) as response:
                assert response.headers["Content-Type"] == "image/jpeg"
                assert await response.read() == jpeg("a-1", size)
        with pytest.raises(aiohttp.ClientConnectorError):
            async with aiohttp.ClientSession() as session, session.get(sent["data"]):
                pass

    asyncio.run(main())
