"""A little of what tools.fuzz.run does for hours: every target with random bytes and with damaged good examples."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightllm_mp.shm.implementation import VARIABLE, extension
from tools.fuzz.targets import TARGETS

NAMES = [target.name for target in TARGETS.values() if not target.native]
Edits = list[tuple[int, int, bytes]]


def edited(seed: bytes, edits: Edits, rest: int) -> bytes:
    """`seed` with some stretches (start, length) replaced, and cut to `rest` 256ths."""
    data = seed
    for start, length, new in edits:
        at = start % (len(data) + 1)
        data = data[:at] + new + data[at + length :]
    return data[: len(data) * rest // 256]


def examples(name: str) -> st.SearchStrategy[bytes]:
    edits = st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 8), st.binary(max_size=8)), max_size=4)
    seeds = st.sampled_from(TARGETS[name].seeds())
    return st.builds(edited, seeds, edits, st.just(256) | st.integers(0, 256)) | st.binary(max_size=200)


@pytest.mark.parametrize("name", NAMES)
def test_no_promise_is_broken(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target = TARGETS[name]
    monkeypatch.setenv(VARIABLE, target.ring)
    if target.ring == "c" and extension() is None:
        pytest.skip("the extension lightllm_mp.shm._ring is not built")
    test = target.test()
    for seed in target.seeds():
        test(seed)

    @settings(max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(examples(name))
    def run(data: bytes) -> None:
        test(data)

    run()
