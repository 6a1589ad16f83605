"""The table of figures with targets: a run's printed figures count, however it ended; and the least cost of steps."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from lightllm_mp.cli.flags import resolve
from lightllm_mp.model_files.model_source import ModelSource
from tests.paths import GOLDENS, ROOT
from tools.bench import model, start_time, targets
from tools.bench.targets import Cell, Run, execute, figures_in, markdown, write
from tools.harness.ceilings import Ceilings
from tools.harness.kernel_times import CLASSES, OTHERS, Kernel, Recorder, class_of
from tools.harness.shapes import CONFIGS, write_config
from tools.harness.step_limits import MXFP4, StepLimits, _pairs, limits_of

AT = Ceilings(bandwidth=4e12, product=800e12, product_fp8=1500e12)
LINE = '{"figure": "speed", "value": 3.0, "unit": "ms", "limit": 1.5, "share": 0.5}'


def test_what_a_hanging_tool_printed_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hangs.py").write_text(f"import time\nprint('{LINE}')\nprint('half a line {{')\ntime.sleep(99)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(targets, "PAUSE", 0.0)
    log = tmp_path / "x.log"
    result = execute(Run("slow", ["hangs"], [Cell("speed", "Speed", 2.0, 4.0), Cell("gone", "Gone", 1.0)]), 2.0, log)
    assert result.figures == [json.loads(LINE)]
    assert "ended after 2 s" in result.ended
    write(tmp_path / "x", [result], ["later"])
    table = (tmp_path / "x.md").read_text()
    assert "| Speed | 3 | ms | 50% | 4 |  | 2 | **no** |" in table
    assert "| Gone | - |" in table
    assert "later: left out" in table
    assert json.loads((tmp_path / "x.json").read_text())[0]["run"] == "slow"
    assert "half a line" in log.read_text()


def test_targets_are_met_or_not() -> None:
    lower, higher = Cell("", "", 2.0), Cell("", "", 2.0, more=True)
    assert (lower.met(1.0), lower.met(3.0), higher.met(1.0), higher.met(3.0)) == (True, False, False, True)
    assert Cell("", "").met(1.0) is None
    assert figures_in('{"figure": "cut of\n' + LINE) == [json.loads(LINE)]
    assert markdown([], ["a"]).endswith("- a: left out, there was no time\n")


class Built(Exception):
    """The point of a run at which the test ends it."""


def built(path: Path, arguments: Sequence[str] = (), figures: object = None) -> None:
    resolve(["--model-dir", str(path), *arguments], {})
    raise Built


def test_runs_name_tools_and_flags_that_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table must not fail for a typing error once it has a GPU."""
    monkeypatch.setattr(model, "ceilings", lambda: AT)
    monkeypatch.setattr(model, "built", built)
    monkeypatch.setattr(start_time, "write_checkpoint", built)
    for table in (targets.DENSE, targets.EXPERTS):
        assert len({run.name for run in table}) == len(table)
        assert sum(run.most for run in table) < 1000
        for run in table:
            tool, *flags = run.command
            main = {"tools.bench.model": model.main, "tools.bench.start_time": start_time.main}[tool]
            with pytest.raises(Built):
                main(flags)


def limits(shape: str, folder: Path, **more: object) -> StepLimits:
    return limits_of(ModelSource(write_config(shape, folder)), **more)  # type: ignore[arg-type]


def test_limits_of_real_shapes(tmp_path: Path) -> None:
    """By hand: 6.6 and 8.0 billion weights; a token's keys and values 512 KiB and 128 KiB."""
    dense, wide = limits("llama2-7b", tmp_path), limits("llama3-8b", tmp_path)
    assert dense.projections.elements + dense.head.elements == pytest.approx(6.607e9, rel=1e-3)
    parts = dense.parts([1] * 64, [1088] * 64)
    assert parts["attention"].read == 64 * 1088 * (512 << 10)
    assert parts["projections"].read + parts["head"].read == pytest.approx(13.21e9, rel=1e-3)
    assert wide.parts([1], [1000])["attention"].read == 1000 * (128 << 10)
    assert limits("llama3-8b", tmp_path, kv_itemsize=1).parts([1], [1])["attention"].read == 32 * 2 * 8 * (128 + 2)
    whole = wide.parts([2048], [2048])["attention"].done
    assert whole == pytest.approx(4 * 32 * 4096 * 2048 * 2049 / 2)
    eight = limits("llama3-8b", tmp_path, quantization="fp8")
    assert eight.projections.nbytes == pytest.approx(wide.projections.nbytes / 2, rel=1e-3)
    assert eight.head == wide.head
    assert eight.seconds(AT, [8192], [8192]) < 0.6 * wide.seconds(AT, [8192], [8192])


def test_limits_of_experts_windows_and_states(tmp_path: Path) -> None:
    oss = limits("gpt-oss-20b", tmp_path)
    assert oss.experts.elements == 24 * 32 * 3 * 2880 * 2880
    assert oss.experts.nbytes == oss.experts.elements * MXFP4
    one = oss.parts([1], [1024])
    assert one["experts"].read == pytest.approx(oss.experts.nbytes * 4 / 32)
    assert one["attention"].read == (12 * 128 + 12 * 1024) * 2 * 2 * 8 * 64
    assert oss.parts([4096], [4096])["experts"].read == pytest.approx(oss.experts.nbytes)
    blocks = limits("qwen3-30b-a3b-fp8", tmp_path)
    assert blocks.experts.nbytes == pytest.approx(blocks.experts.elements * (1 + 4 / 128))
    hybrid = limits("qwen3.5-35b-a3b", tmp_path)
    assert hybrid.parts([1] * 3, [9] * 3)["states"].read == pytest.approx(
        2 * 3 * 30 * (4 * 32 * 128 * 128 + 2 * 3 * 8192)
    )
    everything = hybrid.projections.elements + hybrid.experts.elements + hybrid.head.elements
    assert everything == pytest.approx(34.1e9, rel=0.03)


@pytest.mark.parametrize(("new", "context", "window"), [(3, 10, 4), (6, 6, 4), (5, 7, 4), (1, 3, 4), (4, 9, 0)])
def test_pairs_that_a_window_leaves(new: int, context: int, window: int) -> None:
    seen = [position + 1 for position in range(context - new, context)]
    assert _pairs(new, context, window) == sum(min(one, window) if window else one for one in seen)


def test_classes_of_kernels() -> None:
    assert class_of("_part_kernel") == "decode attention"
    assert class_of("nvjet_tst_64x64_64x16_4x2_h_bz_TNT") == "products"
    assert class_of("void at::native::elementwise_kernel") == OTHERS
    assert len({kind for kind, _ in CLASSES}) == len(CLASSES)


def test_every_kernel_of_the_package_has_a_class() -> None:
    """A profile must not hide it under the others."""
    found = set()
    for file in (ROOT / "lightllm_mp").rglob("*.py"):
        found |= set(re.findall(r"@kernel\([^\n]*\)\ndef (\w+)\(", file.read_text("utf-8")))
    assert len(found) > 30
    assert {name for name in found if class_of(name) == OTHERS} == set()


def test_idle_time_of_overlapping_kernels() -> None:
    recorder = Recorder(0, 1)
    recorder.kernels = [Kernel("a", 0.0, 2.0), Kernel("b", 1.0, 1.5), Kernel("c", 3.0, 4.0)]
    assert recorder._idle() == 1.0


def test_shapes_are_configurations() -> None:
    assert set(CONFIGS) >= {"llama2-7b", "llama3-8b", "qwen3-30b-a3b-fp8", "qwen3.5-35b-a3b", "gpt-oss-20b"}
    assert (GOLDENS / "gpt_oss_mxfp4").is_dir()
