"""A whole engine of real processes inside a test: every actor but the model, which is tests/actors/mock_actor.py."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Generic, TypeVar

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from lightllm_mp.actors.front.actor import FrontActor
from lightllm_mp.actors.front.live_request import LiveRequest
from lightllm_mp.actors.runtime.mailbox import Mailbox
from lightllm_mp.actors.runtime.stats_page import StatsPage
from lightllm_mp.actors.supervision.state_machine import State
from lightllm_mp.actors.supervision.supervisor import Supervisor
from lightllm_mp.actors.topology import EMBEDDED, Topology, topology
from lightllm_mp.config import Config, EngineConfig, SupervisorConfig
from lightllm_mp.messages import Guide, Output, Sampling, Terms
from lightllm_mp.model_description import ModelDescription
from lightllm_mp.models.model_config import read_model_config
from lightllm_mp.vision.vision_config import read_vision
from tests.paths import GOLDENS

T = TypeVar("T")
DEADLINE = 240.0
"""Seconds after which a test of this folder has hung."""


def in_time(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an async test; past DEADLINE it has hung, which is a failure that still cleans up."""

    @functools.wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*arguments, **named), DEADLINE))

    return run


class Shared(Generic[T]):
    """An engine that the tests of a module use one after the other: starting one takes longer than most of them. After
    a test that fails the next one gets a new one."""

    def __init__(self, start: Callable[[], AbstractAsyncContextManager[T]]) -> None:
        self._start = start
        self._runner: asyncio.Runner | None = None
        self._stack = contextlib.AsyncExitStack()

    def run(self, test: Callable[[T], Coroutine[Any, Any, None]]) -> None:
        """Run an async test; past DEADLINE it has hung."""
        if self._runner is None:
            self._runner = asyncio.Runner()
            self._shared = self._runner.run(self._stack.enter_async_context(self._start()))
        try:
            self._runner.run(asyncio.wait_for(test(self._shared), DEADLINE))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        runner, self._runner = self._runner, None
        if runner is not None:
            with runner:
                runner.run(self._stack.aclose())


def on_shared(test: Callable[[Any], Coroutine[Any, Any, None]]) -> Callable[[Shared[Any]], None]:
    """An async test with the engine of the module's fixture `shared`."""

    def run(shared: Shared[Any]) -> None:
        shared.run(test)

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


def write_byte_tokenizer(folder: Path) -> Path:
    """A tokenizer folder whose ids are the 256 bytes: random ids are random, often broken, UTF-8."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: index for index, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return folder


def mocked(plan: Topology, program: str = "tests.actors.mock_actor:MockWorkerActor", name: str = "worker") -> Topology:
    """The topology with another program for the actors whose names begin so."""
    children = tuple(
        dataclasses.replace(child, program=program) if child.name.startswith(name) else child for child in plan.children
    )
    return dataclasses.replace(plan, children=children)


def config(*, kv_tokens: int = 20_000, run_ahead: int = 0, **supervisor: float) -> Config:
    return Config(
        engine=EngineConfig(max_total_token_num=kv_tokens, run_ahead=run_ahead),
        supervisor=SupervisorConfig(**{"max_restarts": 100, "log_level": "warning", **supervisor}),  # type: ignore[arg-type]
    )


@dataclasses.dataclass
class Embedded:
    supervisor: Supervisor
    front: FrontActor
    running: asyncio.Task[int]

    def submit(
        self, prompt: str | bytes, tokens: int, *, seed: int = 0, guide: Guide | None = None, **output: object
    ) -> LiveRequest:
        sampling = Sampling(seed=seed, max_new_tokens=tokens, ignore_eos=True)
        terms = Terms(sampling, Output(**output), guide=guide)  # type: ignore[arg-type]
        return self.front.frontend.submit(prompt, terms)

    async def collect(self, live: LiveRequest) -> tuple[list[int], str]:
        """Ids and text of a stream, to its end."""
        ids, text = [], ""
        try:
            async for event in live:
                ids.append(event.id)
                text += event.text
        finally:
            live.close()
        return ids, text

    async def until(self, state: State) -> None:
        while self.supervisor.state is not state and not self.running.done():
            await asyncio.sleep(0.005)

    async def until_idle(self) -> dict[str, float]:
        """The router's numbers once nothing runs and no lane holds anything."""
        while True:
            numbers = self.front.all_stats().get("router", {})
            busy = numbers.get("running", 0) or numbers.get("waiting", 0) or numbers.get("kv_used", 0)
            if not busy and self.supervisor.wiring.idle():
                return numbers
            await asyncio.sleep(0.01)

    def kill(self, name: str) -> None:
        self.supervisor.kill(name)

    def pid(self, name: str) -> int:
        return self.supervisor.pids[name]


def described(folder: Path, *, images: bool = False) -> ModelDescription:
    """The model of a folder; of one without a configuration, whose worker is a mock, that of a tiny Llama."""
    real = (folder / "config.json").is_file()
    spec = read_model_config(folder if real else GOLDENS / "llama")
    return ModelDescription(str(folder), spec, read_vision(folder) if images else None)


@contextlib.asynccontextmanager
async def embedded(
    folder: Path, settings: Config | None = None, plan: Topology | None = None, **shown: Any
) -> AsyncIterator[Embedded]:
    """A running engine; at exit everything is stopped, also when the test failed. `shown`: what Supervisor tells."""
    write_byte_tokenizer(folder)
    plan = plan or mocked(topology(front=EMBEDDED, max_body=1 << 20))
    settings = settings or config()
    model = described(folder, images=settings.multimodal.enable_multimodal)
    supervisor = Supervisor(settings, model, listen=None, plan=plan, **shown)
    running = asyncio.create_task(supervisor.run())
    await asyncio.sleep(0)
    launch = supervisor.embedded_launch()
    mailbox = Mailbox(launch)
    front = FrontActor(launch, mailbox, StatsPage.attach(launch.stats))
    front.listen()
    front.ready()
    engine = Embedded(supervisor, front, running)
    try:
        await engine.until(State.RUNNING)
        while not front.live and not running.done():
            await asyncio.sleep(0.005)
        yield engine
    finally:
        supervisor.begin_stop()
        await running
        front.close()
