"""The command line: precedence, types, LightLLM's flags, errors of one line, and answers without heavy imports."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
import tomllib
import types
from pathlib import Path

import pytest

from lightllm_mp.cli import main
from lightllm_mp.cli.flags import resolve
from lightllm_mp.cli.flags.fields import fields, parts
from lightllm_mp.cli.flags.help import field_docs, lightllm_help, serve_help
from lightllm_mp.cli.flags.lightllm import ACCEPTED, ALIASES, BY_VALUE, LATER, OTHERS
from lightllm_mp.config import Config, MultimodalConfig
from lightllm_mp.errors import ConfigError, ModelError
from tests.paths import ROOT

LAZYLLM = (
    "--model_dir /models/llama --tp 2 --max_total_token_num 64000 --eos_id 2 --port 30001 --host 0.0.0.0 "
    "--nccl_port 28765 --tokenizer_mode auto --running_max_req_size 256 --data_type float16 --max_req_total_len 64000 "
    "--max_req_input_len 4096 --long_truncation_mode head --trust_remote_code"
)
"""The line with which LazyLLM starts LightLLM."""


def config_of(*argv: str, **environ: str) -> Config:
    return resolve(argv, environ)[0]


def error_of(*argv: str, **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        resolve(argv, environ)
    assert "\n" not in caught.value.message
    return caught.value.message


def test_nothing_said_is_the_default() -> None:
    assert resolve([], {}) == (Config(), [])


def test_flag_before_environment_before_file(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('port = 1\ntp = 2\nmodel_name = "file"\n')
    config = config_of(
        "--config", str(file), "--port", "3", LIGHTLLM_MP_PORT="2", LIGHTLLM_MP_TP="4", LIGHTLLM_MP_HOST=""
    )
    assert (config.http.port, config.engine.tp, config.model.model_name) == (3, 4, "file")
    assert config.http.host == Config().http.host


def test_underscores_dashes_and_equals_signs() -> None:
    for words in (["--max_total_token_num", "77"], ["--max-total-token-num", "77"], ["--max_total_token_num=77"]):
        assert config_of(*words).engine.max_total_token_num == 77


def test_values_keep_their_underscores() -> None:
    assert config_of("--model_name", "my_model").model.model_name == "my_model"
    assert config_of("--model_dir=/a_b/c_d").model.model_dir == "/a_b/c_d"


@pytest.mark.parametrize("words", [["--eos_id", "2", "7"], ["--eos-id", "2,7"], ["--eos_id=2, 7"]])
def test_several_values(words: list[str]) -> None:
    assert config_of(*words).model.eos_id == (2, 7)


def test_score_tokens_are_two_words():
    assert config_of("--score-tokens", "yes", "21").model.score_tokens == ("yes", "21")


def test_words_of_lightllm_for_the_default() -> None:
    config = config_of("--eos_id", "auto", "--max_total_token_num", "None", "--data_type", "None")
    assert config == Config()
    assert config_of("--model_name", "none").model.model_name == "none"


def test_booleans() -> None:
    assert config_of("--disable_prompt_cache").engine.disable_prompt_cache
    assert not config_of("--disable-prompt-cache=false").engine.disable_prompt_cache
    assert config_of(LIGHTLLM_MP_DISABLE_PROMPT_CACHE="1").engine.disable_prompt_cache
    assert not config_of(
        "--disable-prompt-cache", "false", LIGHTLLM_MP_DISABLE_PROMPT_CACHE="1"
    ).engine.disable_prompt_cache


def test_files(tmp_path: Path) -> None:
    toml, as_json = tmp_path / "a.toml", tmp_path / "a.json"
    toml.write_text("eos_id = [1, 2]\n[engine]\ntp = 2\nmem-fraction = 0.5\n[http]\nheader_timeout = 5\n")
    as_json.write_text('{"eos_id": 3, "engine": {"tp": 2}}')
    config = config_of("--config", str(toml))
    assert (config.model.eos_id, config.engine.tp, config.engine.mem_fraction) == ((1, 2), 2, 0.5)
    assert config.http.header_timeout == 5.0
    assert config_of(LIGHTLLM_MP_CONFIG=str(as_json)).model.eos_id == (3,)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tp = 'two'", "tp: expected a whole number at least 1, got 'two'"),
        ("tp = '2'", "tp: expected a whole number"),
        ("prot = 1", "unknown key prot; did you mean port?"),
        ("= 1", "--config"),
        ("[engine]\nhots = 'x'", "unknown key hots; did you mean host?"),
        ("use_tgi_api = true", "TGI's answer format comes later"),
    ],
)
def test_wrong_files(tmp_path: Path, text: str, expected: str) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(text)
    message = error_of("--config", str(file))
    assert expected in message
    assert str(file) in message


def test_missing_and_deep_files(tmp_path: Path) -> None:
    assert "No such file" in error_of("--config", str(tmp_path / "none.toml"))
    deep = tmp_path / "deep.json"
    deep.write_text("[" * 100_000)
    assert str(deep) in error_of("--config", str(deep))
    deep.write_text("[]")
    assert "expected an object" in error_of("--config", str(deep))


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--port", "abc"], "--port: expected a whole number at least 0 and at most 65535, got 'abc'"),
        (["--port", "65536"], "at most 65535"),
        (["--port"], "--port: expected one argument"),
        (["--tp", "0"], "at least 1"),
        (["--tp", "3", "--nnodes", "2"], "--nnodes 2 must divide --tp 3"),
        (["--tp", "2", "--nnodes", "2", "--node-rank", "2"], "--node-rank 2: with --nnodes 2"),
        (["--nccl-port", "65535", "--tp", "2", "--nnodes", "2"], "--nccl-port 65535 leaves no ports"),
        (["--tp", "1.5"], "--tp: expected a whole number"),
        (["--mem-fraction", "nan"], "above 0"),
        (["--data-type", "int3"], "one of auto, float32"),
        (["--disable-prompt-cache", "perhaps"], "true or false"),
        (["--eos-id", "x"], "whole numbers"),
        (["--tp", "3", "--ep", "2"], "--ep 2 must divide --tp 3"),
        (["--score-tokens", "yes"], "takes two tokens, YES and NO, not 1"),
        (["--max_total_tokens_num", "5"], "unknown flag --max-total-tokens-num; did you mean --max-total-token-num?"),
        (["--port-number=5"], "unknown flag --port-number"),
        (["model"], "unexpected argument 'model'"),
        (["--max-req-input-len", "9", "--max-req-total-len", "9"], "must be below --max-req-total-len (9)"),
        (["--max-req-total-len", "9", "--max-total-token-num", "8"], "must be at most --max-total-token-num (8)"),
    ],
)
def test_mistakes(argv: list[str], expected: str) -> None:
    assert expected in error_of(*argv)


def test_mistakes_in_the_environment_name_the_variable() -> None:
    assert error_of(LIGHTLLM_MP_TP="many").startswith("LIGHTLLM_MP_TP: ")


def test_service_links_of_kubernetes_are_no_port() -> None:
    config, notes = resolve([], {"LIGHTLLM_MP_PORT": "tcp://10.0.0.1:8000", "LIGHTLLM_MP_SERVICE_HOST": "10.0.0.1"})
    assert config == Config()
    assert "Kubernetes" in notes[0]


def test_the_start_line_of_lazyllm() -> None:
    config, notes = resolve(LAZYLLM.split(), {})
    assert (config.engine.tp, config.engine.max_total_token_num, config.engine.max_req_input_len) == (2, 64000, 4096)
    assert (config.http.host, config.http.port) == ("0.0.0.0", 30001)
    assert (config.model.eos_id, config.model.data_type) == ((2,), "float16")
    assert config.model.trust_remote_code
    assert notes == []
    assert config.engine.long_truncation_mode == "head"


def test_flags_of_2024_and_2026() -> None:
    old = "--mode --load_way HF --splitfuse_mode --splitfuse_block_size 256 --enable_multimodal --cache_capacity 200"
    new = (
        "--disable_dynamic_prompt_cache --quant_type none --run_mode normal --mem_fraction 0.8 --graph_max_batch_size 1"
    )
    old += " --mode triton_gqa_attention triton_flashdecoding --disable_log_stats --prompt_cache_strs"
    images = MultimodalConfig(enable_multimodal=True, cache_capacity=200)
    assert config_of(*old.split(), "a b", "c") == Config(multimodal=images)
    config = config_of(*new.split())
    assert config.engine.disable_prompt_cache
    assert config.engine.mem_fraction == 0.8


def test_images() -> None:
    words = (
        "--enable_multimodal --embed_cache_storage_size 4 --visual_gpu_ids 1 2 --allow-media-host a.example 10.0.0.1"
    )
    images = config_of(*words.split()).multimodal
    assert (images.enable_multimodal, images.cache_size_gb, images.visual_gpu_ids) == (True, 4.0, (1, 2))
    assert images.allow_media_host == ("a.example", "10.0.0.1")
    with pytest.raises(ConfigError, match=r"--cache-capacity: expected a whole number at least 1, got '0'"):
        config_of("--cache-capacity", "0")


@pytest.mark.parametrize(
    "words", ["--mode triton_int8kv", "--mode triton_gqa_attention ppl_int8kv", "--llm_kv_type int8kv"]
)
def test_int8_kv_under_its_old_names(words: str) -> None:
    assert config_of(*words.split()).engine.kv_cache_dtype == "int8"
    assert config_of("--kv-cache-dtype", "fp8").engine.kv_cache_dtype == "fp8"


@pytest.mark.parametrize(
    "words",
    ["--mode lmdeploy_int4weight", "--mode triton_flashdecoding triton_int4weight", "--run_mode prefill", "--dp 2"]
    + [f"--{name}" for names in LATER.values() for name in names.split()],
)
def test_what_would_change_answers_is_refused_with_its_reason(words: str) -> None:
    flag = words.split()[0]
    assert f"{flag.replace('_', '-')} is not supported: {OTHERS[flag[2:]].why}" == error_of(*words.split())


def test_every_accepted_flag_leaves_a_note() -> None:
    names = [name for group in ACCEPTED.values() for name in group.split()]
    config, notes = resolve([word for name in names for word in (f"--{name}", "1")], {})
    assert config == Config()
    assert len(notes) == len(names) == len(set(names))


def test_the_table_is_consistent() -> None:
    assert not set(OTHERS) & set(fields())
    assert not set(ALIASES) & set(fields())
    assert set(ALIASES.values()) <= set(fields())
    assert sum(len(names.split()) for group in (ACCEPTED, LATER) for names in group.values()) + len(BY_VALUE) == len(
        OTHERS
    )
    assert all(name in lightllm_help() for name in (*OTHERS, *ALIASES))


def test_every_field_has_help_and_one_name() -> None:
    assert set(field_docs()) == set(fields())
    assert len(fields()) == sum(len(part.__struct_fields__) for part in parts().values())
    text = serve_help()
    assert all(field.flag + " " in text or field.flag + "\n" in text for field in fields().values())
    assert "Port to listen on" in text
    assert "[8000]" in text


def fake_server(monkeypatch: pytest.MonkeyPatch, main: object) -> None:
    module = types.ModuleType("lightllm_mp.cli.serve")
    module.main = main  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lightllm_mp.cli.serve", module)


def test_serve_hands_the_config_over_and_returns_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Config] = []
    fake_server(monkeypatch, lambda config: seen.append(config) or 70)
    assert main.main(["serve", "--port", "0", "--zmq_mode", "ipc"]) == 70
    assert seen == [config_of("--port", "0")]
    assert "note: --zmq-mode has no effect" in capsys.readouterr().err


def test_exit_codes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(config: Config) -> int:
        raise ModelError("no such model")

    fake_server(monkeypatch, fail)
    assert main.main(["serve"]) == 1
    assert capsys.readouterr().err == "lightllm-mp: error: no such model\n"
    assert main.main(["serve", "--tp", "x"]) == 2
    assert main.main(["serv"]) == 2
    assert "did you mean serve?" in capsys.readouterr().err
    assert main.main(["--help"]) == 0
    assert "serve" in capsys.readouterr().out


def test_without_a_command_it_says_what_one_can_do_in_five_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main([]) == 2
    said = capsys.readouterr()
    lines = said.err.splitlines()
    assert (said.out, len(lines)) == ("", 5)
    assert all(line.startswith("lightllm-mp ") and len(line) < 120 for line in lines)
    named = {line.split()[1] for line in lines}
    assert named <= {*main.COMMANDS, "--help"}
    assert {"serve", "chat", "doctor"} <= named


def test_the_help_names_every_command() -> None:
    assert re.findall(r"^  (\w+)  ", main.USAGE, re.MULTILINE) == list(main.COMMANDS)


def test_one_version(capsys: pytest.CaptureFixture[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert main.main(["--version"]) == 0
    assert capsys.readouterr().out == f"lightllm-mp {project['version']}\n"


QUICK = """
import sys
from lightllm_mp.cli.main import main
try:
    code = main(sys.argv[1:])
except SystemExit as error:
    code = error.code
heavy = {"torch", "aiohttp", "numpy", "transformers"} & set(sys.modules)
print("heavy:", *heavy)
sys.exit(code)
"""


def children_seconds() -> float:
    """CPU time of processes that have ended: a busy machine does not count."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize(
    "words",
    ["--help", "--version"]
    + [f"{name} --help" for name in main.COMMANDS]
    + ["serve --help-lightllm", "completion bash"],
)
def test_help_is_quick_and_imports_nothing_heavy(words: str) -> None:
    before = children_seconds()
    done = subprocess.run(
        [sys.executable, "-c", QUICK, *words.split()], capture_output=True, text=True, timeout=60, check=True
    )
    assert children_seconds() - before < 5
    heavy = done.stdout.split("heavy:")[1].split()
    assert heavy == []
    assert len(done.stdout) > 20
