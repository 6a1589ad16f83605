"""What a process is told when it is started: who it is, which descriptors are its lanes, and its settings.

The supervisor writes one `LaunchSpec` as msgpack into a memfd and passes that descriptor's number on the command line;
all descriptors named here are inherited. Nothing is looked up by name, so two servers on one host cannot meet.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Generic, TypeVar

import msgspec
from msgspec import Struct

from lightllm_mp.actors.runtime.actor_settings import ActorSettings
from lightllm_mp.errors import StartupError
from lightllm_mp.facts import Facts
from lightllm_mp.model_description import ModelDescription, from_plain, to_plain
from lightllm_mp.shm.memfd import create_memfd

S = TypeVar("S", bound=ActorSettings)

PACKAGE_PARENT = str(Path(__file__).resolve().parents[3])
STACKS_SIGNAL = signal.SIGUSR1
"""A child that gets it writes the stacks of its threads into the file it was started with."""


class PeerFds(Struct, frozen=True, array_like=True):
    """One neighbour: its bell, the lanes to and from it, and the arenas behind them (-1: none)."""

    name: str
    bell: tuple[int, int]
    to_peer: tuple[int, ...]
    from_peer: tuple[int, ...]
    own_arena: int = -1
    peer_arena: int = -1


class LaunchSpec(Struct, Generic[S], frozen=True, array_like=True):
    """`S`: the settings of this actor (actor_settings.py)."""

    name: str
    program: str
    rank: int
    front: str
    ring: str
    """Which implementation of the ring all lanes use."""
    settings: S
    log_level: str
    log_json: bool
    model: ModelDescription
    bell: tuple[int, int]
    peers: tuple[PeerFds, ...]
    """The supervisor first."""
    stats: int
    """Descriptor of this actor's own stats page."""
    all_stats: tuple[tuple[str, int], ...] = ()
    """Only for the front: everybody's stats pages, read for /metrics."""
    parent_fd: int = -1
    """Reads end-of-file when the supervisor is gone."""
    listen_fd: int = -1
    """The HTTP port's listening socket, only for http."""
    facts: Facts | None = None
    """Set when the process replaces one that died: what its predecessor had reported."""
    meeting_fd: int = -1
    """An empty file in which the tensor-parallel ranks find each other; -1: there is one worker. With `meeting` the
    listening socket there."""
    images_fd: int = -1
    """The arena of images' embeddings, for visual and the workers; -1: no images are served."""
    journal_fd: int = -1
    """The journal of requests, only for http; -1: there is none."""
    epoch: int = 0
    """The epoch that the process is started for."""
    meeting: str = ""
    """HOST:PORT where ranks of several machines find each other; empty: they are on one."""

    def to_memfd(self) -> int:
        """A memfd that holds this, read from its start; the caller closes it."""
        data = msgspec.msgpack.encode(self, enc_hook=to_plain)
        fd = create_memfd(f"launch-{self.name}")
        try:
            os.write(fd, data)
            os.lseek(fd, 0, os.SEEK_SET)
        except OSError:
            os.close(fd)
            raise
        return fd

    @staticmethod
    def read(fd: int) -> LaunchSpec[ActorSettings]:
        """Read and close the descriptor written by `to_memfd`."""
        with os.fdopen(fd, "rb") as file:
            data = file.read()
        try:
            return msgspec.msgpack.decode(data, type=LaunchSpec[ActorSettings], dec_hook=from_plain)
        except msgspec.DecodeError as error:
            raise StartupError(f"the start message of this process is damaged: {error}") from None


def renumbered(launch: LaunchSpec[S], fds: dict[int, int]) -> LaunchSpec[S]:
    """`launch` with every descriptor replaced by its duplicate."""
    peers = tuple(
        msgspec.structs.replace(
            peer,
            bell=(fds[peer.bell[0]], fds[peer.bell[1]]),
            to_peer=tuple(fds[fd] for fd in peer.to_peer),
            from_peer=tuple(fds[fd] for fd in peer.from_peer),
            own_arena=fds.get(peer.own_arena, -1),
            peer_arena=fds.get(peer.peer_arena, -1),
        )
        for peer in launch.peers
    )
    return msgspec.structs.replace(
        launch,
        bell=(fds[launch.bell[0]], fds[launch.bell[1]]),
        peers=peers,
        stats=fds[launch.stats],
        all_stats=tuple((name, fds[fd]) for name, fd in launch.all_stats),
        parent_fd=-1,
    )


def child_environment() -> dict[str, str]:
    """The parent's, with this package importable also from a source tree, and no code taken from the working directory,
    which may be a model's folder."""
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    own = {"PYTHONPATH": os.pathsep.join([PACKAGE_PARENT, *filter(None, paths)]), "PYTHONSAFEPATH": "1"}
    return {**os.environ, **own}
