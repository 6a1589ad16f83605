"""The actors of the engine and the lanes between them, as data. With `messages.py` this is the map of the program.

Each pair of actors that talk is one `Edge`: a lane in each direction, and an arena for messages above 64 KiB where
they occur. The supervisor has an edge with every actor, so control messages never wait behind data.
"""

from __future__ import annotations

from dataclasses import dataclass

KIB, MIB = 1 << 10, 1 << 20

PLANS = 64 * MIB
"""Room for the plans of a worker's next two steps. One holds at most 8 bytes for each of `UPLOAD_POSITIONS` positions
(admission.py), or for the positions of one longer sequence; 4 for each position whose slot has changed; and the
logit_bias of the sequences that start. It takes memory only when plans are that large."""

MASKS = 64 * MIB
"""Room for the masks of a worker's next two steps: a bit for each id, for each constrained sequence. 512 of them with
a vocabulary of 256k ids take 16 MiB."""
ANSWERS = 64 * MIB
"""Room for the answers of a worker's steps; one with rows of numbers has at most `ROWS_BYTES` (plan.py) of them."""

SUPERVISOR, TOKENIZER, ROUTER, DETOKENIZER = "supervisor", "tokenizer", "router", "detokenizer"
GUIDE = "guide"
VISUAL = "visual"
"""Exists only where images are served."""
HTTP, EMBEDDED = "http", "engine"
"""The two kinds of front: the process with the port, or an actor inside the program that embeds the engine."""


@dataclass(frozen=True)
class Edge:
    """A pair of lanes between two actors. Sizes in bytes; an arena of 0 means no large messages in that direction."""

    first: str
    second: str
    forward: int
    """Capacity of the lane first -> second."""
    backward: int
    forward_arena: int = 0
    backward_arena: int = 0


@dataclass(frozen=True)
class Child:
    """A process of the engine. The order of a topology's children is the start order; stop is the reverse."""

    name: str
    program: str
    """module:class, imported only in the process itself, so that only processes that need torch load it."""
    patience: float = 1.0
    """Watchdog timeouts that it may stay silent before it counts as hung (a step or a prompt can be long)."""
    rank: int = 0
    """Of a worker; the number of another machine."""
    shares_fate: bool = False
    """If one process with this flag dies, all processes with this flag are replaced."""
    dispensable: bool = False
    """While it is replaced, the others go on with requests that do not need it."""


@dataclass(frozen=True)
class ImageArenas:
    """Shared memory for images, in bytes."""

    cache: int
    """Embeddings: visual writes them, workers read them in place."""
    files: int
    """Image files on their way from the front to visual."""


@dataclass(frozen=True)
class Topology:
    front: str
    children: tuple[Child, ...]
    edges: tuple[Edge, ...]
    image_cache: int = 0
    """Bytes of the arena that visual and the workers share; 0: no arena."""

    @property
    def actors(self) -> tuple[str, ...]:
        """Every actor but the supervisor."""
        names = tuple(child.name for child in self.children)
        return names if self.front in names else (self.front, *names)


WORKER = "lightllm_mp.actors.worker:WorkerActor"


def worker(rank: int) -> str:
    return f"worker{rank}"


def ranks_of(node: int, ranks: int, nodes: int) -> range:
    """The ranks on one of several machines."""
    each = ranks // nodes
    return range(node * each, (node + 1) * each)


def rank_group(ranks: int, nodes: int = 1) -> tuple[Child, ...]:
    """Whom the router sends its plans: the ranks of this machine, and the other machines, which pass them on."""
    here = tuple(
        Child(worker(rank), WORKER, patience=4.0, rank=rank, shares_fate=True) for rank in ranks_of(0, ranks, nodes)
    )
    others = tuple(
        Child(f"node{node}", "lightllm_mp.actors.node:NodeActor", patience=4.0, rank=node, shares_fate=True)
        for node in range(1, nodes)
    )
    return here + others


def plan_edge(child: Child) -> Edge:
    """The lanes of one that gets plans; rank 0 alone answers them."""
    answers = ANSWERS if child.name == worker(0) else 0
    return Edge(ROUTER, child.name, MIB, MIB, forward_arena=PLANS, backward_arena=answers)


def control_edge(name: str, size: int = 64 * KIB) -> Edge:
    return Edge(SUPERVISOR, name, size, 64 * KIB)


def topology(
    *,
    ranks: int = 1,
    nodes: int = 1,
    front: str = HTTP,
    max_body: int = 32 * MIB,
    images: ImageArenas | None = None,
) -> Topology:
    """The engine with `ranks` workers on `nodes` machines, and with a visual actor if `images` are served. `max_body`
    (bytes) bounds the text of one request; the front's arena to the tokenizer holds two such texts."""
    workers = rank_group(ranks, nodes)
    others = (
        Child(GUIDE, "lightllm_mp.actors.guide:GuideActor", dispensable=True),
        Child(ROUTER, "lightllm_mp.actors.router:RouterActor"),
        Child(DETOKENIZER, "lightllm_mp.actors.detokenizer:DetokenizerActor"),
        Child(TOKENIZER, "lightllm_mp.actors.tokenizer:TokenizerActor", patience=2.0),
    )
    visual = (
        (Child(VISUAL, "lightllm_mp.actors.visual.actor:VisualActor", patience=2.0, dispensable=True),)
        if images
        else ()
    )
    fronts = (Child(HTTP, "lightllm_mp.actors.http.actor:HttpActor"),) if front == HTTP else ()
    edges: tuple[Edge, ...] = (
        Edge(front, TOKENIZER, 4 * MIB, MIB, forward_arena=_pages(2 * max_body), backward_arena=64 * MIB),
        Edge(front, ROUTER, 256 * KIB, MIB),
        # Behind the front no request is refused when a lane is full: messages wait in outboxes.
        Edge(TOKENIZER, ROUTER, MIB, 64 * KIB, forward_arena=16 * MIB),
        Edge(ROUTER, DETOKENIZER, MIB, 256 * KIB, forward_arena=8 * MIB),
        Edge(ROUTER, GUIDE, MIB, MIB, forward_arena=16 * MIB),
        Edge(GUIDE, worker(0), MIB, 64 * KIB, forward_arena=MASKS),
        Edge(DETOKENIZER, front, MIB, 64 * KIB, forward_arena=8 * MIB),
        *map(plan_edge, workers),
    )
    if images:
        edges += (Edge(front, VISUAL, MIB, 256 * KIB, forward_arena=images.files), Edge(VISUAL, ROUTER, MIB, 256 * KIB))
    children = (*workers, *others, *visual, *fronts)
    actors = Topology(front, children, ()).actors
    # To the front goes what all actors do (EngineState), in one record.
    control = tuple(control_edge(name, (256 if name == front else 64) * KIB) for name in actors)
    return Topology(front, children, edges + control, images.cache if images else 0)


def _pages(size: int) -> int:
    return -(-size // (64 * KIB)) * 64 * KIB
