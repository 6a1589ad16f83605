"""How the tokens that decoding leaves of a step are shared between prompts that are being computed.

First come, first served would let one long prompt hold up every short one behind it; equal shares would let all long
prompts finish late together. So the first prompt gets half, and the other half goes to whoever needs least: a short
prompt starts at once, long ones still finish one after the other, and the first one is slowed down by two at most, so
no prompt waits for ever. A higher priority goes first in both halves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def service_order(prompts: Sequence[tuple[int, int]], budget: int) -> Iterator[tuple[int, int]]:
    """`prompts`: (priority, tokens left) in order of service. Yields (index, most tokens it may take), until the
    budget is used up; the first index comes twice."""
    if not prompts:
        return
    yield 0, -(-budget // 2)
    for index in sorted(range(len(prompts)), key=lambda i: (-prompts[i][0], prompts[i][1], i)):
        yield index, budget
