"""`python -m lightllm.server.end_ids MODEL ID ...`: prints those ids that are ordinary text of the model, one a line.

A program of its own, because a tokenizer would take memory of the server for good.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable

from lightllm_mp.model_files.default_model import find_model
from lightllm_mp.text.tokenizer import load_tokenizer

SECONDS = 120.0


def ordinary(model: str, ids: Iterable[int]) -> set[int]:
    """None of the ids, if that cannot be told: there is no tokenizer, or whoever starts the server will say what is
    wrong."""
    words = [sys.executable, "-m", "lightllm.server.end_ids", model, *map(str, ids)]
    try:
        found = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return set()
    return {int(line) for line in found.stdout.split()} if found.returncode == 0 else set()


def main(model: str, *ids: str) -> None:
    added = load_tokenizer(find_model(model)).added
    print(*(id_ for id_ in ids if int(id_) not in added), sep="\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
