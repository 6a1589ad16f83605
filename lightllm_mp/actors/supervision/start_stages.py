"""What children that start are doing, shown to a person: how far they have read, and any other stage that lasts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from lightllm_mp.messages import Loading

STAGE_SHOWN = 1.0
"""Seconds after which a stage that goes on is shown."""


class StartStages:
    """`show(child, Loading)` is called in the running loop."""

    def __init__(self, show: Callable[[str, Loading], None]) -> None:
        self._show = show
        self._now: dict[str, Loading] = {}

    def told(self, name: str, loading: Loading) -> None:
        """A child's own words. Either kind ends the stage before it."""
        self.over(name)
        if loading.total:
            self._show(name, loading)
            return
        self._now[name] = loading
        asyncio.get_running_loop().call_later(STAGE_SHOWN, self._look, name, loading)

    def over(self, name: str) -> None:
        """The child is ready, or gone."""
        self._now.pop(name, None)

    def end(self) -> None:
        """Nothing more is shown."""
        self._now.clear()

    def _look(self, name: str, loading: Loading) -> None:
        if self._now.get(name) is loading:
            self._show(name, loading)
