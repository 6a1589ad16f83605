"""Compares tensor parallelism on several GPUs with one GPU: results, the speed of an all-reduce, the gain.

    python -m tools.bench.tensor_parallel [--ranks 2] [--parts golden,random,sum,speed] [--layers 32]

Prints one JSON line a figure; the last says whether every comparison held. Exit code 1 if not. Comparisons are in
float32 without TF32. Needs as many GPUs as ranks, no network, and about three minutes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from lightllm_mp.models.checkpoint.loader import load_model
from lightllm_mp.models.decoder.decoder import Decoder
from lightllm_mp.models.decoder.kv_pool import KVPool
from lightllm_mp.models.parallel.group import SingleRank
from lightllm_mp.models.parallel.torch_group import TorchGroup
from tools.harness.command_line import ToolParser, words
from tools.harness.figures import Figures
from tools.harness.gpu import captured, random_step, require_gpus, seconds
from tools.harness.models import GOLDENS

GOLDEN = GOLDENS / "llama"
TOLERANCE = 5e-4
DEADLINE = 240.0
PARTS = ("golden", "random", "sum", "speed")
RANDOM = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8, "vocab_size": 32003}
RANDOM |= {"num_attention_heads": 18, "num_key_value_heads": 3, "head_dim": 64}
"""A model whose heads and vocabulary do not divide by two."""
LLAMA_2_7B = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "vocab_size": 32000}
LLAMA_2_7B |= {"num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 128}
BUFFER = 96 << 20
"""Most bytes of a sum without NCCL, so that large sums can be timed too."""
CALLS = 20
"""Sums in one graph."""
SUMS = ((1, 4096), (16, 4096), (64, 4096), (256, 4096), (1024, 4096), (8192, 4096))
DECODE, PREFILL, CONTEXT, LENGTH = 64, 16, 1088, 2048
"""Decoding sequences, prompts, and their lengths."""
TOGETHER = (8, 2)
"""Prompts in a step."""
figure = Figures().add


def write_config(folder: Path, name: str, sizes: dict[str, int]) -> None:
    """A folder for `dummy` weights."""
    common = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "rms_norm_eps": 1e-5, "rope_theta": 1e4}
    common |= {"max_position_embeddings": 4096, "eos_token_id": 2, "torch_dtype": "bfloat16", "hidden_act": "silu"}
    (folder / name).mkdir()
    (folder / name / "config.json").write_text(json.dumps(common | sizes))


class Case:
    """A decoder that all ranks feed the same."""

    def __init__(self, decoder: Decoder, new: list[int], contexts: list[int], *, normal: bool = False) -> None:
        self.decoder, self.batch = decoder, random_step(new, contexts)
        self.kv = KVPool(decoder.spec, sum(contexts), dtype=decoder.dtype, device="cuda")
        if normal:
            for layer in self.kv.data:
                layer.normal_()
        ids = torch.randint(3, decoder.spec.vocab, (sum(new),), generator=torch.Generator().manual_seed(1))
        self.ids = ids.int().cuda()

    def logits(self) -> torch.Tensor:
        return self.decoder.logits(self.decoder.forward(self.ids, self.batch, self.kv))

    def choose(self) -> torch.Tensor:
        """As a step of the engine: the last row of each sequence."""
        chosen = self.decoder.logits(self.decoder.forward(self.ids, self.batch, self.kv, ends_only=True)).argmax(-1)
        return self.decoder.group.from_first(chosen)


def golden(group: TorchGroup | SingleRank, out: Path) -> bool:
    """Compares a reference's prompts with its record and between the numbers of ranks."""
    decoder = load_model(GOLDEN, device=_device(), dtype=torch.float32, group=group)
    recorded, found, worst = load_file(GOLDEN / "golden.safetensors"), {}, 0.0
    for i, prompt in enumerate(json.loads((GOLDEN / "golden.json").read_text())["prompts"]):
        case = Case(decoder, [len(prompt["input_ids"])], [len(prompt["input_ids"])])
        case.ids = torch.tensor(prompt["input_ids"], dtype=torch.int32, device="cuda")
        found[f"p{i}"] = case.logits().cpu()
        start, end = prompt["logit_positions"]
        worst = max(worst, (found[f"p{i}"][start:end] - recorded[f"p{i}.logits"]).abs().max().item())
    return _keep(group, out, found, worst < TOLERANCE, worst)


def random(group: TorchGroup | SingleRank, out: Path) -> bool:
    """Compares prompts and decoding, eager and as a graph, on random weights."""
    decoder = load_model(out.parent / "random", device=_device(), dtype=torch.float32, group=group, dummy=True)
    decoder.reserve(4096)
    prompts = Case(decoder, [100, 33, 7], [100, 33, 7])
    found = {"prompts": prompts.logits().cpu()}
    step = Case(decoder, [1] * 32, [40] * 32)
    eager = step.logits().clone()
    holder: list[torch.Tensor] = []
    graph = captured(lambda: holder.append(step.logits()))
    graph.replay()
    graph.replay()
    found["decode"] = eager.cpu()
    worst = (holder[-1] - eager).abs().max().item()
    return _keep(group, out, found, worst < TOLERANCE, worst)


def _keep(group: TorchGroup | SingleRank, out: Path, found: dict[str, torch.Tensor], good: bool, worst: float) -> bool:
    if group.rank == 0:
        save_file(found, out.with_suffix(f".{group.size}.safetensors"))
        figure(f"{out.stem} on {group.size} rank(s) as it must be", good, worst=worst)
    return good


def sums(group: TorchGroup | SingleRank, out: Path) -> bool:
    """Checks both ways of a sum (exact under capture, equal on all ranks) and measures them."""
    if isinstance(group, SingleRank):
        return True
    good = True
    for dtype in (torch.float32, torch.bfloat16):
        for shape in ((3, 4096), (64, 4096), (512, 4096)):
            good &= _exact(group, shape, dtype)
    if group.rank == 0:
        figure("sums are exact, also in graphs", good, direct=_direct(group))
    for shape in SUMS:
        size = shape[0] * shape[1] * 2
        ways = {"nccl": 0, "direct": BUFFER} if _direct(group) else {"nccl": 0}
        for way, limit in ways.items():
            _limit(group, limit)
            x = torch.zeros(shape, dtype=torch.bfloat16, device="cuda")

            def work(x: torch.Tensor = x) -> None:
                for _ in range(CALLS):
                    group.sum(x)

            each = seconds(captured(work).replay) / CALLS
            if group.rank == 0:
                figure(f"sum of {list(shape)} bfloat16 by {way}", each * 1e6, "us", gb_per_s=round(size / each / 1e9))
    return good


def _exact(group: TorchGroup, shape: tuple[int, int], dtype: torch.dtype) -> bool:
    """Whole numbers, so that every order of addition gives the same sum."""
    own = torch.arange(shape[0] * shape[1], device="cuda").view(shape).remainder(50) + group.rank
    source = own.to(dtype)
    expected = (own * group.size + sum(r - group.rank for r in range(group.size))).to(dtype)
    good = True
    for limit in (0, BUFFER):
        _limit(group, limit)
        holder: list[torch.Tensor] = []

        def work(holder: list[torch.Tensor] = holder) -> None:
            holder.append(group.sum(source.clone()))

        graph = captured(work)
        for _ in range(3):
            graph.replay()
            good &= torch.equal(holder[-1], expected)
        good &= torch.equal(group.sum(source.clone()), expected)
    return good


def _direct(group: TorchGroup) -> bool:
    _limit(group, BUFFER)
    return group.one_shot is not None and group.one_shot.takes(torch.zeros(64, 4096, device="cuda"))


def _limit(group: TorchGroup, limit: int) -> None:
    if group.one_shot is not None:
        group.one_shot.limit = limit


def speed(group: TorchGroup | SingleRank, out: Path) -> bool:
    """Measures Llama-2-7B's shape: prompts, and decoding as a graph with both ways of a sum."""
    decoder = load_model(out.parent / "speed", device=_device(), dtype=torch.bfloat16, group=group, dummy=True)
    decoder.reserve(4096)
    found: dict[str, float] = {}
    for together in TOGETHER:
        case = Case(decoder, [LENGTH] * together, [LENGTH] * together)
        name = f"prefill {PREFILL} x {LENGTH} in steps of {together * LENGTH} tokens"
        found[name] = PREFILL // together * seconds(case.choose, repeats=5, warm_up=2)
        del case
    case = Case(decoder, [1] * DECODE, [CONTEXT] * DECODE, normal=True)
    for way, limit in (("direct", 1 << 20), ("nccl", 0)):
        if isinstance(group, TorchGroup):
            _limit(group, limit)
        found[f"decode {DECODE} x {CONTEXT}, sums by {way}"] = seconds(captured(case.choose).replay)
    if group.rank == 0:
        out.with_suffix(f".{group.size}.json").write_text(json.dumps(found))
        for name, value in found.items():
            figure(f"{name} on {group.size} rank(s)", value * 1e3, "ms")
    return True


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


def run(size: int, parts: Sequence[str], folder: Path) -> bool:
    """Runs all ranks of one size. False: one of them failed or took too long."""
    meeting = os.memfd_create("meeting")
    program = [sys.executable, "-m", "tools.bench.tensor_parallel", "--parts", ",".join(parts), "--rank-of"]
    ranks = [
        subprocess.Popen([*program, str(meeting), str(rank), str(size), str(folder)], pass_fds=(meeting,))
        for rank in range(size)
    ]
    end = time.monotonic() + DEADLINE
    try:
        while any(rank.poll() is None for rank in ranks) and time.monotonic() < end:
            if any(rank.poll() for rank in ranks):  # the other ranks would wait for it
                break
            time.sleep(0.05)
        return all(rank.poll() == 0 for rank in ranks)
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
        os.close(meeting)


def as_rank(arguments: Sequence[str], parts: Sequence[str]) -> int:
    """One process of a group."""
    meeting, rank, size, folder = arguments[0], int(arguments[1]), int(arguments[2]), arguments[3]
    torch.cuda.set_device(rank)
    group: TorchGroup | SingleRank = SingleRank()
    if size > 1:
        group = TorchGroup(f"/proc/self/fd/{meeting}", rank, size, _device(), timeout=120.0, one_shot_bytes=BUFFER)
    checks = {"golden": golden, "random": random, "sum": sums, "speed": speed}
    with torch.inference_mode():
        held = [checks[part](group, Path(folder, f"{part}.out")) for part in parts]
    if isinstance(group, TorchGroup):
        dist.barrier()
        group.close()
    return 0 if all(held) else 1


def compare(folder: Path, size: int, name: str) -> bool:
    one, many = (load_file(folder / f"{name}.{ranks}.safetensors") for ranks in (1, size))
    worst = max(float((one[key] - many[key]).abs().max()) for key in one)
    same = min(float((one[key].argmax(-1) == many[key].argmax(-1)).double().mean()) for key in one)
    figure(f"{name}: 1 rank and {size} agree", worst < TOLERANCE, worst=worst, same_choice=same)
    return worst < TOLERANCE


def main(argv: Sequence[str] | None = None) -> int:
    parser = ToolParser(__doc__, parts=["golden", "random", "sum"])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--parts", type=words, default=PARTS, help="some of " + ",".join(PARTS))
    parser.add_argument("--layers", type=int, default=32, help="of the model whose speed is measured")
    parser.add_argument("--rank-of", nargs=4, help="MEETING RANK SIZE FOLDER: be one rank of a group")
    flags = parser.parse(argv)
    if flags.rank_of:
        return as_rank(flags.rank_of, flags.parts)
    require_gpus(flags.ranks)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_config(folder, "random", RANDOM)
        write_config(folder, "speed", LLAMA_2_7B | {"num_hidden_layers": flags.layers})
        good = run(1, flags.parts, folder) and run(flags.ranks, flags.parts, folder)
        for part in ("golden", "random"):
            if good and part in flags.parts:
                good &= compare(folder, flags.ranks, part)
        if good and "speed" in flags.parts:
            one, many = (json.loads((folder / f"speed.{size}.json").read_text()) for size in (1, flags.ranks))
            for what in one:
                figure(f"{what}: {flags.ranks} ranks against one", one[what] / many[what], "x")
    figure("all checks held", good, seconds=round(time.monotonic() - began, 1))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
