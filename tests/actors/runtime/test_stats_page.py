"""A page of numbers: it has room for the names that its maker knows, and says so at once if it has not."""

from __future__ import annotations

import contextlib

import pytest

from lightllm_mp.actors.runtime.stats_page import MAX_VALUES, StatsPage
from lightllm_mp.actors.supervision.shared_memory import SharedMemory
from lightllm_mp.actors.topology import SUPERVISOR, ImageArenas, topology


def test_what_is_written_is_read() -> None:
    with contextlib.closing(StatsPage.create("any")) as page:
        assert page.read() == {}
        page.write({"a": 1.0, "b": 2.5})
        page.write({"a": 3.0, "b": 4.5})
        assert page.read() == {"a": 3.0, "b": 4.5}


@pytest.mark.parametrize("count", [1, 7, 3000])
def test_a_page_for_known_names_holds_just_these(count: int) -> None:
    names = [f"worker{number}->router.max_backlog" for number in range(count)]
    with contextlib.closing(StatsPage.create("known", names)) as page:
        page.write(dict.fromkeys(names, 1.0))
        assert page.read() == dict.fromkeys(names, 1.0)
    with contextlib.closing(StatsPage.create("known", names)) as page, pytest.raises(ValueError, match="do not fit"):
        page.write(dict.fromkeys([*names, "one more"], 1.0))


def test_more_values_than_a_page_for_unknown_names_has() -> None:
    with contextlib.closing(StatsPage.create("any")) as page, pytest.raises(ValueError, match="do not fit"):
        page.write({str(number): 0.0 for number in range(MAX_VALUES + 1)})


def test_the_page_of_the_supervisor_has_room_for_sixteen_ranks_with_images() -> None:
    plan = topology(ranks=16, images=ImageArenas(cache=1 << 16, files=1 << 16), max_body=1 << 16)
    up = {child.name: 1.0 for child in plan.children}
    with contextlib.closing(SharedMemory(plan)) as wiring:
        gauges = wiring.gauges(3, up, up)
        wiring.stats[SUPERVISOR].write(gauges)
        assert wiring.stats[SUPERVISOR].read() == gauges
        assert len(gauges) > 200
