"""Generated parts of pages agree with the program."""

from __future__ import annotations

import pytest

from tools import architecture_pictures, configuration_page, models_table, python_page


def test_the_table_is_the_registry() -> None:
    page = models_table.PAGE.read_text()
    between = page.split(models_table.BEGIN)[1].split(models_table.END)[0]
    assert between.strip() == models_table.table(), "run python -m tools.models_table --write"


def test_every_family_is_verified() -> None:
    folders = models_table.goldens()
    unverified = [f.name for f in models_table.FAMILIES if not folders[f.name] and not models_table.compared(f)]
    assert unverified == ["yi"]  # the first releases of Yi: Llama under other norm names


@pytest.mark.parametrize("name", architecture_pictures.PICTURES)
def test_pictures_are_the_program(name: str) -> None:
    drawn = architecture_pictures.PICTURES[name]()
    assert architecture_pictures.written(name) == drawn, "run python -m tools.architecture_pictures --write"


@pytest.mark.parametrize("page", configuration_page.TABLES)
def test_the_tables_are_the_flags(page: str) -> None:
    tables = configuration_page.TABLES[page]()
    assert configuration_page.written(page) == tables, "run python -m tools.configuration_page --write"


def test_the_python_reference_is_the_package() -> None:
    assert python_page.written() == python_page.tables(), "run python -m tools.python_page --write"
    import lightllm_mp

    public = {*python_page.CLASSES, *python_page.FUNCTIONS, "Config"}
    assert set(lightllm_mp.__all__) <= public
