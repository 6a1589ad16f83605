"""The number of threads that kernels get in a container."""

from __future__ import annotations

import pytest

from lightllm_mp import machine
from lightllm_mp.kernels import select
from lightllm_mp.kernels.cpu import overlay


@pytest.mark.parametrize("table", [object(), None], ids=["native", "torch"])
def test_kernels_start_no_more_threads_than_control_groups_grant(
    monkeypatch: pytest.MonkeyPatch, table: object
) -> None:
    set_to: dict[str, int] = {}
    monkeypatch.setattr(machine, "physical_cores", lambda: 3)
    monkeypatch.setattr(overlay, "table", lambda: table)
    monkeypatch.setattr(overlay, "set_threads", lambda count: set_to.update(native=count))
    monkeypatch.setattr(select.torch, "set_num_threads", lambda count: set_to.update(torch=count))
    assert select.set_threads() == 3
    assert set_to == ({"native": 3, "torch": 1} if table else {"torch": 3})
    assert select.set_threads(5) == 5
