"""Targets for files from strangers: images of requests, checkpoints and tokenizers that an operator downloads."""

from __future__ import annotations

import base64
import json
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightllm_mp.errors import EngineError, ModelError
from lightllm_mp.model_files.gguf_header import read_header as read_gguf_header
from lightllm_mp.models.checkpoint.gguf import read_gguf
from lightllm_mp.models.checkpoint.preflight import shapes
from lightllm_mp.text.sentencepiece_file import from_sentencepiece
from lightllm_mp.text.tiktoken_file import from_tiktoken
from lightllm_mp.vision.header import ALLOWED, ImageLimits, read_header
from tools.fuzz.features import seen, size_class
from tools.fuzz.refusal import check_refusal

LIMITS = ImageLimits(max_bytes=1 << 16, max_pixels=1 << 20, max_edge=5000)
MOST_READ = 1 << 16
"""Bytes of a tensor that is read, not only found."""


@contextmanager
def file_of(data: bytes) -> Iterator[Path]:
    """The path of a file in memory that holds `data`."""
    fd = os.memfd_create("fuzzed", os.MFD_CLOEXEC)
    try:
        os.write(fd, data)
        yield Path(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def image(data: bytes) -> None:
    """Reads the size of an image within the limits, or raises the client's error."""
    try:
        found = read_header(data, LIMITS)
    except EngineError as error:
        check_refusal(error)
        return
    assert found.format in ALLOWED
    assert 1 <= found.orientation <= 8
    assert 1 <= found.width <= LIMITS.max_edge
    assert 1 <= found.height <= LIMITS.max_edge
    assert found.width * found.height <= LIMITS.max_pixels


def image_seeds() -> list[bytes]:
    """The smallest file of each format, with an orientation if the format has one."""
    tags = struct.pack("<HHHII", 3, 0x0100, 4, 1, 30) + struct.pack("<HHIIHHII", 0x0101, 4, 1, 40, 0x0112, 3, 1, 6)
    tiff = b"II*\0" + struct.pack("<I", 8) + tags + bytes(4)
    exif = b"Exif\0\0" + tiff
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBBI", 13, b"IHDR", 30, 40, 8, 2, 0, 0, 0, 0)
    png_end = struct.pack(">I4sI", 0, b"IDAT", 0)
    frame = b"\xff\xc0\x00\x11\x08" + struct.pack(">HH", 40, 30) + b"\x03" + bytes(9)
    app1 = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif

    def riff(*chunks: bytes) -> bytes:
        body = b"WEBP" + b"".join(chunks)
        return b"RIFF" + struct.pack("<I", len(body)) + body

    extended = b"VP8X" + struct.pack("<II", 10, 8) + b"\x1d\x00\x00\x27\x00\x00"
    screen = b"GIF89a" + struct.pack("<HHBBB", 30, 40, 0x80, 0, 0) + bytes(6)
    first_frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, 30, 40, 0) + b"\x02\x02\x4c\x01\x00\x3b"
    return [
        png + png_end,
        png + struct.pack(">I4s", len(tiff), b"eXIf") + tiff + bytes(4) + png_end,
        b"\xff\xd8" + app1 + b"\xff\xff\xe0\x00\x04ab" + frame,
        b"\xff\xd8\xff\xd0\xff\x01" + frame,
        riff(b"VP8 " + struct.pack("<I", 10) + b"\0\0\0\x9d\x01\x2a" + struct.pack("<HH", 30, 40)),
        riff(b"VP8L" + struct.pack("<I", 5) + b"\x2f" + struct.pack("<I", 29 | 39 << 14)),
        riff(extended, b"EXIF" + struct.pack("<I", len(exif)) + exif),
        screen + b"\x21\xf9\x04\x08" + bytes(4) + b"\x00"[:0] + first_frame,
        b"BM" + struct.pack("<IIIIIi", 60, 0, 54, 40, 30, -40) + bytes(30),
        b"BM" + struct.pack("<IIIIHH", 60, 0, 26, 12, 30, 40) + bytes(8),
        tiff,
        b"MM\0*" + struct.pack(">IHHHIHHHHIHH", 8, 2, 0x0100, 3, 1, 30, 0, 0x0101, 3, 1, 40, 0) + bytes(4),
    ]


def gguf(data: bytes) -> None:
    """Reads keys, values and tensors within the file, or raises ModelError."""
    with file_of(data) as path:
        try:
            found = read_gguf(path)
        except ModelError:
            found = None
        try:
            header = read_gguf_header(path)
        except ModelError:
            assert found is None
            return
    assert all(isinstance(key, str) for key in header)
    for tensor in found.tensors.values() if found else ():
        assert 0 < tensor.start <= tensor.start + tensor.size <= len(data)
        if tensor.size <= MOST_READ:
            try:
                assert found is not None
                assert found.read(tensor.name).shape == tensor.shape
            except ModelError:
                pass


def gguf_seeds() -> list[bytes]:
    def text(value: bytes) -> bytes:
        return struct.pack("<Q", len(value)) + value

    pairs = [
        text(b"general.architecture") + struct.pack("<I", 8) + text(b"llama"),
        text(b"general.alignment") + struct.pack("<II", 4, 32),
        text(b"a.bool") + struct.pack("<IB", 7, 1),
        text(b"a.float") + struct.pack("<If", 6, 0.5),
        text(b"a.ints") + struct.pack("<IIQiii", 9, 5, 3, 1, 2, 3),
        text(b"a.texts") + struct.pack("<IIQ", 9, 8, 2) + text(b"x") + text("é".encode()),
    ]
    tensors = text(b"weight") + struct.pack("<IQQIQ", 2, 4, 2, 0, 0)
    tensors += text(b"quantised") + struct.pack("<IQIQ", 1, 32, 8, 32)
    body = b"GGUF" + struct.pack("<IQQ", 3, 2, len(pairs)) + b"".join(pairs) + tensors
    return [body + bytes(-len(body) % 32 + 96), b"GGUF" + struct.pack("<IQQ", 2, 0, 1) + pairs[1]]


def safetensors(data: bytes) -> None:
    """Reads shapes of tensors of a whole file, or raises ModelError."""
    with file_of(data) as path:
        try:
            found = shapes([path])
        except ModelError as error:
            seen(error.message[len(str(path)) :][:100])
            return
    for name, shape in found.items():
        assert isinstance(name, str)
        assert all(isinstance(length, int) and length >= 0 for length in shape), shape
        seen("read", size_class(name), size_class(shape))


def safetensors_seeds() -> list[bytes]:
    def whole(header: object, size: int) -> bytes:
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + bytes(size)

    first = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
    second = {"dtype": "BF16", "shape": [3], "data_offsets": [16, 22]}
    return [
        whole({"a": first, "b": second, "__metadata__": {"format": "pt"}}, 22),
        whole({}, 0),
        whole({"a": first}, 9),
    ]


def sentencepiece(data: bytes) -> None:
    """A tokenizer that encodes a text, or a ModelError."""
    with file_of(data) as path:
        try:
            backend, _ = from_sentencepiece(path, {})
        except ModelError:
            return
    assert all(0 <= id_ < backend.get_vocab_size() for id_ in backend.encode("hello  world é").ids)


def _field(number: int, value: int | bytes | float) -> bytes:
    if isinstance(value, bytes):
        return bytes([number << 3 & 255 | 2 | (0x80 if number > 15 else 0)][:1]) + bytes([len(value)]) + value
    if isinstance(value, float):
        return bytes([number << 3 | 5]) + struct.pack("<f", value)
    return bytes([number << 3]) + bytes([value])


def sentencepiece_seeds() -> list[bytes]:
    """A BPE and a unigram model with a few pieces."""
    kinds = [
        ("<unk>", 2),
        ("<s>", 3),
        ("</s>", 3),
        ("<0x0A>", 6),
        *((word, 1) for word in ("▁", "h", "e", "he", "▁he")),
    ]
    pieces = b"".join(
        _field(1, _field(1, word.encode()) + _field(2, -float(score)) + _field(3, kind))
        for score, (word, kind) in enumerate([*kinds, ("<own>", 4)])
    )
    normal = _field(3, _field(1, b"identity") + _field(3, 1) + _field(4, 0))
    return [pieces + _field(2, _field(3, kind)) + normal for kind in (1, 2)]


def tiktoken(data: bytes) -> None:
    """Reads a tokenizer and encodes a text, or raises ModelError. The second file has a correct table before `data`."""
    for table in (data, _bytes_table() + data):
        with file_of(table) as path:
            try:
                backend, _ = from_tiktoken(path, has_pictures=False)
            except ModelError:
                continue
        assert all(0 <= id_ < backend.get_vocab_size() for id_ in backend.encode("hello  world é").ids)


def _bytes_table() -> bytes:
    return b"".join(base64.b64encode(bytes([byte])) + b" %d\n" % byte for byte in range(256))


def tiktoken_seeds() -> list[bytes]:
    return [b"".join(base64.b64encode(word) + b" %d\n" % (256 + i) for i, word in enumerate((b"he", b"ll", b"hell")))]
