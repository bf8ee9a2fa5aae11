"""Shortened texts in the data folder: another process that makes the same one, and entries that are damaged."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from lcbench.config.spec import ModelSpec
from lcbench.engine.rewriting import FOLDER, Rewriters, Rewritten
from lcbench.methods.base import PromptTransform, Traits
from lcbench.methods.rewriting import Helper, PromptText
from tiny import save_tiny

PROMPT = PromptText("Read: ka lo mi ren ta. Ask?", (6, 22), "Ask?")


@dataclass(frozen=True)
class Halves(PromptTransform):
    """Keeps the first half; runs `meanwhile` while it does so."""

    name: ClassVar[str] = "halves"
    traits: ClassVar[Traits] = Traits(family="prompt", prefill="own")
    calls: ClassVar[list[str]] = []
    meanwhile: Any = None

    @property
    def helper(self) -> Helper:
        return Helper("causal", "")

    @property
    def depends_on(self) -> dict[str, str]:
        return {}

    def rewrite(self, prompt: PromptText, helper: Any) -> str:
        self.calls.append(prompt.passage)
        if self.meanwhile is not None:
            self.meanwhile()
        return prompt.passage[: len(prompt.passage) // 2]


@pytest.fixture
def model(tmp_path: Path) -> ModelSpec:
    Halves.calls.clear()
    return ModelSpec(name=str(save_tiny(tmp_path / "model", layers=1)), device="cpu")


def entries(home: Path) -> list[Path]:
    return [path for path in (home / FOLDER).rglob("*") if path.is_file()]


def test_two_that_make_the_same_text_at_once_leave_one_entry(model: ModelSpec, tmp_path: Path) -> None:
    home, other = tmp_path / "home", list[Rewritten]()

    def meanwhile() -> None:
        other.append(Rewriters(model, home).rewrite(Halves(), PROMPT))

    mine = Rewriters(model, home).rewrite(Halves(meanwhile), PROMPT)
    assert mine.text == other[0].text == "Read: ka lo mi Ask?"
    assert not mine.kept
    assert len(Halves.calls) == 2  # neither waited for the other
    (entry,) = entries(home)
    assert entry.suffix == ".json"
    again = Rewriters(model, home).rewrite(Halves(), PROMPT)
    assert (again.text, again.kept) == (mine.text, True)
    assert len(Halves.calls) == 2


@pytest.mark.parametrize("content", ["", "{", '{"text": 3, "seconds": 0.1}', '{"text": "x"}', "[]"])
def test_a_torn_entry_is_made_again(model: ModelSpec, tmp_path: Path, content: str) -> None:
    home = tmp_path / "home"
    first = Rewriters(model, home).rewrite(Halves(), PROMPT)
    (entry,) = entries(home)
    whole = entry.read_text()
    entry.write_text(content)
    second = Rewriters(model, home).rewrite(Halves(), PROMPT)
    assert (second.text, second.kept) == (first.text, False)
    assert entry.read_text().partition('"seconds"')[0] == whole.partition('"seconds"')[0]
    assert Rewriters(model, home).rewrite(Halves(), PROMPT).kept
