"""To which network ranks of several machines are bound."""

from __future__ import annotations

from lightllm_mp.models.parallel.torch_group import INTERFACES, interfaces


def test_the_network_that_leads_to_the_first_machine() -> None:
    assert interfaces("127.0.0.1", {}) == dict.fromkeys(INTERFACES, "lo")


def test_what_the_operator_has_set_stays() -> None:
    assert interfaces("127.0.0.1", {"GLOO_SOCKET_IFNAME": "eth7"}) == {"NCCL_SOCKET_IFNAME": "lo"}


def test_an_address_that_nothing_leads_to_is_left_to_the_libraries() -> None:
    assert interfaces("::1", {}) == interfaces("no such host", {}) == {}
