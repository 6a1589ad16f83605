"""Routes for health, load and server facts."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from aiohttp import web

from lightllm_mp.actors.http.context import Context
from lightllm_mp.actors.http.responses import encode


class StatusRoutes:
    """The handlers that only read state."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def health(self, request: web.Request) -> web.Response:
        """Forward progress: 503 with the reason while an actor is down or hung. `unavailable` names actors without
        which the others go on: requests that need them get 503."""
        trouble = self._context.frontend.trouble
        if trouble:
            return _json({"message": "Error", "reason": trouble}, 503)
        away = self._context.frontend.state.away
        return _json({"message": "Ok"} | ({"unavailable": list(away)} if away else {}))

    async def liveness(self, request: web.Request) -> web.Response:
        """200 while this process answers."""
        return _json({"status": "ok"})

    async def readiness(self, request: web.Request) -> web.Response:
        """200 if new requests are served at once, else 503 with the reason."""
        frontend = self._context.frontend
        if frontend.ready:
            return _json({"status": "ok"})
        return _json({"status": "error", "reason": frontend.trouble or "draining"}, 503)

    async def token_load(self, request: web.Request) -> web.Response:
        """Shares of the KV slots: in use now, and the expected peak of the running requests; and the tokens that are
        expected to be computed for all requests, queued and running."""
        router = self._context.stats().get("router", {})
        total = router.get("kv_total") or 1.0
        current = router.get("kv_used", 0.0) / total
        most = router.get("kv_expected_peak", router.get("kv_used", 0.0)) / total
        loads = {"current_load": current, "logical_max_load": most, "dynamic_max_load": most}
        return _json(loads | {"expected_tokens": router.get("expected_tokens", 0.0)})

    async def server_info(self, request: web.Request) -> web.Response:
        """The model and the server's settings, without secrets and paths."""
        context = self._context
        facts = context.frontend.facts
        config = context.config
        info: dict[str, Any] = {
            "version": _version(),
            "model_name": context.model_name,
            "authentication": context.authenticated,
            "trust_remote_code": context.model.trust_remote_code,
            "max_live_requests": config.max_live_requests,
            "max_body_bytes": config.max_body_bytes,
            "live_requests": context.frontend.live,
            "takes_images": context.frontend.images.takes_images,
        }
        return _json(info | {"facts": facts.flat() if facts else None})

    async def model_name(self, request: web.Request) -> web.Response:
        """The name of the model, as LightLLM's clients ask for it."""
        return _json({"model_name": self._context.model_name})


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=encode(value), status=status, content_type="application/json")


def _version() -> str:
    try:
        return version("lightllm-mp")
    except PackageNotFoundError:
        return "source tree"
