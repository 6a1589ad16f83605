"""--quantization, and LightLLM's words for it."""

from __future__ import annotations

import pytest

from lightllm_mp.cli.flags.fields import fields
from lightllm_mp.cli.flags.help import lightllm_help
from lightllm_mp.cli.flags.lightllm import MEANINGS
from lightllm_mp.cli.flags.resolve import resolve
from lightllm_mp.errors import ConfigError


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", "none"),
        ("--quantization int8", "int8"),
        ("--quantization none", "none"),
        ("--mode triton_int8weight", "int8"),
        ("--mode triton_flashdecoding triton_int8weight", "int8"),
        ("--quant_type vllm-fp8w8a8", "fp8"),
        ("--quant_type w8a16", "int8"),
        ("--quant_type none", "none"),
        ("--quant_type awq", "none"),
    ],
)
def test_what_is_asked_for(words, expected):
    assert resolve(words.split(), {})[0].model.quantization == expected


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("--quantization int4", "one of none, int8, fp8"),
        ("--quant_type flashllm-w6a16", "--quant-type is not supported"),
        ("--mode triton_int8weight triton_int4weight", "--mode is not supported"),
    ],
)
def test_refused(words, part):
    with pytest.raises(ConfigError, match=part):
        resolve(words.split(), {})


def test_every_meaning_is_a_setting_and_explained():
    text = lightllm_help()
    for name, values in MEANINGS.items():
        for word, (field, value) in values.items():
            assert field in fields()
            assert word in text
            part = getattr(resolve([f"--{name}", word], {})[0], fields()[field].part)
            assert getattr(part, field) == value
