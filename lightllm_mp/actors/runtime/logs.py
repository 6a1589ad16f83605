"""Log format of all processes: time, level, logger and message in a line of text, or one JSON object a line."""

from __future__ import annotations

import functools
import logging
import os
import sys
import time
from types import TracebackType
from typing import Any

import msgspec

from lightllm_mp.actors.runtime.log_output import LosingOutput, log_output

PACKAGE = "lightllm_mp"


def set_up_logging(level: str, *, json: bool = False, actor: str = "") -> None:
    """Configure the package's logger of this process; `level` as in SupervisorConfig.log_level.

    With `json`, warnings of libraries and the exception that ends the process are objects too: only a crash in native
    code writes anything else to standard error.
    """
    lines = JsonLines(actor) if json else TextLines()
    handler = logging.StreamHandler(log_output(sys.stderr, functools.partial(_dropped, lines)))
    handler.setFormatter(lines)
    root = logging.getLogger(PACKAGE)
    for old in root.handlers:
        if isinstance(old, logging.StreamHandler) and isinstance(old.stream, LosingOutput):
            old.stream.close()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    root.propagate = False
    if json:
        logging.getLogger().handlers[:] = [handler]
        logging.captureWarnings(True)
        sys.excepthook = _log_the_end


class TextLines(logging.Formatter):
    """`2026-01-31 12:00:00 INFO lightllm_mp.access: message`"""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s", "%Y-%m-%d %H:%M:%S")


class JsonLines(logging.Formatter):
    """time (UTC, RFC 3339), level, actor, pid, logger and message, then the record's `fields` (extra={"fields": ...})
    and the traceback of an exception."""

    def __init__(self, actor: str) -> None:
        super().__init__()
        self._actor = actor

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": _time(record.created),
            "level": record.levelname.lower(),
            "actor": self._actor,
            "pid": os.getpid(),
            "logger": record.name,
            "message": _unicode(record.getMessage()),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["exception"] = _unicode(self.formatException(record.exc_info))
        return msgspec.json.encode(entry, enc_hook=str).decode()


def _time(seconds: float) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{int(seconds % 1 * 1000):03d}Z"


def _unicode(text: str) -> str:
    """Replace lone surrogates, which JSON cannot hold."""
    return text.encode("utf-8", "replace").decode()


def _dropped(lines: logging.Formatter, count: int) -> str:
    text = f"{count} log lines were dropped: standard error did not take them"
    return lines.format(logging.LogRecord(PACKAGE, logging.WARNING, "", 0, text, (), None)) + "\n"


def _log_the_end(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    logging.getLogger(PACKAGE).critical("the process ends: %s", kind.__name__, exc_info=(kind, error, trace))
