"""docs/cli.md is what the Typer app says; the site's navigation holds every page; nothing on it is fetched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from lcbench.cli import app, documentation

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_of_commands_is_up_to_date() -> None:
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == documentation.render(), (
        "docs/cli.md is out of date: make docs"
    )


def test_every_command_and_option_is_there() -> None:
    import typer

    text = documentation.render()
    command: Any = typer.main.get_command(app)
    for name, one in command.commands.items():
        section = text.split(f"\n## lcbench {name}\n")[1].split("\n## ")[0]
        for parameter in one.params:
            for option in parameter.opts if parameter.param_type_name == "option" else ():
                assert option in section, f"{option} of {name}"


def test_text_is_no_markup() -> None:
    assert documentation._cell("a|b <c> *d* `*e*`\nf") == r"a\|b &lt;c> \*d\* `*e*` f"


def test_the_navigation_holds_every_page() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))

    def files(nav: Any) -> set[str]:
        if isinstance(nav, str):
            return {nav}
        return set().union(*(files(one) for one in (nav.values() if isinstance(nav, dict) else nav)))

    pages = {page.name for page in (ROOT / "docs").glob("*.md")}
    listed = files(site["nav"])
    assert pages - listed == set(), "add these pages to nav in mkdocs.yml"
    assert [name for name in listed if not (ROOT / "docs" / name).is_file()] == []
    assert site["theme"]["font"] is False
    assert site["strict"] is True
