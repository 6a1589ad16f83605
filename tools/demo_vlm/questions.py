"""Questions about a scene, each with the one true answer. Kinds of question are what accuracy is counted by."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from numpy.random import Generator

from tools.demo_vlm.scenes import COLOURS, OPPOSITE, SHAPES, SIZES, Scene, Thing

KINDS = (
    *("object", "describe", "colour", "shape", "size", "place", "pair", "relation", "beside", "check"),
    *("groups", "count", "word", "read"),
)
NUMERALS = ("none", "one", "two", "three", "four", "five", "six")
GENERAL = (
    "What is in the picture?",
    "What is in the image?",
    "What's in this image?",
    "What do you see?",
    "What do you see in the picture?",
    "What is this?",
    "What does the picture show?",
    "What is shown here?",
)
DESCRIBE = (
    "Describe the picture.",
    "Describe this image.",
    "Describe the image in detail.",
    "Please explain the picture.",
    "Write a caption for this picture.",
)
PREPOSITIONS = {"left": "on the", "right": "on the", "top": "at the", "bottom": "at the"}


class Asked(NamedTuple):
    """A question and its answer."""

    kind: str
    question: str
    answer: str


Maker = Callable[[Scene, Generator], Asked | None]


def general(scene: Scene) -> str:
    """What is in the picture, in one sentence."""
    if scene.text:
        return f"The {'number' if scene.text.isdecimal() else 'word'} {scene.text}."
    if scene.kind == "pair":
        first, second = scene.things
        return _sentence(f"{_a(first)} {first.relation} {_a(second)}")
    if scene.kind == "groups":
        return _sentence(" and ".join(f"{NUMERALS[n]} {_plural(thing.name, n)}" for thing, n in scene.groups))
    return _sentence(_a(scene.things[0]))


def asked(scene: Scene, draw: Generator, count: int) -> list[Asked]:
    """`count` different questions, or fewer where chance repeats one; more than half of the time one is the general."""
    makers = MAKERS[scene.kind]
    order = [makers[i] for i in draw.permutation(len(makers))]
    if draw.random() < 0.6:
        order.remove(_general)
        order.insert(0, _general)
    found: dict[str, Asked] = {}
    for maker in order:
        if len(found) < count and (one := maker(scene, draw)) is not None:
            found.setdefault(one.question, one)
    return list(found.values())


def _general(scene: Scene, draw: Generator) -> Asked:
    kind = {"single": "object", "pair": "pair", "groups": "groups", "word": "word"}[scene.kind]
    choices = GENERAL if scene.kind == "single" else GENERAL + DESCRIBE
    return Asked(kind, _one(choices, draw), general(scene))


# --- one thing --------------------------------------------------------------------------------------------------------


def _describe(scene: Scene, draw: Generator) -> Asked:
    thing = scene.things[0]
    return Asked("describe", _one(DESCRIBE, draw), _sentence(f"a {thing.size} {thing.name} {_placed(thing.place)}"))


def _colour(scene: Scene, draw: Generator) -> Asked | None:
    thing = _any(scene, draw)
    if len({other.colour for other in scene.things if other.shape == thing.shape}) > 1:
        return None
    if len(scene.groups) < len(scene.things):
        count = sum(other.shape == thing.shape for other in scene.things)
        subject = f"{'is' if count == 1 else 'are'} the {_plural(thing.shape, count)}"
        return Asked(
            "colour", _one((f"What colour {subject}?", f"What color {subject}?"), draw), _sentence(thing.colour)
        )
    subjects = [f"the {thing.shape}", *(["the object", "the shape"] if len(scene.things) == 1 else [])]
    subject = _one(tuple(subjects), draw)
    choices = (f"What colour is {subject}?", f"What color is {subject}?", f"Which colour does {subject} have?")
    return Asked("colour", _one(choices, draw), _sentence(thing.colour))


def _shape(scene: Scene, draw: Generator) -> Asked | None:
    thing = _any(scene, draw)
    if len({other.shape for other in scene.things if other.colour == thing.colour}) > 1:
        return None
    choices: tuple[str, ...] = (f"What shape is the {thing.colour} object?", f"Which shape is {thing.colour}?")
    if len(scene.things) == 1:
        choices += ("What shape is in the picture?", "What shape is the object?", "Which shape is it?")
    return Asked("shape", _one(choices, draw), f"A {thing.shape}.")


def _size(scene: Scene, draw: Generator) -> Asked:
    thing = scene.things[0]
    last = f"Is the {thing.shape} small, medium or large?"
    choices = (f"How big is the {thing.shape}?", "What size is the object?", f"How large is the {thing.name}?", last)
    assert thing.size in SIZES
    return Asked("size", _one(choices, draw), _sentence(thing.size))


def _place(scene: Scene, draw: Generator) -> Asked:
    thing = scene.things[0]
    choices = (f"Where is the {thing.shape}?", f"Where in the picture is the {thing.name}?", "Where is the object?")
    return Asked("place", _one(choices, draw), _sentence(_placed(thing.place)))


def _is_there(scene: Scene, draw: Generator) -> Asked:
    """Half of the time it is there; else one of colour and shape is another."""
    thing, names = _any(scene, draw), {thing.name for thing in scene.things}
    colour, shape = thing.colour, thing.shape
    if wrong := draw.random() < 0.5:
        while f"{colour} {shape}" in names:
            colour, shape = (_one(COLOURS, draw), shape) if draw.random() < 0.5 else (colour, _one(SHAPES, draw))
    name = _article(f"{colour} {shape}")
    choices = (f"Is there {name} in the picture?", f"Do you see {name}?", f"Can you see {name}?")
    return Asked("check", _one(choices, draw), "No." if wrong else "Yes.")


# --- two things -------------------------------------------------------------------------------------------------------


def _relation(scene: Scene, draw: Generator) -> Asked:
    this, that = _both(scene, draw)
    choices = (
        f"Where is the {this.name} relative to the {that.name}?",
        f"Where is the {this.name} compared with the {that.name}?",
        f"Is the {this.name} left of, right of, above or below the {that.name}?",
        f"What is the position of the {this.name} relative to the {that.name}?",
    )
    return Asked("relation", _one(choices, draw), _sentence(f"{this.relation} the {that.name}"))


def _beside(scene: Scene, draw: Generator) -> Asked:
    this, that = _both(scene, draw)
    choices = (f"What is {this.relation} the {that.name}?", f"Which object is {this.relation} the {that.name}?")
    return Asked("beside", _one(choices, draw), _sentence(_a(this)))


def _is_so(scene: Scene, draw: Generator) -> Asked:
    this, that = _both(scene, draw)
    wrong = draw.random() < 0.5
    said = OPPOSITE[this.relation] if wrong else this.relation
    return Asked("check", f"Is the {this.name} {said} the {that.name}?", "No." if wrong else "Yes.")


# --- any number -------------------------------------------------------------------------------------------------------


def _count_all(scene: Scene, draw: Generator) -> Asked:
    choices = ("How many objects are there?", "How many shapes are in the picture?", "How many things do you see?")
    return Asked("count", _one(choices, draw), _sentence(NUMERALS[len(scene.things)]))


def _count_some(scene: Scene, draw: Generator) -> Asked:
    """Of one kind; one time in ten of one that is not there."""
    thing, names = _any(scene, draw), {thing.name for thing in scene.things}
    name = thing.name
    if draw.random() < 0.1:
        while name in names:
            name = f"{_one(COLOURS, draw)} {_one(SHAPES, draw)}"
    count = sum(other.name == name for other in scene.things)
    choices = (f"How many {_plural(name, 2)} are there?", f"How many {_plural(name, 2)} do you see?")
    return Asked("count", _one(choices, draw), _sentence(NUMERALS[count]))


# --- text -------------------------------------------------------------------------------------------------------------


def _read(scene: Scene, draw: Generator) -> Asked:
    choices: tuple[str, ...] = (
        "What is written?",
        "What does the text say?",
        "Read the text.",
        "What is written here?",
    )
    choices += ("Which number is it?",) if scene.text.isdecimal() else ("Which word is it?",)
    return Asked("read", _one(choices, draw), f"{scene.text}.")


def _text_colour(scene: Scene, draw: Generator) -> Asked:
    choices = ("What colour is the text?", "What color is the text?", "Which colour does the text have?")
    return Asked("colour", _one(choices, draw), _sentence(scene.colour))


MAKERS: dict[str, tuple[Maker, ...]] = {
    "single": (_general, _describe, _colour, _shape, _size, _place, _is_there, _count_all),
    "pair": (_general, _relation, _relation, _beside, _is_so, _is_there, _colour, _shape, _count_all),
    "groups": (_general, _count_all, _count_some, _count_some, _colour, _is_there),
    "word": (_general, _read, _text_colour),
}


def _one(choices: tuple[str, ...], draw: Generator) -> str:
    return choices[draw.integers(len(choices))]


def _any(scene: Scene, draw: Generator) -> Thing:
    return scene.things[draw.integers(len(scene.things))]


def _both(scene: Scene, draw: Generator) -> tuple[Thing, Thing]:
    first, second = scene.things
    return (first, second) if draw.random() < 0.5 else (second, first)


def _a(thing: Thing) -> str:
    return _article(thing.name)


def _article(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _plural(name: str, count: int) -> str:
    return name if count == 1 else name + ("es" if name.endswith("s") else "s")


def _placed(place: str) -> str:
    return f"{PREPOSITIONS.get(place, 'in the')} {place}"


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."
