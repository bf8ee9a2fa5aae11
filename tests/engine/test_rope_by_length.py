"""Models whose rotary frequencies follow the length of the text: nothing of a prompt is read before the rest of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lcbench.errors import ModelError
from lcbench.kv.cache import KVCache
from lcbench.methods.registry import resolve
from lcbench.models import adapter
from lcbench.models.rope_length import rope_follows_length
from tiny import VOCAB, loaded_tiny, save_tiny, tiny_model

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
    from lcbench.engine import reading

    cuts: list[tuple[int, ...]] = []
    prefill = reading.prefill

    def noted(*args: Any, **options: Any) -> Any:
        cuts.append(options["cuts"])
        return prefill(*args, **options)

    monkeypatch.setattr(reading, "prefill", noted)
    folder = save_tiny(tmp_path / "model", **({"rope_parameters": rope} if rope else {}))
    common = ["run", "--model", folder, "--task", TASK, "--method", "full"]
    done = cli(*common, "--out", "run")
    assert done.code == 0, done.err
    assert any(cuts) == (rope is None)  # the haystack is the same: its beginning would be shared
    chunked = cli(*common, "--out", "chunked", "--prefill-chunk", 16)
    assert chunked.code == (0 if rope is None else 2)
    if rope:
        assert "chooses its rotary frequencies by the length" in " ".join(chunked.err.split())


LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 24,
    "factor": 4.0,
    "short_factor": [1.0] * 16,
    "long_factor": [1.0 + i for i in range(16)],
}
DEFAULT = {"rope_type": "default", "rope_theta": 10000.0}
BY_LENGTH: dict[str, tuple[str, dict[str, Any]]] = {
    "dynamic": ("llama", {"rope_parameters": DYNAMIC, "window": 24}),
    "longrope": ("llama", {"rope_parameters": LONGROPE, "window": 96}),
    "one-a-layer-type": (
        "gemma3",
        {
            "rope_parameters": {"full_attention": DYNAMIC, "sliding_attention": DEFAULT},
            "layer_types": ["sliding_attention", "full_attention"],
            "window": 24,
        },
    ),
}


def made(kind: str, config: dict[str, Any]) -> Any:
    model = tiny_model(kind, layers=2, **config)
    adapter.install(model)
    return model


def answered(model: Any, texts: list[Tensor], prompts: list[int]) -> list[Tensor]:
    """Logits of each text's tokens from the end of its prompt on; prompts one by one, the rest in one batch."""
    caches = [KVCache.dense(2, expected=prompt) for prompt in prompts]
    rows = []
    for text, prompt, cache in zip(texts, prompts, caches, strict=True):
        rows.append([adapter.forward(model, text[None, :prompt], torch.arange(prompt)[None], [cache])[0, -1]])
    for step in range(len(texts[0]) - prompts[0]):
        ids = torch.stack([text[[prompt + step]] for text, prompt in zip(texts, prompts, strict=True)])
        positions = torch.tensor([[cache.seen] for cache in caches])
        for row, logits in zip(rows, adapter.forward(model, ids, positions, caches)[:, -1], strict=True):
            row.append(logits)
    return [torch.stack(row) for row in rows]


@pytest.mark.parametrize("name", BY_LENGTH)
def test_a_longer_text_leaves_no_trace(name: str) -> None:
    """One after the other, and decoding together: every text is answered as by a model that never saw another."""
    steps = 4
    prompts = [80, 40, 30, 12]  # the last within the trained window, the others beyond it
    texts = [torch.randint(0, VOCAB, (p + steps,), generator=torch.Generator().manual_seed(p)) for p in prompts]
    model = made(*BY_LENGTH[name])
    alone = [answered(made(*BY_LENGTH[name]), [text], [p])[0] for text, p in zip(texts, prompts, strict=True)]
    in_turn = [answered(model, [text], [p])[0] for text, p in zip(texts, prompts, strict=True)]
    for one, other in zip(alone, in_turn, strict=True):
        assert torch.equal(one, other)
    for one, other in zip(alone, answered(model, texts, prompts), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", BY_LENGTH)
def test_read_at_once_it_is_what_transformers_makes_of_it(name: str) -> None:
    kind, config = BY_LENGTH[name]
    ids = torch.randint(0, VOCAB, (1, 40), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        expected = tiny_model(kind, layers=2, **config)(input_ids=ids).logits[0]
    model = made(kind, config)
    answered(model, [torch.zeros(90, dtype=torch.int64)], [88])
    cache = KVCache.dense(2, expected=40)
    logits = adapter.forward(model, ids, torch.arange(40)[None], [cache], all_logits=True)[0]
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["infllm", "em-llm", "longcache", "selfextend@group=4"])
def test_methods_that_turn_cached_keys_refuse_them(name: str, tmp_path: Path) -> None:
    resolve(name).bind(loaded_tiny(head_dim=32).info, tmp_path)
    with pytest.raises(ModelError, match="could not move keys that are cached"):
        resolve(name).bind(loaded_tiny(head_dim=32, rope_parameters=DYNAMIC).info, tmp_path)
