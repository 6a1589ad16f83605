"""The offline API: `Engine` runs the actors of the server without an HTTP port, for the calling program alone.

    with Engine() as engine:
        for answer in engine.generate(["What is AI?", "Name a colour."], max_new_tokens=32):
            print(answer.text)

Parameters are those of `/generate` (see the README). A call blocks its thread; calls of several threads run together.
"""

from __future__ import annotations

import asyncio
import threading
from array import array
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, wait
from typing import Any, Literal, TypeVar

import msgspec
from msgspec import Struct

from lightllm_mp.actors.front import validation
from lightllm_mp.actors.front.actor import FrontActor
from lightllm_mp.actors.front.embeddings import shortened
from lightllm_mp.actors.front.image_files import Upload
from lightllm_mp.actors.front.live_request import Answer, Event, LiveRequest
from lightllm_mp.actors.front.request_table import Prompt
from lightllm_mp.actors.runtime.logs import set_up_logging
from lightllm_mp.actors.runtime.mailbox import Mailbox
from lightllm_mp.actors.runtime.stats_page import StatsPage
from lightllm_mp.actors.supervision.state_machine import EXIT_GAVE_UP
from lightllm_mp.actors.supervision.supervisor import Supervisor
from lightllm_mp.cli.model_check import check_model
from lightllm_mp.config import Config
from lightllm_mp.errors import ConfigError, EngineError, InvalidRequest, StartupError
from lightllm_mp.messages import ChatPrompt, Facts, Terms
from lightllm_mp.model_files.default_model import find_model
from lightllm_mp.sampling_parameters import POOLED, RequestParameters, terms

T = TypeVar("T")
P = TypeVar("P")
Chat = Sequence[Mapping[str, str]]
"""Messages such as {"role": "user", "content": "Hello"}."""


class EngineEnded(EngineError):
    """The engine is closed or has failed. The message says why."""

    code = "engine_ended"


class Completion(Struct, frozen=True):
    """One answer."""

    text: str
    token_ids: list[int]
    logprobs: list[float]
    """Logprob of each token in the model's distribution, before temperature and truncation."""
    finish_reason: str
    prompt_tokens: int
    cached_tokens: int
    """Number of prompt tokens whose KV was reused."""


class Engine:
    """An engine with its own processes. Close it, or use it as a context manager. StartupError if it cannot start."""

    def __init__(self, config: Config | None = None, *, model_dir: str | None = None) -> None:
        config = config or Config()
        if model_dir is not None:
            config = msgspec.structs.replace(config, model=msgspec.structs.replace(config.model, model_dir=model_dir))
        set_up_logging("warning" if config.supervisor.log_level == "info" else config.supervisor.log_level)
        self._config = config
        model = find_model(config.model.model_dir, images=config.multimodal.enable_multimodal)
        images, task = config.multimodal.enable_multimodal, config.model.task
        self._model = check_model(model, ranks=config.engine.tp, weights=False, images=images, task=task)
        self._loop = asyncio.new_event_loop()
        self._serving: Future[Facts] = Future()
        self._thread = threading.Thread(target=self._main, name="lightllm-mp", daemon=True)
        self._thread.start()
        try:
            self.facts = self._serving.result()
        except EngineError:
            self._thread.join()
            raise

    # --- for users ----------------------------------------------------------------------------------------------------

    def generate(
        self,
        prompts: str | Sequence[str | Sequence[int]],
        *,
        images: Sequence[Sequence[bytes]] = (),
        **parameters: Any,
    ) -> list[Completion]:
        """Answers to all prompts (texts or lists of token ids), in order. With n > 1 a prompt's n answers are adjacent.

        `images`: for each prompt its image files, in the order of its image tags (or of its ids -200).
        """
        return self._completions(_prompts(prompts), _parse(parameters), images)

    def score(self, prompts: str | Sequence[str | Sequence[int]]) -> list[float]:
        """Scores of a reward model for texts or lists of token ids, in order."""
        return [answer.score for answer in self._pooled(prompts, "score")]

    def embed(
        self, prompts: str | Sequence[str | Sequence[int]], *, dimensions: int | None = None
    ) -> list[array[float]]:
        """Embeddings of texts or lists of token ids, in order, as arrays of float32. `dimensions` cuts them, where the
        model was trained for it."""
        length = validation.embedding_length(self.facts.engine, dimensions)
        return [shortened(answer.pooled, length) for answer in self._pooled(prompts, "embed")]

    def chat(self, messages: Chat, **parameters: Any) -> Completion:
        """The answer to a conversation, through the model's chat template."""
        return self._completions([_chat(messages)], _parse(parameters))[0]

    def stream(self, prompt: str | Sequence[int], **parameters: Any) -> Iterator[Event]:
        """Yields one event per token as soon as it is produced. Closing the iterator early aborts the request."""
        events = self._events(_prompt(prompt), _parse(parameters))
        try:
            while (event := self._wait(lambda: anext(events, None))) is not None:
                yield event
        finally:
            if self._thread.is_alive():
                self._wait(events.aclose)

    def close(self) -> None:
        """Stop all processes. Idempotent."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._supervisor.begin_stop)
            self._thread.join()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # --- requests, on the engine's loop -------------------------------------------------------------------------------

    def _wait(self, work: Callable[[], Awaitable[T]]) -> T:
        """Run `work` on the engine's loop and wait. EngineEnded if the engine is closed, or ends meanwhile."""

        async def run() -> T:
            return await work()

        work_done = run()
        try:
            future = asyncio.run_coroutine_threadsafe(work_done, self._loop)
        except RuntimeError:  # the loop is closed
            work_done.close()
            raise self._ended() from None
        while True:
            # If the loop ends before the call's first step, the future never completes. So look at the thread too.
            wait([future], timeout=None if future.done() else 1.0)
            if future.done() or not self._thread.is_alive():
                break
        try:
            return future.result(timeout=0)
        except (CancelledError, TimeoutError):
            work_done.close()  # does nothing if it has run
            raise self._ended() from None

    def _ended(self) -> EngineEnded:
        return EngineEnded(self._supervisor.reason or "the engine is closed")

    def _completions(
        self, prompts: list[Prompt], parameters: RequestParameters, images: Sequence[Sequence[bytes]] = ()
    ) -> list[Completion]:
        if images and len(images) != len(prompts):
            raise InvalidRequest(f"images has entries for {len(images)} prompts, but there are {len(prompts)} prompts")
        uploads = [self._uploads(files) for files in images] or [()] * len(prompts)
        asked = list(zip(prompts, uploads, strict=True))
        answers = self._wait(lambda: self._all(asked, lambda one: self._submit(*one, parameters, stream=False)))
        return [_completion(answer) for answer in answers]

    def _pooled(self, prompts: str | Sequence[str | Sequence[int]], task: Literal["embed", "score"]) -> list[Answer]:
        submit, many, how = self._front.frontend.submit, _prompts(prompts), Terms(POOLED, task=task)
        return self._wait(lambda: self._all(many, lambda one: submit(one, how, stream=False)))

    def _uploads(self, files: Sequence[bytes]) -> tuple[Upload, ...]:
        lane = self._front.frontend.images
        return tuple(lane.judge.upload(bytes(data)) for data in files)

    async def _all(self, prompts: Sequence[P], submit: Callable[[P], LiveRequest]) -> list[Answer]:
        """Submits at most max_live_requests at a time, so a long list is never refused."""
        room = asyncio.Semaphore(self._config.http.max_live_requests)

        async def one(prompt: P) -> list[Answer]:
            async with room:
                live = submit(prompt)
                try:
                    return await live.answer()
                finally:
                    live.close()

        tasks = [asyncio.ensure_future(one(prompt)) for prompt in prompts]
        try:
            found = await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            raise
        return [answer for answers in found for answer in answers]

    async def _events(self, prompt: Prompt, parameters: RequestParameters) -> AsyncGenerator[Event, None]:
        live = self._submit(prompt, (), parameters, stream=True)
        try:
            async for event in live:
                yield event
        finally:
            live.close()

    def _submit(
        self, prompt: Prompt, images: Sequence[Upload], parameters: RequestParameters, *, stream: bool
    ) -> LiveRequest:
        return self._front.frontend.submit(prompt, terms(parameters), images=images, stream=stream)

    # --- the engine's thread ------------------------------------------------------------------------------------------

    async def _watch_front(self) -> None:
        try:
            await self._front.until_stopped()
        except Exception as error:
            self._supervisor.begin_stop(EXIT_GAVE_UP, f"the front failed: {error}")

    def _main(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._run())
        except BaseException as error:
            if self._serving.done():
                raise
            self._serving.set_exception(error)
        finally:
            self._loop.close()

    async def _run(self) -> None:
        supervisor = Supervisor(self._config, self._model, listen=None, on_serving=self._serving.set_result)
        self._supervisor = supervisor
        running = asyncio.create_task(supervisor.run())
        launch = supervisor.embedded_launch()
        mailbox = Mailbox(launch)
        self._front = FrontActor(launch, mailbox, StatsPage.attach(launch.stats))
        self._front.listen()
        self._front.ready()
        watch = asyncio.create_task(self._watch_front())
        try:
            await running
        finally:
            watch.cancel()
            while calls := asyncio.all_tasks() - {asyncio.current_task()}:
                for call in calls:
                    call.cancel()
                await asyncio.gather(*calls, return_exceptions=True)
            self._front.close()
            if not self._serving.done():
                self._serving.set_exception(StartupError(supervisor.reason or "the engine did not start"))


def _prompts(prompts: str | Sequence[str | Sequence[int]]) -> list[Prompt]:
    return [_prompt(prompt) for prompt in ([prompts] if isinstance(prompts, str) else prompts)]


def _prompt(prompt: str | Sequence[int]) -> Prompt:
    return prompt if isinstance(prompt, str) else array("i", prompt).tobytes()


def _chat(messages: Chat) -> Prompt:
    try:
        return ChatPrompt(msgspec.json.encode([dict(message) for message in messages]))
    except UnicodeEncodeError:
        raise InvalidRequest("a message holds half a surrogate pair", param="messages") from None


def _parse(parameters: Mapping[str, Any]) -> RequestParameters:
    unknown = parameters.keys() - set(RequestParameters.__struct_fields__)
    if unknown:
        raise ConfigError(f"unknown parameters: {', '.join(sorted(unknown))}")
    try:
        given = dict(parameters)
        if isinstance(schema := given.get("guided_json"), dict):
            given["guided_json"] = msgspec.json.encode(schema).decode()
        return msgspec.convert(given, RequestParameters)
    except msgspec.ValidationError as error:
        raise InvalidRequest(str(error)) from None


def _completion(answer: Answer) -> Completion:
    return Completion(
        answer.text,
        answer.ids.tolist(),
        [event.logprob for event in answer.events() if event.id >= 0],
        answer.finish or "",
        answer.prompt_tokens,
        answer.cached_tokens,
    )
