"""A decoder that writes a line without an end."""

from __future__ import annotations

import os

if __name__ == "__main__":
    while True:
        os.write(1, b"x" * (1 << 16))
