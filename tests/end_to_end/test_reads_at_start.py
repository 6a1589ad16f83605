"""A server reads a model's configuration once for its description, and once in each process that loads the folder."""

from __future__ import annotations

import ctypes
import os
import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightllm_mp import Config, launch
from lightllm_mp.config import EngineConfig, HttpConfig, ModelConfig, MultimodalConfig
from tests.actors.embedded import write_byte_tokenizer
from tests.end_to_end.served import START
from tests.paths import GOLDENS

IN_OPEN, IN_CLOSE = 0x20, 0x10
"""inotify's masks. The kernel merges equal unread events, so closes keep two opens in a row apart."""
EVENT = struct.Struct("iIII")
RANKS = 2


class Opened:
    """Counts how often any process opened a file."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._count = 0

    @property
    def count(self) -> int:
        try:
            while data := os.read(self._descriptor, 4096):
                self._count += sum(mask == IN_OPEN for _, mask, _, _ in EVENT.iter_unpack(data))
        except BlockingIOError:
            pass
        return self._count


@contextmanager
def watched(file: Path) -> Iterator[Opened]:
    library = ctypes.CDLL(None, use_errno=True)
    descriptor = library.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    assert descriptor >= 0
    try:
        assert library.inotify_add_watch(descriptor, os.fsencode(file), IN_OPEN | IN_CLOSE) >= 0
        yield Opened(descriptor)
    finally:
        os.close(descriptor)


def test_the_counter_counts(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with watched(tmp_path / "file") as opened:
        assert opened.count == 0
        for _ in range(3):
            (tmp_path / "file").read_text()
        assert opened.count == 3


def test_a_start_with_images_on_two_ranks(tmp_path: Path) -> None:
    folder = write_byte_tokenizer(shutil.copytree(GOLDENS / "llava_hf", tmp_path / "llava"))
    config = Config(
        model=ModelConfig(model_dir=str(folder), data_type="float32", device="cpu"),
        engine=EngineConfig(max_total_token_num=2000, tp=RANKS),
        http=HttpConfig(port=0),
        multimodal=MultimodalConfig(enable_multimodal=True),
    )
    with watched(folder / "config.json") as opened, launch(config) as server:
        server.wait_ready(START)
        # The description, each rank's weights, tokenizer and detokenizer; two simultaneous opens may count once.
        assert 1 < opened.count <= 1 + RANKS + 2
