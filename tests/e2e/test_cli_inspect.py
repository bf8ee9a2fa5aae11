"""``lcbench inspect`` from outside: kept positions, logits and errors against unmodified transformers models."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM

from tiny import save_tiny

LAYERS, HEADS, KV_HEADS, WIDTH = 4, 8, 2, 32
LENGTH, STEPS = 160, 12
Cli = Callable[..., Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without a tokenizer."""
    folder = save_tiny(tmp_path_factory.mktemp("model") / "bare")
    for file in [*folder.glob("tokenizer*"), *folder.glob("special_tokens*"), *folder.glob("chat_template*")]:
        file.unlink()
    return folder


@pytest.fixture(scope="module")
def eager(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def ids() -> list[int]:
    """No token comes twice: its keys would have equal norms in the first layer, and rounding alone would choose."""
    return torch.randperm(256, generator=torch.Generator().manual_seed(5))[: LENGTH + STEPS].tolist()


@pytest.fixture(scope="module")
def seen(eager: Any, ids: list[int]) -> Any:
    """What the unmodified model computes of the prompt: attentions, keys and values."""
    with torch.no_grad():
        return eager(torch.tensor([ids[:LENGTH]]), output_attentions=True, use_cache=True)


def keys_and_values(seen: Any) -> list[tuple[Tensor, Tensor]]:
    return [(layer.keys[0], layer.values[0]) for layer in seen.past_key_values.layers]


def inspected(cli: Cli, folder: Path, ids: Sequence[int], method: str, *more: object) -> dict[str, Any]:
    Path("ids.json").write_text(json.dumps(list(ids[:LENGTH])))
    Path("force.json").write_text(json.dumps(list(ids[LENGTH:])))
    done = cli("inspect", "--model", folder, "--method", method, "--token-ids", "ids.json", "--json", *more)
    assert done.code == 0, done.err
    return json.loads(done.out)


def masked_logits(eager: Any, ids: list[int], open_to: Callable[[int, int, int], set[int]]) -> Tensor:
    """Logits ``[STEPS, vocab]`` at the forced tokens of the plain model, whole text at once.

    Args:
        open_to: (layer, KV head, position of a forced token) to the positions it may see, its own if so.
    """
    total, hooks = len(ids), []
    for number, layer in enumerate(eager.model.layers):
        mask = torch.full((1, HEADS, total, total), float("-inf")).triu(1)
        for head in range(KV_HEADS):
            group = slice(head * HEADS // KV_HEADS, (head + 1) * HEADS // KV_HEADS)
            for at in range(LENGTH, total):
                shut = sorted(set(range(at + 1)) - open_to(number, head, at))
                mask[0, group, at, shut] = float("-inf")

        def replace(module: Any, args: Any, kwargs: Any, mask: Tensor = mask) -> Any:
            return args, {**kwargs, "attention_mask": mask}

        hooks.append(layer.self_attn.register_forward_pre_hook(replace, with_kwargs=True))
    try:
        with torch.no_grad():
            return eager(torch.tensor([ids])).logits[0, LENGTH:]
    finally:
        for hook in hooks:
            hook.remove()


def highest(scores: Tensor, count: int) -> list[list[int]]:
    return [sorted(sorted(range(len(row)), key=lambda p: (-row[p], p))[:count]) for row in scores.tolist()]


def snapkv_kept(seen: Any, keep: int, window: int) -> list[list[list[int]]]:
    found = []
    for weights in seen.attentions:
        votes = weights[0, :, -window:, :-window].sum(dim=1)  # [H, L - w]
        votes = votes.view(KV_HEADS, -1, LENGTH - window).mean(dim=1)
        votes = F.max_pool1d(votes[:, None], 7, stride=1, padding=3)[:, 0]
        last = list(range(LENGTH - window, LENGTH))
        found.append([[*head, *last] for head in highest(votes, keep - window)])
    return found


def knorm_kept(seen: Any, keep: int) -> list[list[list[int]]]:
    return [highest(-key.double().norm(dim=-1), keep) for key, _ in keys_and_values(seen)]


@pytest.mark.parametrize(
    "method", ["snapkv@budget=40,window=16", "knorm@budget=40", "streamingllm@budget=40,roll=false"]
)
def test_kept_positions_and_logits_are_those_of_the_plain_model(
    cli: Cli, folder: Path, eager: Any, seen: Any, ids: list[int], method: str
) -> None:
    kept = {
        "snapkv": lambda: snapkv_kept(seen, 40, 16),
        "knorm": lambda: knorm_kept(seen, 40),
        "streamingllm": lambda: [[[*range(4), *range(LENGTH - 36, LENGTH)]] * KV_HEADS] * LAYERS,
    }[method.partition("@")[0]]()
    data = inspected(cli, folder, ids, method, "--logits", STEPS, "--force", "force.json")
    assert [layer["kept"] for layer in data["layers"]] == kept
    assert data["forced"] == ids[LENGTH:]
    assert data["logits_positions"] == list(range(LENGTH, LENGTH + STEPS))
    expected = masked_logits(eager, ids, lambda layer, head, at: {*kept[layer][head], *range(LENGTH, at + 1)})
    logits = torch.tensor(data["logits"])
    assert logits.shape == (STEPS, 260)
    assert (logits - expected).abs().max() < 1e-4
    full = masked_logits(eager, ids, lambda layer, head, at: set(range(at + 1)))
    assert (full - expected).abs().max() > 1e-2  # the method bites
    entry = 2 * WIDTH * 4
    assert [layer["kv_bytes"] for layer in data["layers"]] == [KV_HEADS * entry * 40] * LAYERS
    assert data["kv_bytes"] == LAYERS * KV_HEADS * entry * 40
    assert data["kv_bytes_full"] == LAYERS * KV_HEADS * entry * LENGTH


def test_a_rolling_window_rolls_in_the_steps(cli: Cli, folder: Path, eager: Any, ids: list[int]) -> None:
    data = inspected(cli, folder, ids, "streamingllm@budget=40", "--logits", STEPS, "--force", "force.json")
    expected = masked_logits(eager, ids, lambda layer, head, at: {*range(4), *range(at - 35, at + 1)})
    assert (torch.tensor(data["logits"]) - expected).abs().max() < 1e-4


def test_the_json_has_exactly_the_promised_keys(cli: Cli, folder: Path, ids: list[int]) -> None:
    data = inspected(cli, folder, ids, "full")
    assert list(data) == ["prompt_tokens", "layers", "kv_bytes", "kv_bytes_full"]
    assert data["prompt_tokens"] == LENGTH
    assert all(list(layer) == ["kept", "kv_bytes"] for layer in data["layers"])
    assert [layer["kept"] for layer in data["layers"]] == [[list(range(LENGTH))] * KV_HEADS] * LAYERS
    assert data["kv_bytes"] == data["kv_bytes_full"] == sum(layer["kv_bytes"] for layer in data["layers"])


def test_without_forced_tokens_the_methods_own_greedy_ones_are_fed(
    cli: Cli, folder: Path, eager: Any, ids: list[int]
) -> None:
    data = inspected(cli, folder, ids, "full", "--logits", "5")
    text = ids[:LENGTH]
    with torch.no_grad():
        for token, row in zip(data["forced"], data["logits"], strict=True):
            assert int(eager(torch.tensor([text])).logits[0, -1].argmax()) == token
            text = [*text, token]
            assert (eager(torch.tensor([text])).logits[0, -1] - torch.tensor(row)).abs().max() < 1e-4


def test_heads_of_different_lengths(cli: Cli, folder: Path, seen: Any, ids: list[int]) -> None:
    data = inspected(cli, folder, ids, "adakv@budget=40,window=16")
    lengths = [[len(head) for head in layer["kept"]] for layer in data["layers"]]
    assert any(a != b for a, b in lengths)
    assert all(min(of_layer) >= 16 for of_layer in lengths)  # the window
    assert [layer["kv_bytes"] for layer in data["layers"]] == [sum(one) * 2 * WIDTH * 4 for one in lengths]


def groups_restored(x: Tensor, levels: int) -> Tensor:
    """Groups of 32 along the last axis, scale and minimum rounded to fp16."""
    grouped = x.reshape(*x.shape[:-1], -1, 32)
    low, high = grouped.amin(-1, keepdim=True).half().float(), grouped.amax(-1, keepdim=True)
    scale = ((high - low) / levels).half().float()
    return (((grouped - low) / scale).clamp(0, levels).round() * scale + low).reshape(x.shape)


def test_a_quantizers_errors_are_those_of_its_codes(cli: Cli, folder: Path, seen: Any, ids: list[int]) -> None:
    data = inspected(cli, folder, ids, "kivi@bits=2,residual_length=32", "--details")
    for layer, (key, value) in zip(data["layers"], keys_and_values(seen), strict=True):
        keys = groups_restored(key.transpose(1, 2), 3).transpose(1, 2)  # 160 = 5 * 32: no key is left exact
        values = torch.cat([groups_restored(value[:, :-32], 3), value[:, -32:]], dim=1)
        for name, made, exact in (("keys", keys, key), ("values", values, value)):
            expected = (made - exact).norm(dim=(1, 2)) / exact.norm(dim=(1, 2))
            assert layer["errors"][name] == pytest.approx(expected.tolist(), rel=2e-3)
            assert min(layer["errors"][name]) > 0.05


@pytest.mark.parametrize(
    "method", ["flexgen-longctx", "flexgen@group_size=32", "knorm@budget=40+kivi@residual_length=32"]
)
def test_other_quantizers_tell_errors_too(cli: Cli, folder: Path, ids: list[int], method: str) -> None:
    data = inspected(cli, folder, ids, method, "--details")
    for layer in data["layers"]:
        for values in layer["errors"].values():
            assert len(values) == KV_HEADS
            assert all(0 < value < 1 for value in values)


def test_what_was_merged_into_what(cli: Cli, folder: Path, ids: list[int]) -> None:
    data = inspected(cli, folder, ids, "kvmerger@budget=0.5,recent=8", "--details", "--steps", "0")
    for layer in data["layers"]:
        for kept, merges in zip(layer["kept"], layer["merged"], strict=True):
            gone = [p for merge in merges for p in merge["from"]]
            assert sorted(gone) == sorted(set(range(LENGTH)) - set(kept))
            for merge in merges:
                (pivot,) = merge["into"]
                assert pivot in kept
                together = sorted([pivot, *merge["from"]])
                assert together == list(range(together[0], together[-1] + 1))


def test_ems_merges_into_what_it_kept(cli: Cli, folder: Path, ids: list[int]) -> None:
    data = inspected(cli, folder, ids, "ems-approx@budget=40,window=16,tau=0.2", "--details", "--steps", "0")
    merges = [(head, one) for layer in data["layers"] for head in zip(layer["kept"], layer["merged"], strict=True)
              for one in head[1]]  # fmt: skip
    assert merges
    for (kept, _), one in merges:
        assert set(one["into"]) <= set(kept)
        assert not set(one["from"]) & set(kept)


def test_merges_of_the_steps(cli: Cli, folder: Path, ids: list[int]) -> None:
    data = inspected(cli, folder, ids, "cam@start=4,recent=20,chance=1,targets=1", "--details", "--steps", "3")
    # of the entries that the next step sees the oldest recent one leaves at its end: 142, then 143 …
    moved = [{"from": [LENGTH + step + 2 - 20], "into": [LENGTH + step + 3 - 20]} for step in range(3)]
    assert [layer["merged"] for layer in data["layers"]] == [[moved] * KV_HEADS] * LAYERS


def test_what_a_step_fetched_explains_its_logits(cli: Cli, folder: Path, eager: Any, ids: list[int]) -> None:
    method = "quest@budget=32,page_size=8,dense_layers=1"
    data = inspected(cli, folder, ids, method, "--details", "--logits", STEPS, "--force", "force.json")
    fetched = [layer["fetched"] for layer in data["layers"]]
    assert fetched[0] == [None] * STEPS  # this layer reads everything
    assert all(len(head) <= 32 for layer in fetched[1:] for step in layer for head in step)

    def read(layer: int, head: int, at: int) -> set[int]:
        step = fetched[layer][at - LENGTH]
        return set(range(at + 1)) if step is None else set(step[head])

    expected = masked_logits(eager, ids, read)
    assert (torch.tensor(data["logits"]) - expected).abs().max() < 1e-4
    assert [layer["kept"] for layer in data["layers"]] == [[list(range(LENGTH))] * KV_HEADS] * LAYERS


@pytest.mark.parametrize(
    "method",
    [
        "infllm@n_init=4,n_local=32,topk=2,block_size=8,exc_block_size=16",
        "longcache@global_size=4,local_size=48,mid_size=2,span_size=4,recall_clip=4,chunk_size=16,scope=64,align=8",
        "squeezed-attention@obs=16,clusters=0.2",
        "shadowkv@budget=32,rank=16,outliers=2,local_chunks=2,min_prompt=0",
    ],
)
def test_every_retrieval_method_tells_what_it_fetched(cli: Cli, folder: Path, ids: list[int], method: str) -> None:
    data = inspected(cli, folder, ids, method, "--details", "--steps", "3")
    for layer in data["layers"]:
        assert len(layer["fetched"]) == 3
        for step in layer["fetched"]:
            assert len(step) == KV_HEADS
            assert all(head == sorted(set(head)) and set(head) <= set(range(LENGTH)) for head in step)
    assert any(head for layer in data["layers"] for step in layer["fetched"] for head in step)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is not JSON"),
        ("[1, 2", "is not JSON"),
        ("[" * 100_000, "is"),
        ("{}", "does not hold a list"),
        ("[]", "holds an empty list"),
        ("[1, 2.5]", "Entry 1 of --token-ids bad.json is not a whole number: 2.5"),
        ("[true]", "Entry 0 of --token-ids bad.json is not a whole number: true"),
        ('[1, "2"]', "not a whole number"),
        ("[1, 260]", "Entry 1 of --token-ids bad.json is 260, and the model's token ids are 0 to 259"),
        ("[-1]", "is -1, and the model's token ids are 0 to 259"),
        (json.dumps([1] * 4097), "4,097 tokens"),
    ],
    ids=lambda value: value[:24],
)
def test_bad_token_ids(cli: Cli, folder: Path, text: str, said: str) -> None:
    Path("bad.json").write_text(text)
    refused(cli("inspect", "--model", folder, "--token-ids", "bad.json", "--json"), said)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "No prompt was given"),
        (["--token-ids", "none.json"], "none.json cannot be read"),
        (["--token-ids", "ids.json", "--prompt", "ids.json"], "both give the prompt"),
        (["--token-ids", "ids.json", "--index", "1"], "--index chooses a row"),
        (["--token-ids", "ids.json", "--method", "kivy"], "Unknown method 'kivy'"),
        (["--token-ids", "ids.json", "--method", "full,kivi"], "one is inspected at a time"),
        (["--token-ids", "ids.json", "--method", "kivi@group_size=64,residual_length=64"], "does not divide"),
        (["--token-ids", "ids.json", "--method", "headkv"], "lcbench calibrate headkv"),
        (["--token-ids", "ids.json", "--force", "ids.json"], "no steps were asked for"),
        (["--token-ids", "ids.json", "--json", "--logits", "9", "--force", "ids.json"], "holds 3 token ids, and 9"),
        (["--token-ids", "ids.json", "--logits", "2"], "Add --json"),
        (["--token-ids", "ids.json", "--details"], "Add --json"),
        (["--token-ids", "ids.json", "--json", "--logits", "2", "--steps", "2"], "--steps and --logits"),
        (["--token-ids", "ids.json", "--html", "nowhere/a.html"], "no such folder"),
        (["--token-ids", "ids.json", "--html", "."], "is a folder"),
        (["--prompt", "ids.json"], "no tokenizer"),
        (["--task", "passkey@lengths=20,depths=2,repeats=1", "--index", "7"], "there are 2, counted from 0"),
        (["--task", "passky"], "Unknown task 'passky'"),
        (["--task", "qasper,trec"], "names 2 tasks"),
    ],
    ids=lambda value: " ".join(value)[:50] if isinstance(value, list) else None,
)  # fmt: skip
def test_wrong_words(cli: Cli, folder: Path, words: list[str], said: str) -> None:
    Path("ids.json").write_text("[1, 2, 3]")
    refused(cli("inspect", "--model", folder, *words), said)


def refused(done: Any, said: str) -> None:
    assert done.code == 2, done
    assert "Traceback" not in done.err
    assert done.err.startswith("Error: ")
    assert "\nNext:  " in done.err
    assert said in done.err.replace("\n", " "), done.err


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a tokenizer."""
    return save_tiny(tmp_path_factory.mktemp("model") / "whole")


def test_a_row_of_a_task_is_what_a_run_feeds_and_keeps(cli: Cli, whole: Path) -> None:
    task = "passkey@lengths=20,depths=2,repeats=1,max_new_tokens=4"
    model = ("--model", whole, "--method", "random@budget=0.25")
    assert cli("run", *model, "--task", task, "--out", "r", "--quiet").code == 0
    (file,) = Path("r/predictions").rglob("*.jsonl")
    records = {record["_id"]: record for record in map(json.loads, file.read_text().splitlines())}
    found = []
    for index in range(2):
        done = cli("inspect", *model, "--task", task, "--index", index, "--json")
        assert done.code == 0, done.err
        found.append(json.loads(done.out))
    facts = ("prompt_tokens", "kv_bytes", "kv_bytes_full")
    assert sorted([data[name] for name in facts] for data in found) == sorted(
        [record[name] for name in facts] for record in records.values()
    )


def test_a_method_that_rewrites_the_prompt_shows_what_it_cut(
    cli: Cli, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lcbench.methods.base import PromptTransform, Traits
    from lcbench.methods.full import Full
    from lcbench.methods.rewriting import PromptText

    class Plainly(PromptTransform):
        name, paper, traits = "plainly", "", Traits(family="prompt", prefill="own")

        def rewrite(self, prompt: PromptText, helper: None) -> str:
            return prompt.passage.replace("very ", "")

    monkeypatch.setattr(Full, "rewriter", Plainly())
    Path("prompt.txt").write_text("A very long story.")
    done = cli("inspect", "--model", whole, "--prompt", "prompt.txt", "--json", "--details")
    assert done.code == 0, done.err
    data = json.loads(done.out)
    assert data["prompt_tokens"] == 1 + len("A long story.")  # BOS
    assert data["text"] == [
        {"text": "A ", "kind": "kept"},
        {"text": "very ", "kind": "cut"},
        {"text": "long story.", "kind": "kept"},
    ]
    assert "A ⟦very ⟧long story." in cli("inspect", "--model", whole, "--prompt", "prompt.txt").out
    Path("ids.json").write_text("[1, 2]")
    refused(cli("inspect", "--model", whole, "--token-ids", "ids.json"), "rewrites the text of a prompt")


def test_prompts_that_a_method_shortens_are_counted_as_given(cli: Cli, whole: Path) -> None:
    Path("prompt.txt").write_text("A very long story of a king and a queen.")
    given = 1 + len("A very long story of a king and a queen.")  # BOS; a byte a token
    model = ("--model", whole, "--prompt", "prompt.txt")
    done = cli("inspect", *model, "--method", "gemfilter@budget=12,layer=1")
    words = " ".join(done.out.split())
    assert f"12.0 of {given} tokens kept" in words
    assert f"({100 * 12 / given:.1f} %); the prompt was shortened to 12 tokens" in words
    assert "cut nothing" not in done.out
    assert f"then {given} tokens through gemfilter@budget=12,layer=1." in done.err  # something is told while one waits
    data = json.loads(cli("inspect", *model, "--method", "gemfilter@budget=12,layer=1", "--json", "--details").out)
    assert (data["prompt_tokens"], data["prompt_tokens_before"]) == (12, given)
    assert data["kv_bytes_full"] * 12 == data["kv_bytes"] * given  # bytes are against the prompt given, too
    kept = cli("inspect", *model, "--method", "gemfilter@layer=1")
    words = " ".join(kept.out.split())
    assert f"cut nothing: the prompt's {given} tokens are within its budget (budget=1024)" in words
    assert f"{given}.0 of {given} tokens kept" in words


def test_what_nobody_expects_of_a_short_prompt_is_remarked(cli: Cli, whole: Path) -> None:
    Path("prompt.txt").write_text("A very long story of a king and a queen.")
    given = 1 + len("A very long story of a king and a queen.")

    def words(method: str) -> str:
        return " ".join(cli("inspect", "--model", whole, "--prompt", "prompt.txt", "--method", method).out.split())

    wide = words("snapkv@budget=0.1")
    assert "snapkv@budget=0.1 keeps 33.0 tokens, mean over layers and heads, and 0.1 of this prompt is 4" in wide
    assert "window=32 stays whatever the budget." in wide
    assert "stays whatever" not in words("snapkv@budget=20,window=4")
    assert "stays whatever" not in words("quest@budget=8,page_size=4")  # holds all, and looks 8 up
    assert "infllm looked nothing up in the 8 steps after this prompt." in words("infllm")
    assert "looked nothing up" not in words("quest@budget=8,page_size=4")
    refused = cli("inspect", "--model", whole, "--prompt", "prompt.txt", "--method", "perception-compressor@guides=0")
    assert (refused.code, "this prompt has none" in refused.err) == (2, True), refused.err
    exact = words("kivi@bits=2,residual_length=64")
    assert f"holds the prompt's {given} tokens as the model made them: it keeps the newest 64 tokens exact" in exact
    assert "as the model made them" not in words("kivi@bits=2,residual_length=32")


@pytest.mark.parametrize(("content", "said"), [(b"\xff\xfe", "not UTF-8"), (b"x" * 5000, "5,001 tokens")])
def test_bad_prompts(cli: Cli, whole: Path, content: bytes, said: str) -> None:
    Path("prompt.txt").write_bytes(content)
    refused(cli("inspect", "--model", whole, "--prompt", "prompt.txt"), said)
