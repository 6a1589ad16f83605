"""Log lines of all processes look alike: time, level, part, message, on standard error."""

from __future__ import annotations

import logging
import sys


def set_up_logging(level: str) -> None:
    """Configure the package's logger of this process; `level` as in SupervisorConfig.log_level."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%Y-%m-%d %H:%M:%S"))
    root = logging.getLogger("lightllm_mp")
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    root.propagate = False
