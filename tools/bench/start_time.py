"""Measures the seconds from the start of a server until it is ready, with weights in the page cache.

    python -m tools.bench.start_time --shape llama2-7b [--times 3] [--folder DIR] [flags of serve]

Writes a checkpoint of random weights in 16 bits into a folder (a temporary one unless --folder names one to keep) and
starts a server of it several times; the first start compiles kernels if none are cached.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from lightllm_mp.model_files.model_source import ModelSource
from lightllm_mp.models.checkpoint.dummy_weights import RandomWeights
from lightllm_mp.models.model_config import hf_model
from tests.actors.embedded import write_byte_tokenizer
from tools.harness.command_line import ToolParser
from tools.harness.figures import Figures, say
from tools.harness.serving import serving
from tools.harness.shapes import CONFIGS, write_config

SHARD = 4 << 30
"""Bytes after which the next file begins."""


def write_checkpoint(folder: Path) -> int:
    """Random weights in bfloat16 for the configuration in a folder, and a tokenizer of bytes. Returns their bytes."""
    family, spec = hf_model(ModelSource(folder))
    params = family.folder_weights(spec)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    weights = RandomWeights(params, device=device, dtype=torch.bfloat16)
    index: dict[str, str] = {}
    for number, shard in enumerate(_shards(weights), 1):
        file = f"model-{number:05}.safetensors"
        save_file(shard, folder / file)
        index |= dict.fromkeys(shard, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    write_byte_tokenizer(folder)
    return sum(weights.sizes.values())


def _shards(weights: RandomWeights) -> Iterator[dict[str, torch.Tensor]]:
    """Weights on the host, cut into files after SHARD bytes."""
    shard: dict[str, torch.Tensor] = {}
    held = 0
    for name, tensor in weights.stream(set(weights.shapes)):
        shard[name] = tensor.cpu()
        held += tensor.nbytes
        if held > SHARD:
            yield shard
            shard, held = {}, 0
    if shard:
        yield shard


def main(argv: Sequence[str] | None = None) -> int:
    parser = ToolParser(__doc__, shape="tiny", times=1)
    parser.add_argument("--shape", choices=CONFIGS, default="llama2-7b")
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    flags, serve = parser.parse_some(argv)
    if flags.smoke:
        serve = ["--max-total-token-num", "2000", *serve]
    figures, place = Figures(), flags.folder or Path(tempfile.mkdtemp())
    try:
        began, folder = time.perf_counter(), write_config(flags.shape, place)
        size = write_checkpoint(folder)
        say(f"{size / 1e9:.1f} GB written in {time.perf_counter() - began:.1f} s")
        torch.cuda.empty_cache()
        for number in range(flags.times):
            began = time.perf_counter()
            with serving(more=["--model-dir", str(folder), *serve]):
                figures.add(f"start to ready {number + 1}", time.perf_counter() - began, "s")
    finally:
        if flags.folder is None:
            shutil.rmtree(place)
    return 0


if __name__ == "__main__":
    sys.exit(main())
