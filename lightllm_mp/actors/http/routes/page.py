"""The page at / and /live, and its files. They hold no secret: what they show comes from routes that need a key."""

from __future__ import annotations

from collections.abc import Mapping

from aiohttp import web

from lightllm_mp.actors.http.page import INDEX, PageFile, read_page
from lightllm_mp.actors.http.route import Route
from lightllm_mp.errors import NotFound

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "font-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types dompurify",
    )
)
"""The page runs its own files and nothing else. Text becomes markup through DOMPurify's policy alone."""
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Vary": "Accept-Encoding",
}
FOR_EVER = "public, max-age=31536000, immutable"
LOOK = ("GET", "HEAD")


class PageRoutes:
    """The handlers of the page."""

    def __init__(self, files: Mapping[str, PageFile] | None = None) -> None:
        """`files`: those of the page as it was built, if None."""
        self._files = read_page() if files is None else files

    async def index(self, request: web.Request) -> web.Response:
        """The page."""
        return self._answer(request, INDEX)

    async def asset(self, request: web.Request) -> web.Response:
        """A file of the page. Raises NotFound."""
        name = request.match_info["name"]
        if name == INDEX:
            raise NotFound("the page is at /")
        return self._answer(request, name, kept=True)

    async def icon(self, request: web.Request) -> web.Response:
        """What browsers ask for beside pages that name no icon. Raises NotFound."""
        return self._answer(request, next((name for name in self._files if name.startswith("icon-")), "icon"))

    def _answer(self, request: web.Request, name: str, *, kept: bool = False) -> web.Response:
        """`kept`: a browser may keep the file for ever if its name tells its content."""
        if (file := self._files.get(name)) is None:
            raise NotFound("there is no such file of the page")
        caching = FOR_EVER if kept and file.hashed else "no-cache"
        headers = {**HEADERS, "ETag": f'"{file.etag}"', "Cache-Control": caching}
        if any(tag.value in (file.etag, "*") for tag in request.if_none_match or ()):
            return web.Response(status=304, headers=headers)
        headers["Content-Type"] = file.content_type
        if "gzip" not in request.headers.get("Accept-Encoding", ""):
            return web.Response(body=file.data, headers=headers)
        headers["Content-Encoding"] = "gzip"
        return web.Response(body=file.compressed, headers=headers)


def page_routes(page: PageRoutes) -> tuple[Route, ...]:
    """The page is no API: its routes stand in no OpenAPI document."""
    return (
        Route(LOOK, ("/", "/live"), page.index, "public", quiet=True),
        Route(LOOK, ("/favicon.ico",), page.icon, "public", quiet=True),
        Route(LOOK, ("/assets/{name}",), page.asset, "public", quiet=True),
    )
