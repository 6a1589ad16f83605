"""A row of the route table."""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp.typedefs import Handler

from lightllm_mp.actors.http.security.auth import Access


@dataclass(frozen=True)
class Route:
    methods: tuple[str, ...]
    paths: tuple[str, ...]
    handler: Handler
    access: Access
    """Who may call it. It has no default, so that no route is open by oversight."""
    quiet: bool = False
    """Not in the access log."""
