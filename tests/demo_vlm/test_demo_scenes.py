"""Scenes and questions: repeatable, true, and with one answer each."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from tools.demo_vlm.batches import IGNORE, PLANES, planes
from tools.demo_vlm.drawing import drawn
from tools.demo_vlm.questions import KINDS, asked, general
from tools.demo_vlm.scenes import KINDS as SCENE_KINDS
from tools.demo_vlm.scenes import RADII, Scene, Thing, sample


def scenes(count: int, seed: int = 5) -> list[tuple[Scene, np.random.Generator]]:
    made = []
    for i in range(count):
        draw = np.random.default_rng((seed, i))
        made.append((sample(draw), draw))
    return made


def test_a_seed_and_a_number_give_one_picture() -> None:
    def made(seed: int) -> list[tuple[bytes, list[object]]]:
        return [(drawn(scene, draw).tobytes(), asked(scene, draw, 3)) for scene, draw in scenes(6, seed)]

    assert made(5) == made(5)
    assert all(one != other for one, other in zip(made(5), made(6), strict=True))


def test_things_lie_in_the_picture_and_apart() -> None:
    for scene, _ in scenes(400):
        unit = min(scene.width, scene.height)
        for thing in scene.things:
            assert abs(thing.x) + thing.radius <= scene.width / unit / 2 + 1e-9
            assert abs(thing.y) + thing.radius <= scene.height / unit / 2 + 1e-9
        for one, other in combinations(scene.things, 2):
            assert np.hypot(one.x - other.x, one.y - other.y) > one.radius + other.radius


def test_facts_of_single_things_and_pairs() -> None:
    for scene, _ in scenes(400):
        if scene.kind == "single":
            thing = scene.things[0]
            low, high = RADII[thing.size]
            assert low <= thing.radius <= high
            words = thing.place.split()
            assert ("left" in words, "right" in words) == (thing.x < -0.1, thing.x > 0.1)
            assert ("top" in words, "bottom" in words) == (thing.y < -0.1, thing.y > 0.1)
        if scene.kind == "pair":
            first, second = scene.things
            across, down = second.x - first.x, second.y - first.y
            assert first.name != second.name
            assert max(across, down) > 2.9 * min(abs(across), abs(down))
            assert first.relation == ("left of" if across > down else "above")


def test_a_question_about_a_scene_has_one_answer() -> None:
    seen_kinds, seen_scenes = set(), set()
    for scene, draw in scenes(120):
        seen_scenes.add(scene.kind)
        answers: dict[str, str] = {}
        for _ in range(30):
            for one in asked(scene, draw, 3):
                assert answers.setdefault(one.question, one.answer) == one.answer
                seen_kinds.add(one.kind)
                assert one.answer == general(scene) or one.kind not in ("object", "pair", "groups", "word")
    assert seen_kinds == set(KINDS)
    assert seen_scenes == set(SCENE_KINDS)


def test_words_of_answers() -> None:
    orange = Thing("orange", "cross", -0.3, 0.0, 0.1, relation="left of")
    blue = Thing("blue", "star", 0.3, 0.0, 0.1, relation="right of")
    assert general(Scene("pair", 144, 144, (orange, blue))) == "An orange cross left of a blue star."
    assert general(Scene("groups", 144, 144, (orange, orange, blue))) == "Two orange crosses and one blue star."
    assert general(Scene("single", 144, 144, (blue,))) == "A blue star."
    assert general(Scene("word", 144, 144, text="47", colour="red")) == "The number 47."
    assert general(Scene("word", 144, 144, text="CAT", colour="red")) == "The word CAT."


@pytest.mark.parametrize(("width", "height"), [(144, 144), (200, 100), (100, 200)])
def test_patches_show_what_lies_on_them(width: int, height: int) -> None:
    """The thing in the upper left quarter; the picture stands in the middle of a square."""
    thing = Thing("blue", "star", -0.25, -0.25, 0.1, size="medium", place="top left")
    found = dict(zip(PLANES, planes(Scene("single", width, height, (thing,)), 9), strict=True))
    rows, columns = np.divmod(np.flatnonzero(found["colour"] == PLANES["colour"].index("blue")), 9)
    centre = (np.array([-0.25, -0.25]) * min(width, height) / max(width, height) + 0.5) * 9
    assert len(rows) > 0
    assert np.abs(np.array([columns.mean() + 0.5, rows.mean() + 0.5]) - centre).max() < 0.51
    assert (found["relation"] == np.where(found["colour"] < 9, IGNORE, 4)).all()
    assert set(found["group"]) == {0, 5}
