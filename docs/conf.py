"""The documentation site: Sphinx over the Markdown pages of the repository.

    python -m tools.docs_site --out .cache/site

The source folder is the repository's root, so links of pages to one another, to README.md and to SECURITY.md are the
same on a code host and on the site. Links to other files of the repository become downloads. docs/index.md is the
navigation.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools.harness.flowchart import flowchart_svg  # noqa: E402

LONG = 40
"""Characters of a word."""
SCROLLS = '<div tabindex="0" role="region" aria-label="Table" class="'

project = "lightllm-mp"
author = "the authors of lightllm-mp"
copyright = author
root_doc = "docs/index"
extensions = ["myst_parser"]
include_patterns = ["docs/*.md", "README.md", "SECURITY.md", "CHANGELOG.md", "lightllm_mp/demo_vlm/README.md"]
exclude_patterns = [".*", "build", "tests", "web", "site", "*.egg-info"]

myst_heading_anchors = 4
myst_fence_as_directive = ["mermaid"]
nitpicky = True
smartquotes = False  # it would make a dash of the two in front of a flag

html_theme = "furo"
html_favicon = "../web/src/icon.svg"
html_title = "lightllm-mp"
html_static_path = ["site"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_use_index = False
html_theme_options = {"source_view_link": ""}
pygments_style, pygments_dark_style = "a11y-high-contrast-light", "a11y-high-contrast-dark"


class Mermaid(SphinxDirective):
    """Draws a flowchart here: a code host does it itself, and a library for it would come from another host."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        try:
            return [nodes.raw("", flowchart_svg("\n".join(self.content)), format="html")]
        except ValueError as error:
            raise self.error(str(error)) from None


def add_navigation(app: Any, name: str, source: list[str]) -> None:
    """Turn each list of docs/index.md into a section of the sidebar."""
    if name == root_doc:
        for caption, body in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", source[0], re.MULTILINE | re.DOTALL):
            pages = re.findall(r"^- \[(.+?)\]\((.+?)\.md\)", body, re.MULTILINE)
            entries = "\n".join(f"{title} <{page}>" for title, page in pages)
            source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{entries}\n```\n"


def help_keyboards_and_readers(app: Any, name: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """What scrolls can have the focus, and headings of the sidebar have a level."""
    body = context.get("body", "")
    body = body.replace("<pre>", '<pre tabindex="0">').replace('<div class="table-wrapper', f"{SCROLLS}table-wrapper")
    context["body"] = body
    tree = context.get("furo_navigation_tree", "")
    context["furo_navigation_tree"] = tree.replace('role="heading"', 'role="heading" aria-level="2"')


def add_first_page(app: Any, error: Exception | None) -> None:
    """The site begins at index.html."""
    if error is None and app.builder.format == "html":
        page = f'<meta charset="utf-8"><meta http-equiv="refresh" content="0; url={root_doc}.html">'
        Path(app.outdir, "index.html").write_text(
            f'<!doctype html><html lang="en"><title>{html_title}</title>{page}'
            f'<a href="{root_doc}.html">{html_title}</a></html>\n',
            "utf-8",
        )


def mark_long_words(app: Any, doctree: Any, name: str) -> None:
    """Code that is longer than a column of a table may break anywhere; other code stays whole."""
    for node in doctree.findall(nodes.literal):
        if max(map(len, node.astext().split()), default=0) > LONG:
            node["classes"].append("long")


def setup(app: Any) -> dict[str, Any]:
    app.add_directive("mermaid", Mermaid)
    app.connect("source-read", add_navigation)
    app.connect("doctree-resolved", mark_long_words)
    app.connect("html-page-context", help_keyboards_and_readers, priority=900)  # behind the theme's own
    app.connect("build-finished", add_first_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
