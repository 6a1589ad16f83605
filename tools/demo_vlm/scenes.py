"""What is in a scene: shapes or a word, drawn from a random generator as facts. No pixels here.

Positions and radii are fractions of the picture's shorter edge, measured from its middle, x to the right, y down.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.random import Generator

Kind = Literal["single", "pair", "groups", "word"]
KINDS: tuple[Kind, ...] = ("single", "pair", "groups", "word")
SHARES = (0.36, 0.32, 0.17, 0.15)

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "black", "white")
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "diamond")
SIZES = ("small", "medium", "large")
RADII = {"small": (0.07, 0.10), "medium": (0.14, 0.17), "large": (0.23, 0.29)}
"""With gaps between them, so that a size has one name."""
RELATIONS = ("left of", "right of", "above", "below")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
PLACES = ("top left", "top", "top right", "left", "middle", "right", "bottom left", "bottom", "bottom right")
"""Row by row."""
WORDS = (
    *("CAT", "DOG", "SUN", "TREE", "FISH", "BIRD", "STAR", "MOON", "HELLO", "YES", "NO", "STOP", "GO", "OPEN"),
    *("EXIT", "BUS", "CAR", "HOME", "LOVE", "MILK", "TEA", "RED", "BLUE", "BOOK", "RAIN", "SNOW", "FIRE", "DOOR"),
)
NUMBERS = tuple(map(str, range(100)))
MOST = 6
"""Things of a scene."""


@dataclass(frozen=True, slots=True)
class Thing:
    """One shape."""

    colour: str
    shape: str
    x: float
    y: float
    radius: float
    size: str = ""
    """Its name, where the radius has one."""
    place: str = ""
    relation: str = ""
    """To the other thing of a pair."""

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True, slots=True)
class Scene:
    """`things` in the order they are told in: the left or upper one of a pair first, the larger group first."""

    kind: Kind
    width: int
    height: int
    things: tuple[Thing, ...] = ()
    text: str = ""
    colour: str = ""
    """Of the text."""

    @property
    def groups(self) -> list[tuple[Thing, int]]:
        """One thing of each kind, and how many there are."""
        counts: dict[str, tuple[Thing, int]] = {}
        for thing in self.things:
            counts[thing.name] = (thing, counts.get(thing.name, (thing, 0))[1] + 1)
        return list(counts.values())


def sample(draw: Generator, kinds: tuple[Kind, ...] = KINDS) -> Scene:
    """A random scene of one of `kinds`."""
    shares = np.array([SHARES[KINDS.index(kind)] for kind in kinds])
    kind = kinds[draw.choice(len(kinds), p=shares / shares.sum())]
    width, height = _canvas(draw)
    half = (width / min(width, height) / 2, height / min(width, height) / 2)
    if kind == "single":
        return Scene(kind, width, height, (_single(draw, half),))
    if kind == "pair":
        return Scene(kind, width, height, _pair(draw, half))
    if kind == "groups":
        return Scene(kind, width, height, _groups(draw))
    text = str(draw.choice(WORDS)) if draw.random() < 0.6 else str(draw.choice(NUMBERS))
    return Scene(kind, width, height, text=text, colour=str(draw.choice(COLOURS)))


def _canvas(draw: Generator) -> tuple[int, int]:
    """Most pictures are square; a few are wider or taller."""
    edge = int(draw.choice((144, 160, 192, 224, 256, 288)))
    if draw.random() < 0.8:
        return edge, edge
    longer = int(edge * draw.uniform(1.1, 1.6))
    return (longer, edge) if draw.random() < 0.5 else (edge, longer)


def _look(draw: Generator) -> tuple[str, str]:
    return str(draw.choice(COLOURS)), str(draw.choice(SHAPES))


def _two_looks(draw: Generator) -> tuple[tuple[str, str], tuple[str, str]]:
    """Different in colour or shape, mostly in both."""
    first = _look(draw)
    while (second := _look(draw)) == first or (second[0] == first[0] and draw.random() < 0.5):
        pass
    return first, second


def _single(draw: Generator, half: tuple[float, float]) -> Thing:
    size = str(draw.choice(SIZES))
    radius = draw.uniform(*RADII[size])
    row, column = (int(i) for i in draw.integers(0, 3, 2))
    x, y = _coordinate(draw, column, half[0], radius), _coordinate(draw, row, half[1], radius)
    return Thing(*_look(draw), x, y, radius, size, PLACES[3 * row + column])


def _coordinate(draw: Generator, third: int, half: float, radius: float) -> float:
    """In the lower, middle or upper part of an edge from -half to half, with gaps between the parts."""
    outer = half - max(radius + 0.01, 0.2 * half)
    return (
        (third - 1) * draw.uniform(min(0.36 * half, outer - 0.01), outer) if third != 1 else draw.uniform(-0.06, 0.06)
    )


def _pair(draw: Generator, half: tuple[float, float]) -> tuple[Thing, Thing]:
    """One is clearly left of or above the other: the offset along the other axis is at most a third."""
    axis = int(draw.integers(2))
    radii = draw.uniform(0.07, 0.17, 2)
    room = 2 * half[axis] - radii.sum() - 0.02
    apart = draw.uniform(radii.sum() + 0.05, room)
    along = np.array([0.0, apart]) + draw.uniform(-half[axis] + radii[0] + 0.01, half[axis] - radii[1] - 0.01 - apart)
    slant = draw.uniform(-0.33, 0.33) * apart
    free = half[1 - axis] - radii.max() - 0.01
    slant = float(np.clip(slant, -free, free))
    base = draw.uniform(-free, free - slant) if slant > 0 else draw.uniform(-free - slant, free)
    across = np.array([base, base + slant])
    x, y = (along, across) if axis == 0 else (across, along)
    first, second = _two_looks(draw)
    names = ("left of", "right of") if axis == 0 else ("above", "below")
    return (
        Thing(*first, float(x[0]), float(y[0]), float(radii[0]), relation=names[0]),
        Thing(*second, float(x[1]), float(y[1]), float(radii[1]), relation=names[1]),
    )


def _groups(draw: Generator) -> tuple[Thing, ...]:
    """Two to five of one kind, and sometimes fewer of another, on a shaken grid of 3 x 3."""
    many = int(draw.integers(2, 6))
    few = int(draw.integers(1, min(many, MOST - many + 1))) if draw.random() < 0.6 and many < MOST else 0
    looks = _two_looks(draw)
    cells = draw.permutation(9)[: many + few]
    things = []
    for i, cell in enumerate(cells):
        x, y = ((int(at) - 1) * 0.31 + draw.uniform(-0.05, 0.05) for at in (cell % 3, cell // 3))
        things.append(Thing(*looks[i >= many], x, y, draw.uniform(0.06, 0.1)))
    return tuple(things)
