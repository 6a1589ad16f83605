"""docs/models.md says what the registry says."""

from __future__ import annotations

import sys

from tests.paths import ROOT


def test_the_table_is_the_registry(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import models_table

    page = models_table.PAGE.read_text()
    between = page.split(models_table.BEGIN)[1].split(models_table.END)[0]
    assert between.strip() == models_table.table(), "run scripts/models_table.py --write"
    sys.modules.pop("models_table")


def test_every_family_is_verified(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import models_table

    folders = models_table.goldens()
    unverified = [f.name for f in models_table.FAMILIES if not folders[f.name] and not models_table.compared(f)]
    assert unverified == ["yi"]  # the first releases of Yi: Llama under other norm names
    sys.modules.pop("models_table")
