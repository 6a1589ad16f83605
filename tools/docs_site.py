"""Builds the documentation site; a warning is an error.

    python -m tools.docs_site --out .cache/site         # then open .cache/site/index.html
    python -m http.server --directory .cache/site       # or serve it

Needs `pip install '.[docs]'`. The pages are the Markdown files of docs/, README.md, SECURITY.md and CHANGELOG.md. The
site loads nothing from another host, and its search works from the file system.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from tools.harness.command_line import ToolParser, skip

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / ".cache" / "site"
BUILDER = {False: "html", True: "dummy"}
"""A smoke run reads and checks all pages; it writes none."""


def build(out: Path, builder: str = "html", root: Path = ROOT) -> int:
    """Exit code of sphinx-build over the repository at `root`: 0 if there was no warning."""
    from sphinx.cmd.build import build_main

    with tempfile.TemporaryDirectory() as trees:
        flags = ["-q", "-W", "--keep-going", "-E", "-d", trees, "-b", builder, "-c", str(ROOT / "docs")]
        return build_main([*flags, str(root), str(out)])


def main(argv: Sequence[str] | None = None) -> int:
    parser = ToolParser(__doc__)
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the site (.cache/site)")
    flags = parser.parse(argv)
    if missing := [name for name in ("sphinx", "myst_parser", "furo") if find_spec(name) is None]:
        skip(f"{', '.join(missing)}: not installed (pip install '.[docs]')")
    return build(flags.out, BUILDER[flags.smoke])


if __name__ == "__main__":
    raise SystemExit(main())
