"""All shared memory of one server: bells, lanes, arenas and stats pages. The supervisor makes it before any child.

The supervisor keeps its descriptors, so a restarted child inherits the same memory. Segments have no name; the kernel
frees them with the last process.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lightllm_mp.actors.runtime.launch_spec import PeerFds
from lightllm_mp.actors.runtime.stats_page import StatsPage
from lightllm_mp.actors.topology import SUPERVISOR, VISUAL, Edge, Topology
from lightllm_mp.messages import LaneState
from lightllm_mp.shm import Arena, Bell, Journal, Lane, ProtocolError


@dataclass
class _Way:
    """One direction of an edge."""

    lane: Lane
    arena: Arena | None = None

    @property
    def arena_fd(self) -> int:
        return self.arena.fd if self.arena else -1


class SharedMemory:
    """Raises StartupError, and holds nothing, if memory is too small for all of it. `journal`: bytes of the front's
    journal; 0: there is none."""

    def __init__(self, topology: Topology, *, journal: int = 0) -> None:
        self._topology = topology
        self.bells: dict[str, Bell] = {}
        self.stats: dict[str, StatsPage] = {}
        self._ways: dict[tuple[str, str], _Way] = {}
        self._images: Arena | None = None
        self._journal_size = journal
        self._journal: Journal | None = None
        self._see_images = {VISUAL, *(child.name for child in topology.children if child.shares_fate)}
        try:
            self._make()
        except BaseException:
            self.close()
            raise

    def _make(self) -> None:
        index = {name: number for number, name in enumerate((SUPERVISOR, *self._topology.actors))}
        for name, number in index.items():
            self.bells[name] = Bell.create(number)
        for edge in self._topology.edges:
            for source, target, capacity, arena in _directions(edge):
                way = self._ways[source, target] = _Way(Lane.create(capacity, index[source], index[target]))
                if arena:
                    way.arena = Arena.create(arena)
        if self._topology.image_cache:
            self._images = Arena.create(self._topology.image_cache)
        if self._journal_size:
            self._journal = Journal.create(self._journal_size)
        nobody = dict.fromkeys((child.name for child in self._topology.children), 0)
        for name in index:
            known = tuple(self.gauges(0, nobody, nobody)) if name == SUPERVISOR else ()
            self.stats[name] = StatsPage.create(name, known)

    def lane(self, source: str, target: str) -> Lane:
        return self._ways[source, target].lane

    def arena(self, source: str, target: str) -> Arena | None:
        """For large messages from `source` to `target`; None: there are none."""
        return self._ways[source, target].arena

    def write_image(self, offset: int, data: memoryview) -> bool:
        """Embeddings that another machine has at this place of its image memory. False: there is too little memory."""
        if self._images is None or not 0 <= offset <= self._images.segment.size - len(data):
            raise ProtocolError(f"{len(data)} bytes at {offset} are outside the image memory")
        if not self._images.segment.back(offset, len(data)):
            return False
        self._images.segment.view[offset : offset + len(data)] = data
        return True

    def peers(self, name: str) -> tuple[PeerFds, ...]:
        """The actors that share an edge with this one, the supervisor first."""
        found = [self._peer(name, target) for source, target in self._ways if source == name]
        return tuple(sorted(found, key=lambda peer: peer.name != SUPERVISOR))

    def images_fd(self, name: str) -> int:
        """Descriptor of the image cache for actors that write or read it; -1 for others."""
        return self._images.fd if self._images and name in self._see_images else -1

    def journal_fd(self, name: str) -> int:
        """Descriptor of the journal for the front; -1 for others, or if there is none."""
        return self._journal.fd if self._journal and name == self._topology.front else -1

    def fds(self, name: str) -> list[int]:
        """Every descriptor that `name` inherits: bells, lanes, arenas and stats pages, sorted."""
        found = [*self.bells[name].fds, self.stats[name].fd, self.images_fd(name), self.journal_fd(name)]
        for peer in self.peers(name):
            found += [*peer.bell, *peer.to_peer, *peer.from_peer, peer.own_arena, peer.peer_arena]
        if name == self._topology.front:
            found += [page.fd for page in self.stats.values()]
        return sorted({fd for fd in found if fd >= 0})

    def reset_data(self, epoch: int) -> None:
        """Empty every lane between actors. All actors must have left their lanes (see Reset)."""
        for (source, target), way in self._ways.items():
            if SUPERVISOR not in (source, target):
                way.lane.reset(epoch)

    def reset_control(self, name: str) -> None:
        """Empty both lanes between the supervisor and a dead process."""
        for lane in (self.lane(SUPERVISOR, name), self.lane(name, SUPERVISOR)):
            lane.reset(lane.epoch + 1)

    def gauges(self, epoch: int, up: Mapping[str, float], restarts: Mapping[str, float]) -> dict[str, float]:
        """All that the supervisor's stats page holds; always the same names."""
        return {
            "epoch": epoch,
            **{f"up.{name}": value for name, value in up.items()},
            **{f"restarts.{name}": value for name, value in restarts.items()},
            **self._lane_gauges(),
        }

    def _lane_gauges(self) -> dict[str, float]:
        """Counters of every data lane, named `from->to.counter`."""
        found: dict[str, float] = {}
        for (source, target), way in self._ways.items():
            if SUPERVISOR in (source, target):
                continue
            stats = way.lane.stats()
            for counter in ("puts", "full_events", "max_backlog", "backlog_bytes"):
                found[f"{source}->{target}.{counter}"] = getattr(stats, counter)
        return found

    def lane_states(self) -> tuple[LaneState, ...]:
        """Every lane between actors."""
        return tuple(
            LaneState(source, target, stats.backlog_bytes, stats.capacity, stats.puts, stats.full_events)
            for (source, target), way in self._ways.items()
            if SUPERVISOR not in (source, target)
            for stats in [way.lane.stats()]
        )

    def idle(self) -> bool:
        """No lane holds a record."""
        return all(way.lane.stats().backlog_bytes == 0 for way in self._ways.values())

    def close(self) -> None:
        for way in self._ways.values():
            way.lane.close()
            if way.arena:
                way.arena.close()
        if self._images:
            self._images.close()
        if self._journal:
            self._journal.close()
        for bell in self.bells.values():
            bell.close()
        for page in self.stats.values():
            page.close()

    def _peer(self, name: str, peer: str) -> PeerFds:
        out, back = self._ways[name, peer], self._ways[peer, name]
        return PeerFds(peer, self.bells[peer].fds, out.lane.fds, back.lane.fds, out.arena_fd, back.arena_fd)


def _directions(edge: Edge) -> tuple[tuple[str, str, int, int], tuple[str, str, int, int]]:
    return (
        (edge.first, edge.second, edge.forward, edge.forward_arena),
        (edge.second, edge.first, edge.backward, edge.backward_arena),
    )
