"""The engine against `transformers` generate on this machine, same model, same prompts, interleaved in one run.

    python scripts/bench_vs_transformers.py [--requests 16] [--tokens 128] [--rounds 3]

Both produce exactly --tokens greedy tokens a prompt (end of sequence ignored). transformers gets one padded batch of
all prompts, in float32 and in bfloat16, and counts with its better one; the engine gets all requests at once. Then one
prompt alone. The engine's prefix cache is off, so that every round computes its prompts. Prints medians and ratios.
Needs the extra `bench`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from lightllm_mp import Config, Engine
from lightllm_mp.config import EngineConfig, ModelConfig
from lightllm_mp.text.default_model import find_default_model
from lightllm_mp.text.tokenizer import load_tokenizer

TOPICS = ("rivers", "bridges", "clocks", "whales", "bread", "sails", "kites", "glass", "maps", "wool", "tides", "snow")


Prompts = list[list[int]]
Run = Callable[[Prompts], list[list[int]]]


def make_prompts(path: Path, count: int) -> Prompts:
    """Different beginnings and different lengths, as a mixed batch has."""
    tokenizer = load_tokenizer(path)
    texts = (
        f"Number {i}: " + f"Here is what everybody should know about {TOPICS[i % len(TOPICS)]}. " * (1 + i % 5)
        for i in range(count)
    )
    return [tokenizer.encode(text).tolist() for text in texts]


def as_folder(gguf: Path, folder: Path) -> None:
    """The default model as transformers likes it best: dense weights under their Hugging Face names."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    from lightllm_mp.models.config import gguf_model

    family, spec, file = gguf_model(gguf)
    assert family.gguf_weights is not None
    tensors = {}
    for ours, theirs in zip(family.gguf_weights(spec, file), family.hf_weights(spec), strict=True):
        for piece, named in zip(ours.pieces, theirs.pieces, strict=True):
            value = torch.from_numpy(file.read(piece.name).copy())
            value = piece.transform(value) if piece.transform else value
            tensors[named.name] = value.to(torch.bfloat16).contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    LlamaConfig(
        vocab_size=spec.vocab,
        hidden_size=spec.hidden,
        intermediate_size=spec.intermediate,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.kv_heads,
        rms_norm_eps=spec.norm_eps,
        rope_theta=spec.rope.theta,
        max_position_embeddings=spec.max_context,
        tie_word_embeddings=spec.tied,
        architectures=["LlamaForCausalLM"],
    ).save_pretrained(folder)


class Transformers:
    """`generate` on prompts of token ids, padded on the left."""

    def __init__(self, folder: Path, dtype: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self._torch = torch
        self.name = dtype
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()

    def run(self, prompts: Prompts, tokens: int) -> list[list[int]]:
        torch, longest = self._torch, max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        with torch.inference_mode():
            out = self._model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=False,
                pad_token_id=0,
            )
        return out[:, longest:].tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data-type", default="auto", help="of the engine")
    flags = parser.parse_args()
    config = Config(
        model=ModelConfig(data_type=flags.data_type),
        engine=EngineConfig(disable_prompt_cache=True, max_total_token_num=40_000),
    )
    path = find_default_model()
    batch = make_prompts(path, flags.requests)
    with tempfile.TemporaryDirectory() as folder, Engine(config) as engine:
        as_folder(path, Path(folder))
        others = [Transformers(Path(folder), dtype) for dtype in ("float32", "bfloat16")]

        def ours(prompts: Prompts) -> list[list[int]]:
            answers = engine.generate(prompts, max_new_tokens=flags.tokens, ignore_eos=True)
            return [answer.token_ids for answer in answers]

        runs: dict[str, Run] = {f"engine {engine.facts.dtype}": ours}
        for other in others:
            runs[f"transformers {other.name}"] = lambda prompts, other=other: other.run(prompts, flags.tokens)
        for title, prompts in ((f"{len(batch)} requests", batch), ("1 request", batch[:1])):
            report(title, len(prompts) * flags.tokens, runs, prompts, flags.rounds)


def report(title: str, tokens: int, runs: dict[str, Run], prompts: Prompts, rounds: int) -> None:
    for run in runs.values():
        assert sum(map(len, run(prompts))) == tokens  # and warm
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run(prompts)
            times[name].append(time.perf_counter() - start)
    rates = {name: tokens / statistics.median(values) for name, values in times.items()}
    mine, *theirs = rates.values()
    ratio = mine / max(theirs)
    for name, rate in rates.items():
        print(f"{title:<12} {name:<24} {rate:9.1f} tokens/s")
    print(f"{title:<12} {'ratio to the better one':<24} {ratio:9.2f}")
    print(json.dumps({"case": title, "tokens_per_s": rates, "ratio": ratio}))


if __name__ == "__main__":
    main()
