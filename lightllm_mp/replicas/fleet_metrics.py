"""The metrics page of a fleet: the samples of every replica, labelled with its name, and the front's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def merged(pages: Mapping[str, str], own: str = "") -> str:
    """One page in Prometheus' text format. `pages`: replica name -> its page. `own`: the front's page, which gets no
    label. The samples of a metric stand together, as the format requires."""
    families: dict[str, tuple[list[str], list[str]]] = {}
    for name, page in pages.items():
        quoted = name.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        _read(page, f'replica="{quoted}"', families)
    _read(own, "", families)
    return "".join(line + "\n" for comments, samples in families.values() for line in (*comments, *samples))


def own_metrics(values: Iterable[tuple[str, str, str, float]]) -> str:
    """A page of metrics without labels, each (name, type, help, value)."""
    return "".join(
        f"# HELP {name} {text}\n# TYPE {name} {kind}\n{name} {float(value)}\n" for name, kind, text, value in values
    )


def _read(page: str, label: str, families: dict[str, tuple[list[str], list[str]]]) -> None:
    family = ""
    for line in page.splitlines():
        if line.startswith("# "):
            family = line.split(" ", 3)[2]
            comments = families.setdefault(family, ([], []))[0]
            if line not in comments and len(comments) < 2:
                comments.append(line)
        elif line:
            families.setdefault(family, ([], []))[1].append(_labelled(line, label))


def _labelled(sample: str, label: str) -> str:
    if not label:
        return sample
    name, brace, rest = sample.partition("{")
    if brace and " " not in name:
        return f"{name}{{{label},{rest}"
    name, _, value = sample.partition(" ")
    return f"{name}{{{label}}} {value}"
