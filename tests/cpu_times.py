"""A pytest plugin that prints which test files take most CPU time, with that of the processes that they started.

python -m pytest -p tests.cpu_times
"""

from __future__ import annotations

import resource
from collections import Counter
from collections.abc import Iterator

import pytest

SHOWN = 40
NAME = "cpu_seconds"


def _used() -> float:
    """CPU seconds of this process and of its children that have ended."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(used.ru_utime + used.ru_stime for used in map(resource.getrusage, kinds))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    item.stash[_BEGIN] = _used()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[pytest.TestReport]:
    report = yield
    now = _used()
    report.user_properties = [(NAME, now - item.stash[_BEGIN])]
    item.stash[_BEGIN] = now
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    files = Counter[str]()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                files[report.nodeid.partition("::")[0]] += sum(s for name, s in report.user_properties if name == NAME)
    terminalreporter.section(f"CPU seconds ({sum(files.values()):.0f})")
    for name, seconds in files.most_common(SHOWN):
        terminalreporter.line(f"{seconds:8.1f}  {name}")


_BEGIN = pytest.StashKey[float]()
