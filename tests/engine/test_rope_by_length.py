"""Models whose rotary frequencies follow the length of the text: nothing of a prompt is read before the rest of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lcbench.models.info import rope_follows_length
from tiny import loaded_tiny, save_tiny

DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
TASK = "passkey@lengths=30/60,depths=2,repeats=1,digits=3,max_new_tokens=3"


def test_which_configs_do() -> None:
    assert not loaded_tiny().info.rope_follows_length
    assert loaded_tiny(rope_parameters=DYNAMIC).info.rope_follows_length
    for rope, follows in (
        ({"rope_type": "llama3"}, False),
        ({"rope_type": "yarn"}, False),
        ({"type": "longrope"}, True),
        ({"full_attention": {"rope_type": "dynamic"}, "sliding_attention": {"rope_type": "default"}}, True),
        (None, False),
    ):
        assert rope_follows_length(SimpleNamespace(rope_parameters=rope)) == follows


@pytest.mark.parametrize("rope", [None, DYNAMIC])
def test_they_are_not_read_in_pieces(
    cli: Callable[..., Any], tmp_path: Path, rope: dict[str, Any] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lcbench.engine import answer

    cuts: list[tuple[int, ...]] = []
    prefill = answer.prefill

    def noted(*args: Any, **options: Any) -> Any:
        cuts.append(options["cuts"])
        return prefill(*args, **options)

    monkeypatch.setattr(answer, "prefill", noted)
    folder = save_tiny(tmp_path / "model", **({"rope_parameters": rope} if rope else {}))
    common = ["run", "--model", folder, "--task", TASK, "--method", "full"]
    done = cli(*common, "--out", "run")
    assert done.code == 0, done.err
    assert any(cuts) == (rope is None)  # the haystack is the same: its beginning would be shared
    chunked = cli(*common, "--out", "chunked", "--prefill-chunk", 16)
    assert chunked.code == (0 if rope is None else 2)
    if rope:
        assert "chooses its rotary frequencies by the length" in " ".join(chunked.err.split())
