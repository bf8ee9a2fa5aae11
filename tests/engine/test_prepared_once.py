"""Methods with windows of their own share the prompts that no window has a part in."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from made_up import Words

from lcbench.config.spec import ModelSpec, RunSpec
from lcbench.engine.prepare import prepare
from lcbench.methods.registry import resolve
from lcbench.tasks.base import Loaded, Row
from tiny import loaded_tiny


@dataclass(frozen=True)
class Long(Words):
    """A text of 900 letters, and one of 100."""

    name = "long"

    def load(self, home: Path, limit: int | None = None) -> Loaded:
        return Loaded([Row(f"r{n}", {"text": "word " * (n // 5)}, ("a",), length=n) for n in (900, 100)])


class Counting:
    """A tokenizer that counts the texts of more than 800 letters it is given."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.long = inner, 0

    def __call__(self, text: str, **options: Any) -> Any:
        self.long += len(text) > 800
        return self.inner(text, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


@pytest.mark.parametrize("truncation", ["middle", "exact-ids"])
@pytest.mark.parametrize(("limit", "same"), [(300, True), (None, False), (3000, False)])
def test_a_cut_that_the_user_asked_for_is_made_once(
    tmp_path: Path, truncation: str, limit: int | None, same: bool
) -> None:
    loaded = loaded_tiny()
    info = replace(loaded.info, window=600)
    spec = RunSpec(model=ModelSpec(name="tiny"), max_input_tokens=limit, truncation=truncation)
    names = ("full", "selfextend@group=4,neighbours=200", "lm-infinite")

    def sets_of(*chosen: str) -> tuple[list[Any], int]:
        counting = Counting(loaded.tokenizer)
        methods = [resolve(name).bind(info, tmp_path) for name in chosen]
        made = prepare(spec, info, counting, methods, [(Long(), Long().load(tmp_path))], tmp_path)
        return list(made), counting.long

    together, calls = sets_of(*names)
    assert len(together) == 3
    alone = [sets_of(name) for name in names]
    for one, (own, _) in zip(together, alone, strict=True):
        assert [p.ids for p in one.prompts] == [p.ids for p in own[0].prompts]  # and it is the same prompt
        assert [p.truncated_from for p in one.prompts] == [p.truncated_from for p in own[0].prompts]
    first = alone[0][1]
    assert (calls == first) == same
    lengths = {len(one.prompts[0].ids) for one in together}
    assert (len(lengths) == 1) == same
