"""A plan comes out of its bytes as it went in."""

from __future__ import annotations

import numpy as np
import pytest

from lightllm_mp.messages import Sampling
from lightllm_mp.plan import NO_STATE, PENALIZE_PROMPT, PlanBuilder, unpack


def column(*values: float, dtype: str = "<i4") -> bytes:
    return np.array(values, dtype).tobytes()


def test_round_trip() -> None:
    builder = PlanBuilder(step=41)
    rules = Sampling(
        seed=2**63 + 5,
        temperature=0.7,
        top_k=40,
        frequency_penalty=-0.5,
        penalize_prompt=True,
        bias_ids=column(7, 9),
        bias_values=column(1.5, -100.0, dtype="<f4"),
        allowed_ids=column(4, 0, 9),
    )
    builder.setup(3, 17, rules, masked_ids=(2, 11))
    builder.setup(5, 1, Sampling(seed=0))
    builder.write_ids(3, 0, np.arange(17))
    builder.write_slots(3, 0, np.arange(100, 117))
    builder.write_slot_each(np.array([1, 2]), np.array([30, 40]), np.array([8, 9]))
    builder.add_each(np.array([1, 2]), np.array([30, 40]))
    builder.add(3, 0, 17, sample=True)

    plan = unpack(builder.pack())

    assert plan.step == 41
    first, second = plan.setups
    assert int(first.rules["row"]) == 3
    assert int(first.rules["prompt_tokens"]) == 17
    assert int(first.rules["seed"]) & (2**64 - 1) == 2**63 + 5
    assert first.rules["temperature"] == np.float32(0.7)
    assert first.rules["frequency_penalty"] == np.float32(-0.5)
    assert int(first.rules["flags"]) == PENALIZE_PROMPT
    assert first.bias_ids.tolist() == [7, 9]
    assert first.bias_values.tolist() == [1.5, -100.0]
    assert first.masked_ids.tolist() == [2, 11]
    assert first.allowed_ids.tolist() == [4, 0, 9]
    assert int(second.rules["row"]) == 5
    assert second.bias_ids.size == second.masked_ids.size == second.allowed_ids.size == 0
    assert plan.ids.runs.tolist() == [[3, 0, 17]]
    assert plan.ids.values.tolist() == list(range(17))
    assert plan.slots.runs.tolist() == [[3, 0, 17], [1, 30, 1], [2, 40, 1]]
    assert plan.slots.values.tolist() == [*range(100, 117), 8, 9]
    assert plan.seqs.tolist() == [[1, 30, 1, 1], [2, 40, 1, 1], [3, 0, 17, 1]]


def test_images_and_positions_of_three_components() -> None:
    builder = PlanBuilder(step=2)
    builder.setup(3, 17, Sampling(seed=0), rotary_shift=-12)
    builder.add(3, 4, 9, sample=False)
    builder.add_image(3, 5, 6, (7 << 32) + 0xFFFF_FFC0, 2, 9)
    builder.add_image(3, 11, 2, 64, 0, 2)
    lines = np.arange(21).reshape(7, 3)
    builder.write_rotary(3, 5, lines)
    builder.write_rotary(4, 0, lines[:2])

    plan = unpack(builder.pack())

    assert int(plan.setups[0].rules["rotary_shift"]) == -12
    assert plan.images.tolist() == [[3, 5, 6, -64, 7, 2, 9], [3, 11, 2, 64, 0, 0, 2]]
    assert np.ascontiguousarray(plan.images[:, 3:5]).view("<i8")[:, 0].tolist() == [(7 << 32) + 0xFFFF_FFC0, 64]
    assert plan.rotary.runs.tolist() == [[3, 5, 7], [4, 0, 2]]
    assert plan.rotary.values.tolist() == [*lines.tolist(), *lines[:2].tolist()]


def test_an_empty_plan_is_a_plan() -> None:
    plan = unpack(PlanBuilder(step=1).pack())
    assert not plan.setups
    assert plan.seqs.shape == (0, 4)
    assert len(plan.images) == len(plan.rotary.runs) == len(plan.rotary.values) == 0


@pytest.mark.parametrize("data", [b"", b"\0" * 64, PlanBuilder(1).pack() + b"\0\0\0\0", PlanBuilder(1).pack()[:-4]])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="step plan"):
        unpack(data)


def test_states() -> None:
    builder = PlanBuilder(step=3)
    builder.add(4, 10, 5, sample=False)
    builder.state(4, 10, NO_STATE)
    builder.state(4, 12, 99)
    assert unpack(builder.pack()).states.tolist() == [[4, 10, -1], [4, 12, 99]]
