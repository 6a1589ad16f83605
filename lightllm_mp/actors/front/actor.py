"""The base actor of the HTTP process and of the embedded engine: a request table on a mailbox, on an asyncio loop."""

from __future__ import annotations

from lightllm_mp.actors.front.image_files import Files, ImageJudge, ImageLane
from lightllm_mp.actors.front.request_journal import RequestJournal
from lightllm_mp.actors.front.request_limits import RequestLimits
from lightllm_mp.actors.front.resumable_table import ResumableTable
from lightllm_mp.actors.runtime.actor_settings import FrontSettings
from lightllm_mp.actors.runtime.async_actor import AsyncActor
from lightllm_mp.actors.runtime.launch_spec import LaunchSpec
from lightllm_mp.actors.runtime.mailbox import Mailbox
from lightllm_mp.actors.runtime.stats_page import StatsPage
from lightllm_mp.actors.topology import ROUTER, SUPERVISOR, TOKENIZER, VISUAL
from lightllm_mp.messages import Begin, Blamed, Drained, Health, Wire


class FrontActor(AsyncActor):
    """`tenants`: how many API keys there are. `queue_seconds`, `journal`, `resume_window`: see RequestTable."""

    def __init__(
        self,
        launch: LaunchSpec[FrontSettings],
        mailbox: Mailbox,
        stats: StatsPage,
        *,
        tenants: int = 1,
        queue_seconds: float = 0.0,
        journal: RequestJournal | None = None,
        resume_window: float = 0.0,
    ) -> None:
        super().__init__(mailbox, stats)
        self.frontend = ResumableTable(
            lambda message: mailbox.send(TOKENIZER, message),
            lambda message: mailbox.send(ROUTER, message),
            limits=RequestLimits(launch.settings.http.max_live_requests, tenants),
            queue_seconds=queue_seconds,
            images=_image_lane(launch, mailbox, tenants),
            journal=journal,
            resume_window=resume_window,
            retained_bytes=launch.settings.http.journal_size,
            answer_bytes=launch.settings.http.max_answer_bytes_live,
        )
        self.frontend.on_drained = lambda: mailbox.post(SUPERVISOR, Drained())
        self.frontend.on_blame = lambda name, epoch: mailbox.post(SUPERVISOR, Blamed(name, epoch))
        self._pages = {name: stats if name == launch.name else StatsPage.attach(fd) for name, fd in launch.all_stats}

    def close(self) -> None:
        """Close every file descriptor."""
        self.mailbox.close()
        for page in {self.stats, *self._pages.values()}:
            page.close()

    def all_stats(self) -> dict[str, dict[str, float]]:
        """{actor: {name: value}}, read from every actor's stats page in shared memory; sends no message."""
        found = {name: page.read() for name, page in self._pages.items()}
        supervisor = found.get(SUPERVISOR, {})
        lanes = {name: value for name, value in supervisor.items() if "->" in name}
        return {**found, SUPERVISOR: {n: v for n, v in supervisor.items() if n not in lanes}, "lanes": lanes}

    def on_begin(self, begin: Begin) -> None:
        self.frontend.begin(begin)

    def on_reset(self) -> None:
        self.frontend.reset()

    def on_message(self, peer: str, message: Wire) -> None:
        self.frontend.deliver(message)

    def on_control(self, message: Wire) -> None:
        if isinstance(message, Health):
            self.frontend.health(message)

    def after_records(self) -> None:
        self.frontend.flush()


def _image_lane(launch: LaunchSpec[FrontSettings], mailbox: Mailbox, tenants: int) -> ImageLane | None:
    """The lane to the visual actor; None if there is no visual actor."""
    settings, vision = launch.settings, launch.model.vision
    if vision is None or VISUAL not in {peer.name for peer in launch.peers}:
        return None
    return ImageLane(
        ImageJudge(settings.images, settings.model.data_type, vision),
        Files(settings.images.max_image_bytes_live, tenants),
        lambda data, known: mailbox.lend(VISUAL, data, known),
        lambda ref: mailbox.take_back(VISUAL, ref),
        lambda message: mailbox.send(VISUAL, message),
    )
