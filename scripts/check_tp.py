"""Tensor parallelism on two GPUs against one: the same results, how fast a sum over the ranks is, what it is worth.

    python scripts/check_tp.py [--ranks 2] [--parts golden,random,sum,speed] [--layers 32]

Prints one JSON line a figure; the last says whether every comparison held. Exit code 1 if not. Comparisons are in
float32 without TF32. Needs as many GPUs as ranks, no network, and about three minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from safetensors.numpy import load_file

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "goldens" / "llama"
TOLERANCE = 5e-4
DEADLINE = 240.0
PARTS = ("golden", "random", "sum", "speed")
RANDOM = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8, "vocab_size": 32003}
RANDOM |= {"num_attention_heads": 18, "num_key_value_heads": 3, "head_dim": 64}
"""Neither heads nor vocabulary divide by two."""
LLAMA_2_7B = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "vocab_size": 32000}
LLAMA_2_7B |= {"num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 128}


def figure(name: str, value: float | bool, **more: object) -> bool:
    print(json.dumps({"name": name, "value": value if value in (True, False) else round(value, 5), **more}), flush=True)
    return bool(value)


def write_config(folder: Path, name: str, sizes: dict[str, int]) -> None:
    """A folder that `dummy` weights can be made up for."""
    common = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "rms_norm_eps": 1e-5, "rope_theta": 1e4}
    common |= {"max_position_embeddings": 4096, "eos_token_id": 2, "torch_dtype": "bfloat16", "hidden_act": "silu"}
    (folder / name).mkdir()
    (folder / name / "config.json").write_text(json.dumps(common | sizes))


def run(size: int, parts: str, folder: Path) -> bool:
    """All ranks of one size. False: one of them failed or took too long."""
    meeting = os.memfd_create("meeting")
    paths = os.pathsep.join([str(ROOT), str(ROOT / "scripts"), os.environ.get("PYTHONPATH", "")])
    program = [sys.executable, str(ROOT / "scripts" / "check_tp_rank.py")]
    ranks = [
        subprocess.Popen(
            [*program, str(meeting), str(rank), str(size), parts, str(folder)],
            pass_fds=(meeting,),
            env={**os.environ, "PYTHONPATH": paths},
        )
        for rank in range(size)
    ]
    end = time.monotonic() + DEADLINE
    try:
        # When one fails the others would wait for it.
        while (
            any(rank.poll() is None for rank in ranks) and time.monotonic() < end and not any(r.poll() for r in ranks)
        ):
            time.sleep(0.05)
        return all(rank.poll() == 0 for rank in ranks)
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
        os.close(meeting)


def compare(folder: Path, size: int, name: str) -> bool:
    one, many = (load_file(folder / f"{name}.{ranks}.safetensors") for ranks in (1, size))
    worst = max(float(abs(one[key] - many[key]).max()) for key in one)
    lines = [(one[key].argmax(-1) == many[key].argmax(-1)).mean() for key in one]
    return figure(f"{name}: 1 rank and {size} agree", worst < TOLERANCE, worst=worst, same_choice=float(min(lines)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--parts", default=",".join(PARTS), help="some of " + ",".join(PARTS))
    parser.add_argument("--layers", type=int, default=32, help="of the model whose speed is measured")
    flags = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_config(folder, "random", RANDOM)
        write_config(folder, "speed", LLAMA_2_7B | {"num_hidden_layers": flags.layers})
        good = run(1, flags.parts, folder) and run(flags.ranks, flags.parts, folder)
        for part in ("golden", "random"):
            if good and part in flags.parts.split(","):
                good &= compare(folder, flags.ranks, part)
        if good and "speed" in flags.parts.split(","):
            one, many = (json.loads((folder / f"speed.{size}.json").read_text()) for size in (1, flags.ranks))
            for what in one:
                figure(f"{what}: {flags.ranks} ranks against one", one[what] / many[what], unit="x")
    figure("all checks held", good, seconds=round(time.monotonic() - began, 1))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
