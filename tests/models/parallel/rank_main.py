"""One tensor-parallel rank over golden folders.

`python -m tests.models.parallel.rank_main MEETING_FD RANK SIZE OUT DTYPE FOLDER ...`

FOLDER may be NAME@EP: the ranks form EP groups, each with whole experts. Runs all prompts of each folder in one step
and decodes them together; rank 0 writes its outputs to OUT, another rank only their digest.
"""

from __future__ import annotations

import hashlib
import json
import sys
import traceback
from pathlib import Path

import torch
from safetensors.torch import save

from lightllm_mp.models.checkpoint.loader import load_model
from lightllm_mp.models.decoder.decoder import Decoder
from lightllm_mp.models.decoder.kv_pool import KVPool
from lightllm_mp.models.parallel.torch_group import TorchGroup
from tests.models.golden import GOLDENS, prompts
from tests.models.runner import Runner

TIMEOUT = 60.0
GREEDY = 24
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def seen(decoder: Decoder, folder: str) -> dict[str, torch.Tensor]:
    """Logits of prompt i as `i.prompt`, of its decoding as `i.decode`, and the ids; of a reward model its scores."""
    runner = Runner(decoder)
    if decoder.spec.pooling is not None:
        golden = json.loads((GOLDENS / folder / "golden.json").read_text())["prompts"]
        work = [(runner.sequence(), prompt["input_ids"]) for prompt in golden]
    else:
        work = [(runner.sequence(prompt), prompt.ids) for prompt in prompts(folder)]
    first = runner.step(work)
    found = {f"{i}.prompt": logits.clone() for i, logits in enumerate(first)}
    if decoder.spec.pooling is None:
        ids, logits = runner.decode([(seq, got) for (seq, _), got in zip(work, first, strict=True)], GREEDY)
        for i in range(len(work)):
            found |= {f"{i}.decode": logits[i].clone(), f"{i}.ids": torch.tensor(ids[i])}
    return found


def primitives(group: TorchGroup) -> dict[str, list]:
    """Each call of the group on small tensors; the model's own type stays."""
    rank = float(group.rank)
    sums = {str(dtype): group.sum(torch.full((2, 3), 1.5 + rank, dtype=dtype)) for dtype in DTYPES}
    assert all(str(x.dtype) == name for name, x in sums.items())
    return {
        **{name: x.tolist() for name, x in sums.items()},
        "side_by_side": group.side_by_side(torch.tensor([[rank, 10.0], [rank + 5, 20.0]])).tolist(),
        "from_first": group.from_first(torch.tensor([group.rank + 7, group.rank])).tolist(),
        "least": [group.least(40 - group.rank)],
    }


def main() -> None:
    meeting, rank, size, out, dtype, *folders = sys.argv[1:]
    torch.set_num_threads(1)
    group = TorchGroup(f"/proc/self/fd/{meeting}", int(rank), int(size), torch.device("cpu"), timeout=TIMEOUT)
    Path(out, f"primitives.{rank}.json").write_text(json.dumps(primitives(group)))
    for folder in folders:
        report: dict[str, str | int] = {}
        try:
            name, _, ep = folder.partition("@")
            decoder = load_model(GOLDENS / name, dtype=getattr(torch, dtype), group=group, ep=int(ep or 1))
            report["weight_bytes"] = decoder.weight_bytes
            report["kv_bytes"] = KVPool.token_bytes(decoder.spec, decoder.dtype)
            data = save(seen(decoder, name))
            report["digest"] = hashlib.sha256(data).hexdigest()
            if int(rank) == 0:
                Path(out, f"{folder}.safetensors").write_bytes(data)
        except Exception:
            report["error"] = traceback.format_exc()
        Path(out, f"{folder}.{rank}.json").write_text(json.dumps(report))
    group.close()


if __name__ == "__main__":
    main()
