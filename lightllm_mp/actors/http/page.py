"""The files of the page: what `npm run build` in web/ has made of its sources."""

from __future__ import annotations

import gzip
import re
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "page"
INDEX = "index.html"
TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_HASHED = re.compile(r"-[A-Z0-9]{8}\.[a-z]+")


@dataclass(frozen=True)
class PageFile:
    """A file of the page; it is compressed once, when a client first asks for that."""

    name: str
    data: bytes

    @cached_property
    def compressed(self) -> bytes:
        return gzip.compress(self.data, mtime=0)

    @cached_property
    def etag(self) -> str:
        return sha256(self.data).hexdigest()[:32]

    @property
    def content_type(self) -> str:
        return TYPES[Path(self.name).suffix]

    @property
    def hashed(self) -> bool:
        """The name tells the content, so a browser may keep the file for ever."""
        return _HASHED.search(self.name) is not None


def read_page(folder: Path = FOLDER) -> dict[str, PageFile]:
    """The files of the page by name: `index.html`, and those that it asks for under assets/. Empty where the page has
    not been built."""
    paths = [folder / INDEX, *sorted((folder / "assets").glob("*"))]
    return {
        path.name: PageFile(path.name, path.read_bytes()) for path in paths if path.suffix in TYPES and path.is_file()
    }
