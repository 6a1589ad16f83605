"""A decoder process that an image has taken over reaches no file, no socket and no process, and ends nothing else."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightllm_mp.actors.visual import decoder_pool
from lightllm_mp.actors.visual.decoder_pool import DecoderPool, DecoderProcess, check_decoder
from lightllm_mp.errors import InvalidRequest, Overloaded, StartupError
from lightllm_mp.sandbox import LAYERS, SECCOMP, Layer, landlock_version, missing_layers
from lightllm_mp.shm import segment
from lightllm_mp.vision.decode import decode
from lightllm_mp.vision.decoder_process import Settings
from lightllm_mp.vision.header import read_header
from lightllm_mp.vision.preprocess import preprocess
from tests.actors.embedded import described, in_time
from tests.actors.visual.decoders import hostile
from tests.actors.visual.seeing import png, seeing
from tests.paths import GOLDENS
from tests.vision.image_files import every_kind

DECODERS = "tests.actors.visual.decoders"
SPELLINGS = ("PermissionError", "OSError", "ValueError", "MemoryError", "ModuleNotFoundError", "KeyError")
HERE = missing_layers()

needs_seccomp = pytest.mark.skipif("seccomp" in HERE, reason="this machine refuses seccomp")
needs_landlock = pytest.mark.skipif(landlock_version() < 6, reason="this kernel has no Landlock that knows signals")


@pytest.fixture(scope="module")
def settings() -> Settings:
    vision = described(GOLDENS / "llava_hf", images=True).vision
    assert vision is not None
    return Settings(vision.spec, 32 << 20, 64_000_000)


async def refusals(decoder: DecoderProcess, names: tuple[str, ...]) -> dict[str, str]:
    """What became of each attack; an image that follows is decoded."""
    results = {}
    for name in names:
        with pytest.raises(InvalidRequest) as caught:
            await decoder.decode(png(1), hostile.width(name), 30)
        results[name] = caught.value.message
        assert (await decoder.decode(png(2), 40, 30)).pixels.shape[0] == 3
    return results


@needs_seccomp
def test_a_hostile_decoder_reaches_nothing(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTLLM_MP_API_KEYS", "secret")

    @in_time
    async def body() -> None:
        decoder = DecoderProcess(settings, f"{DECODERS}.hostile")
        try:
            results = await refusals(decoder, tuple(hostile.ATTACKS))
            # They failed inside the same process, which decodes on.
            assert {name for name, said in results.items() if not said.startswith(f"{name}: ")} == set()
            assert {said for said in results.values() if not said.endswith(SPELLINGS)} == set()
            assert decoder.restarts == 0
        finally:
            await decoder.close()

    body()
    assert not Path("/tmp/lightllm-mp-hostile").exists()


@needs_landlock
def test_without_seccomp_files_and_processes_stay_out_of_reach(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SECCOMP, "0")
    names = (
        "read a file",
        "read the keys",
        "read the parent",
        "write the parent",
        "list a folder",
        "write a file",
        "make a folder",
        "remove a file",
        "import",
        "socket",
        "connect",
        "ptrace",
        "process_vm_readv",
        "kill",
        "stop",
        "shrink",
        "grow",
        "huge",
        "limits",
    )

    @in_time
    async def body() -> None:
        decoder = DecoderProcess(settings, f"{DECODERS}.hostile")
        try:
            assert await decoder.missing_layers() == ("seccomp",)
            results = await refusals(decoder, names)
            assert {said for said in results.values() if not said.endswith(SPELLINGS)} == set()
        finally:
            await decoder.close()

    body()


@pytest.mark.parametrize("name", [*hostile.ANSWERS, *hostile.DEEDS])
def test_what_a_hostile_decoder_says_fails_its_image_only(settings: Settings, name: str) -> None:
    @in_time
    async def body() -> None:
        decoder = DecoderProcess(settings, f"{DECODERS}.hostile")
        try:
            assert await refusals(decoder, (name,)) == {name: "an image cannot be decoded"}
            assert decoder.restarts == 1
        finally:
            await decoder.close()

    body()


def test_a_decoder_that_nobody_reads_any_more_ends(settings: Settings) -> None:
    """What it wrote has filled the buffer, so that its pipe is not read."""

    @in_time
    async def body() -> None:
        decoder = DecoderProcess(settings, f"{DECODERS}.flood")
        process = await decoder.start()
        reader: Any = process.stdout
        while not reader._paused:
            await asyncio.sleep(0.01)
        await decoder.close()
        assert process.returncode == -signal.SIGKILL

    body()


def test_a_decoder_that_hangs_fails_its_image_only(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder_pool, "SECONDS", 7.0)

    @in_time
    async def body() -> None:
        decoder = DecoderProcess(settings, f"{DECODERS}.hostile")
        try:
            with pytest.raises(InvalidRequest, match="longer than 7 s"):
                await decoder.decode(png(1), hostile.HANG, 30)
            assert (await decoder.decode(png(2), 40, 30)).pixels.shape[0] == 3
        finally:
            await decoder.close()

    body()


def test_memory_is_reserved_before_an_image(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """If there is too little, the image waits outside: no process gets a SIGBUS."""

    @in_time
    async def body() -> None:
        decoder = DecoderProcess(settings)
        try:
            with monkeypatch.context() as tight:
                tight.setattr(segment, "free_memory", lambda: 1 << 20)
                with pytest.raises(Overloaded, match="too little memory"):
                    await decoder.decode(png(1) + bytes(2 << 20), 40, 30)
            assert (await decoder.decode(png(1) + bytes(2 << 20), 40, 30)).pixels.shape[0] == 3
        finally:
            await decoder.close()

    body()


@needs_seccomp
@in_time
async def test_the_visual_actor_lives_on(tmp_path: Path) -> None:
    """In an engine of real processes, whose visual actor is the parent that is attacked."""
    async with seeing(tmp_path, visual="tests.actors.visual.hostile_visual:HostileVisual") as s:
        undisturbed = await s.ask([png(1)])
        visual = s.engine.pid("visual")
        images = [png(number, hostile.width(name)) for number, name in enumerate(hostile.NAMES, 100)]
        results = await asyncio.gather(*[s.ask([image]) for image in images], return_exceptions=True)
        assert [type(result) for result in results] == [InvalidRequest] * len(images), results
        assert await s.ask([png(1)]) == undisturbed
        assert len(await s.ask([png(2)])) == 3
        assert s.engine.pid("visual") == visual
        await s.clean()


@in_time
async def test_confined_pixels_are_the_same(settings: Settings) -> None:
    """Images of every kind: inside the confinement they become what they become outside, or the same error."""
    decoder = DecoderProcess(settings)
    try:
        for kind, data in every_kind():
            header = read_header(data)
            expected = preprocess(decode(data, header), settings.spec)
            made = await decoder.decode(data, header.width, header.height)
            assert made.grid == expected.grid, kind
            assert np.array_equal(made.pixels, expected.pixels), kind
        assert decoder.restarts == 0
    finally:
        await decoder.close()


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (f"{DECODERS}.mute", "the image decoder ends at its start"),
        ("tests.actors.visual.decoders.absent", "the image decoder ends at its start"),
        pytest.param(f"{DECODERS}.clipped", "image decoder", marks=needs_seccomp),
    ],
)
def test_a_decoder_that_cannot_work_is_an_error_at_start(settings: Settings, program: str, message: str) -> None:
    """Also where the libc needs a system call that the filter refuses: not in the middle of an image."""
    with pytest.raises(StartupError, match=f"{message}.*LIGHTLLM_MP_SECCOMP=0"):
        check_decoder(settings, program)


@pytest.mark.skipif(HERE != (), reason="this machine itself refuses a layer")
@pytest.mark.parametrize(("program", "missing"), [("refused", LAYERS), ("", ())])
def test_a_layer_that_the_machine_refuses_is_told_once(
    settings: Settings, caplog: pytest.LogCaptureFixture, program: str, missing: tuple[Layer, ...]
) -> None:
    program = f"{DECODERS}.{program}" if program else "lightllm_mp.vision.decoder_process"

    @in_time
    async def body() -> None:
        decoder = DecoderProcess(settings, program)
        try:
            assert await decoder.missing_layers() == missing
            assert (await decoder.decode(png(2), 40, 30)).pixels.shape[0] == 3
        finally:
            await decoder.close()

    body()
    check_decoder(settings, program)
    told = [record.getMessage() for record in caplog.records if "decoded without" in record.getMessage()]
    assert len(told) == bool(missing)
    assert all("without seccomp and Landlock" in line for line in told)


def test_the_operator_switches_seccomp_off() -> None:
    assert "seccomp" in missing_layers({**os.environ, SECCOMP: "0"})


def test_a_fork_that_the_kernel_refuses_fails_one_image(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    real, refused = asyncio.create_subprocess_exec, [True, True]

    async def start(*arguments: Any, **named: Any) -> Any:
        if refused:
            refused.pop()
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return await real(*arguments, **named)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", start)

    @in_time
    async def body() -> None:
        pool = DecoderPool(settings, 1)
        try:
            await pool.start()
            with pytest.raises(Overloaded, match="cannot be started: Resource temporarily unavailable"):
                await pool.decode(png(1), 40, 30)
            assert (await pool.decode(png(1), 40, 30)).pixels.shape[0] == 3
        finally:
            await pool.close()

    body()
