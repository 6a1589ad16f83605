"""Measures the quality of 8-bit keys and values, or of quantised weights: perplexity, and how often the most likely
token stays the same under teacher forcing. The text is the Python language reference, which is part of every Python.

    python -m tools.bench.perplexity [--model PATH] [--tokens 20480] [--kv bfloat16,int8,fp8] [--device cpu|cuda]
    python -m tools.bench.perplexity --weights [--model FILE.gguf]
    python -m tools.bench.perplexity --weights --types Q2_K,Q4_K,IQ4_XS,int8,awq,gptq --llama-quantize PROGRAM

--weights, on a CPU: the model in float32, in bfloat16 with its weights expanded, and in bfloat16 with the file's own
blocks, each with keys and values of its type. --types: the same for the model in these types in place of its own.
ggml's are written by llama.cpp's llama-quantize (tools/bench/build_llama.sh builds it) from the model with rows filled
up to a multiple of 256; int8, awq and gptq are made of the projections while they are loaded.

The tool compares the other types of --kv with the first. On a CPU everything except the stored keys and values is
float32 and attention is the reference op, so that only their rounding makes a difference; on a GPU the model runs in
bfloat16 with the ops that a server uses. Each type prints one JSON line.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from pydoc_data import topics

import torch
from torch import Tensor

from lightllm_mp.kernels import reference
from lightllm_mp.kernels.batch import Batch
from lightllm_mp.kernels.quantised import QuantisedWeight
from lightllm_mp.kernels.reference.quantised import expanded
from lightllm_mp.kernels.select import op_table, set_threads
from lightllm_mp.kernels.table import Prepared
from lightllm_mp.model_files.default_model import find_default_model
from lightllm_mp.models.checkpoint.loader import load_model
from lightllm_mp.models.decoder.decoder import Decoder
from lightllm_mp.models.decoder.kv_pool import KVPool
from lightllm_mp.text.tokenizer import load_tokenizer
from tools.harness.command_line import ToolParser, words
from tools.harness.figures import Figures
from tools.harness.models import write_tiny_model
from tools.harness.weight_types import INTEGERS, write_in_blocks, write_wide

STORED = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.int8,
    "fp8": torch.float8_e4m3fn,
}
LOGIT_ROWS = 256


@dataclass
class Scores:
    """For every token except each sequence's first: its negative log-likelihood (float64) and the most likely token."""

    losses: torch.Tensor
    likeliest: torch.Tensor

    @property
    def perplexity(self) -> float:
        return math.exp(self.losses.mean().item())

    def change_from(self, base: Scores) -> tuple[float, float]:
        """The relative difference of the perplexity to that of `base`, and its standard error."""
        more = self.losses - base.losses
        return math.expm1(more.mean().item()), more.std().item() / len(more) ** 0.5


def text() -> str:
    """Prose with some code, about 700,000 characters."""
    return "\n\n".join(topics.topics[name] for name in sorted(topics.topics))


def load(path: Path, device: str) -> Decoder:
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    ops = op_table(device, dtype)
    if device == "cpu":
        plain = reference.TABLE
        ops = replace(ops, rotary_kv_write=plain.rotary_kv_write, attention=plain.attention)
    return load_model(path, device=device, dtype=dtype, ops=ops)


def weight_forms(path: Path) -> Iterator[tuple[str, Decoder]]:
    """A GGUF file's model in float32, with expanded weights, and as a server runs it."""
    ops = op_table("cpu", torch.bfloat16)
    yield "float32", load_model(path, dtype=torch.float32)
    yield "expanded", load_model(path, dtype=torch.bfloat16, ops=replace(ops, block_types=frozenset()))
    yield "blocks", load_model(path, dtype=torch.bfloat16)


def score(decoder: Decoder, sequences: torch.Tensor, stored: torch.dtype, chunk: int) -> Scores:
    """Feeds `sequences` [count, length] one after another in chunks. Later chunks read what earlier ones stored."""
    device, length = sequences.device, sequences.shape[1]
    pool = KVPool(decoder.spec, length, dtype=stored, device=device)
    table = torch.arange(length, dtype=torch.int32, device=device).unsqueeze(0)
    losses, likeliest = [], []
    for ids in sequences:
        for start in range(0, length, chunk):
            new = ids[start : start + chunk]
            batch = Batch.of([len(new)], [start + len(new)], [0], table)
            hidden = decoder.forward(new.int(), batch, pool)
            following = ids[start + 1 : start + chunk + 1]
            for first in range(0, len(following), LOGIT_ROWS):
                right = following[first : first + LOGIT_ROWS].long()
                logits = decoder.logits(hidden[first : first + len(right)])
                losses.append(torch.nn.functional.cross_entropy(logits, right, reduction="none").double().cpu())
                likeliest.append(logits.argmax(-1).cpu())
    return Scores(torch.cat(losses), torch.cat(likeliest))


def integer_forms(path: Path, kind: str, vocabulary: int) -> Iterator[tuple[str, Decoder]]:
    """The same with projections in a type of `INTEGERS`; embedding and head stay plain."""

    def loaded(dtype: torch.dtype, prepare: Callable[[QuantisedWeight, Tensor | None], Prepared]) -> Decoder:
        def linear(weight: Tensor, bias: Tensor | None) -> Prepared:
            if len(weight) == vocabulary:
                return ops.prepare_linear(weight, bias)
            return prepare(INTEGERS[kind](weight.bfloat16()), bias)

        ops = op_table("cpu", dtype)
        return load_model(path, dtype=dtype, ops=replace(ops, prepare_linear=linear, block_types=frozenset()))

    exact, served = op_table("cpu", torch.float32), op_table("cpu", torch.bfloat16)
    yield "float32", loaded(torch.float32, lambda w, bias: exact.prepare_linear(expanded(w, torch.float32), bias))
    yield "expanded", loaded(torch.bfloat16, lambda w, bias: served.prepare_linear(expanded(w, torch.bfloat16), bias))
    yield kind, loaded(torch.bfloat16, lambda w, bias: served.prepare_quantised(w, bias, torch.bfloat16))


Case = tuple[str, str, Decoder]
"""Form of the weights, type of keys and values, model."""


def comparisons(path: Path, folder: Path, flags: argparse.Namespace) -> Iterator[tuple[str, Iterator[Case]]]:
    """The name of a model, and its cases. The first case is the baseline of the others."""
    if not flags.weights:
        decoder = load(path, flags.device)
        yield path.name, (("as loaded", name, decoder) for name in flags.kv)
    elif not flags.types:
        yield path.name, served_alike(weight_forms(path))
    vocabulary = load_tokenizer(path).vocab_size
    wide = folder / "wide.gguf"
    for kind in flags.types:
        if kind in INTEGERS:
            yield f"{path.name} in {kind}", served_alike(integer_forms(path, kind, vocabulary))
            continue
        if not wide.exists():
            write_wide(path, wide)
        file = write_in_blocks(kind, wide, flags.llama_quantize)
        yield f"{path.name} in {kind}", served_alike(weight_forms(file))
        file.unlink()


def served_alike(forms: Iterator[tuple[str, Decoder]]) -> Iterator[Case]:
    """Keys and values have the model's own type."""
    return ((name, str(decoder.dtype).removeprefix("torch."), decoder) for name, decoder in forms)


def main(argv: Sequence[str] | None = None) -> int:
    parser = ToolParser(__doc__, tokens=64, length=32, chunk=16, device="cpu")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--tokens", type=int, default=20480)
    parser.add_argument("--length", type=int, default=1024, help="tokens of a sequence")
    parser.add_argument("--chunk", type=int, default=256, help="tokens fed at a time")
    parser.add_argument("--kv", type=words, default=["bfloat16", "int8", "fp8"])
    parser.add_argument("--weights", action="store_true", help="compare forms of the weights and not of the KV")
    parser.add_argument("--types", type=words, default=[], help="types of the weights in place of the file's own")
    parser.add_argument("--llama-quantize", type=Path, default="llama-quantize", help="the program")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    flags = parser.parse(argv)
    set_threads()
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        tiny = write_tiny_model(Path(folder)) if flags.smoke and not flags.model else None
        measure(tiny or flags.model or find_default_model(), Path(folder), flags)
    return 0


def measure(path: Path, folder: Path, flags: argparse.Namespace) -> None:
    ids = torch.as_tensor(load_tokenizer(path).encode(text()).tolist()[: flags.tokens])
    count = len(ids) // flags.length
    sequences = ids[: count * flags.length].view(count, flags.length).to(flags.device)
    figures = Figures()
    for model, cases in comparisons(path, folder, flags):
        base = None
        for weights, kv, decoder in cases:
            began = time.perf_counter()
            scores = score(decoder, sequences, STORED[kv], flags.chunk)
            base = base or scores
            change, error = scores.change_from(base)
            figures.add(
                f"perplexity of {model}, weights {weights}, KV {kv}",
                scores.perplexity,
                device=flags.device,
                computed_in=str(decoder.dtype).removeprefix("torch."),
                tokens=len(scores.losses),
                change=round(change, 6),
                error=round(error, 6),
                equal_argmax=round((scores.likeliest == base.likeliest).double().mean().item(), 5),
                seconds=round(time.perf_counter() - began, 1),
            )


if __name__ == "__main__":
    sys.exit(main())
