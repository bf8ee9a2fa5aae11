"""Context extensions in a run: the window that the task sees, who shares a prefill, and that nothing is left behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lcbench.engine.plan import group_methods
from lcbench.methods.registry import resolve
from tiny import save_tiny

# Byte tokens: 40 words are about 440 of them with the question, and the tiny model is trained for 300.
TASK = "passkey@lengths=3/40,depths=0.5,repeats=1,digits=3,max_new_tokens=4"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "model", window=300)


def rows(run: str) -> dict[str, list[dict[str, Any]]]:
    """Records of each method, by its id."""
    found = {}
    for path in sorted(Path(run, "predictions").glob("*/*.jsonl")):
        found[path.parent.name] = [json.loads(line) for line in path.read_text().splitlines()]
    return found


def by_length(records: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    return {record["meta"]["length_words"]: record for record in records}


def test_methods_of_one_extension_form_a_group() -> None:
    specs = ["kivi", "yarn+snapkv", "infllm", "full", "yarn", "yarn@factor=2", "yarn+infllm", "yarn+kivi"]
    groups = group_methods([resolve(spec) for spec in specs])
    assert [(shared, [method.id for method in group]) for shared, group in groups] == [
        (True, ["kivi", "full"]),
        (True, ["yarn+snapkv", "yarn", "yarn+kivi"]),
        (False, ["infllm"]),
        (True, ["yarn@factor=2"]),
        (False, ["yarn+infllm"]),
    ]


def test_plain_is_refused_beyond_the_window_and_extended_is_not(cli: Callable[..., Any], folder: Path) -> None:
    methods = "full,kivi@group_size=16,residual_length=16,yarn@factor=4,yarn@factor=4+snapkv@budget=40,dynamic-ntk"
    done = cli("run", "--model", folder, "--task", TASK, "--method", methods, "--out", "run")
    assert done.code == 1, done.err
    assert "a window of 1,200 where the model has 300" in " ".join(done.err.split())
    assert "dynamic-ntk: no window where the model has 300" in " ".join(done.err.split())
    found = rows("run")
    for name in ("full", "kivi@group_size=16,residual_length=16"):
        records = by_length(found[name])
        assert records[3]["status"] == "ok"
        assert "do not fit the model's window of 300" in records[40]["error"]
    for name in ("yarn@factor=4", "yarn@factor=4+snapkv@budget=40", "dynamic-ntk"):
        record = by_length(found[name])[40]
        assert record["status"] == "ok", name
        assert record["prompt_tokens"] > 300
        assert record["truncated_from"] is None
        assert record["shared_prefill"]
    snap = by_length(found["yarn@factor=4+snapkv@budget=40"])[40]
    assert snap["kept_tokens"] == 40
    assert snap["kv_bytes"] * 8 < snap["kv_bytes_full"]
    alone = cli("run", "--model", folder, "--task", TASK, "--method", "full", "--out", "alone")
    assert alone.code == 1
    assert rows("alone")["full"] == found["full"]  # an extension that ran before, or after, leaves nothing


def test_one_prefill_serves_an_extension_and_what_runs_on_it(
    cli: Callable[..., Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lcbench.engine import reading

    read: list[int] = []
    prefill = reading.prefill

    def counted(loaded: Any, ids: Any, **options: Any) -> Any:
        read.append(tuple(ids.shape))
        return prefill(loaded, ids, **options)

    monkeypatch.setattr(reading, "prefill", counted)
    task = "passkey@lengths=40,depths=0.5,repeats=1,digits=3,max_new_tokens=4"
    methods = "yarn@factor=4,yarn@factor=4+snapkv@budget=40,yarn@factor=4+snapkv@budget=9000,yarn@factor=4+kivi"
    methods += ",dynamic-ntk,dynamic-ntk+knorm"
    done = cli("run", "--model", folder, "--task", task, "--method", methods, "--out", "run")
    assert done.code == 0, done.err
    assert len(read) == 2
    together = rows("run")
    assert {name: records[0]["reused_from"] for name, records in together.items()} == {
        "yarn@factor=4": None,
        "yarn@factor=4+snapkv@budget=40": None,
        "yarn@factor=4+snapkv@budget=9000": "yarn@factor=4",
        "yarn@factor=4+kivi": None,
        "dynamic-ntk": None,
        "dynamic-ntk+knorm": None,
    }
    for name, records in together.items():
        again = cli("run", "--model", folder, "--task", task, "--method", name, "--out", "alone-" + name)
        assert again.code == 0, again.err
        (record,) = rows("alone-" + name)[name]
        assert (record["pred"], record["kv_bytes"]) == (records[0]["pred"], records[0]["kv_bytes"]), name


def test_prompts_are_cut_to_each_method_s_window(cli: Callable[..., Any], folder: Path) -> None:
    options = ("--task", TASK, "--method", "full,pi@factor=1.2,pi@factor=2", "--over-length", "truncate")
    done = cli("run", "--model", folder, *options, "--out", "run")
    assert done.code == 0, done.err
    tokens = {name: by_length(records)[40] for name, records in rows("run").items()}
    assert tokens["full"]["prompt_tokens"] <= 296 < tokens["pi@factor=1.2"]["prompt_tokens"] <= 356
    assert tokens["full"]["truncated_from"] == tokens["pi@factor=1.2"]["truncated_from"]
    assert tokens["pi@factor=2"]["truncated_from"] is None


def test_the_question_may_be_hidden(cli: Callable[..., Any], folder: Path) -> None:
    methods = "yarn@factor=4,yarn@factor=4+snapkv@budget=40,dynamic-ntk+kivi"
    options = ("--task", TASK, "--method", methods, "--question", "hidden", "--out", "run")
    done = cli("run", "--model", folder, *options)
    assert done.code == 0, done.err
    assert all(record["question"] == "hidden" for records in rows("run").values() for record in records)
    refused = cli("run", "--model", folder, "--task", TASK, "--method", "yarn+infllm", "--question", "hidden")
    assert refused.code == 2
    assert "reads the prompt in its own way" in " ".join(refused.err.split())


def test_models_that_cannot_be_extended_are_refused_before_work(cli: Callable[..., Any], tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "gemma", "gemma3")
    done = cli("run", "--model", folder, "--task", TASK, "--method", "full,yarn+kivi", "--out", "run")
    assert done.code == 2
    assert "each kind of layer, which yarn does not serve" in " ".join(done.err.split())
    assert not Path("run").exists()


def test_inspect_and_dry_run_see_the_window(cli: Callable[..., Any], folder: Path) -> None:
    Path("ids.json").write_text(json.dumps([7] * 500))
    refused = cli("inspect", "--model", folder, "--token-ids", "ids.json", "--method", "knorm")
    assert refused.code == 2
    assert "was made for 300" in " ".join(refused.err.split())
    refused = cli("inspect", "--model", folder, "--token-ids", "ids.json", "--method", "pi@factor=1.5+knorm")
    assert "with pi@factor=1.5+knorm serves 450" in " ".join(refused.err.split())
    done = cli("inspect", "--model", folder, "--token-ids", "ids.json", "--method", "pi@factor=2+knorm", "--json")
    assert done.code == 0, done.err
    dry = cli("run", "--model", folder, "--task", TASK, "--method", "pi@factor=2", "--dry-run")
    assert dry.code == 0, dry.err
    assert "a window of 600 where the model has 300" in " ".join((dry.out + dry.err).split())


LOOKING_UP = (
    "em-llm@n_local=64,n_init=16,n_mem=64,exc_block_size=32",
    "infllm@n_init=16,n_local=64,topk=2,block_size=16,exc_block_size=32",
    "longcache@global_size=8,local_size=96,chunk_size=32,align=16,scope=128,span_size=8,recall_clip=10",
)


def test_methods_that_look_up_read_beyond_the_window(cli: Callable[..., Any], folder: Path, tmp_path: Path) -> None:
    done = cli("run", "--model", folder, "--task", TASK, "--method", ",".join(("full", *LOOKING_UP)), "--out", "run")
    assert done.code == 1, done.err
    found = rows("run")
    assert "do not fit" in by_length(found["full"])[40]["error"]
    wide = save_tiny(tmp_path / "wide", window=4096)  # the same weights: nothing else may depend on the window
    again = cli("run", "--model", wide, "--task", TASK, "--method", ",".join(LOOKING_UP), "--out", "wide-run")
    assert again.code == 0, again.err
    for name in (resolve(spec).id for spec in LOOKING_UP):
        record = by_length(found[name])[40]
        assert record["status"] == "ok", name
        assert record["prompt_tokens"] > 300
        assert record["truncated_from"] is None
        assert record["kv_bytes"] >= record["kv_bytes_full"]
        assert record["resident_bytes"] < record["kv_bytes"]
        assert record["pred"] == by_length(rows("wide-run")[name])[40]["pred"], name


@pytest.mark.parametrize(
    ("spec", "served"),
    [
        ("em-llm", None),
        ("em-llm@n_local=9000", 8192),
        ("em-llm@n_local=9000,reach=10000", 10000),
        ("infllm", None),
        ("infllm@n_local=8193", 8192),
        ("infllm@4x", 8192),  # a share of the prompt that other methods read
        ("infllm@budget=512", 8192),
        ("infllm@4x,reach=20000", 20000),
        ("longcache", None),  # 32 + 4096 + 32 x 127 positions are all 8192
        ("longcache@recall_clip=128", 8192),
        ("longcache@scope=8193", 8192),
        ("longcache@original=true", 8192),
        ("longcache@reach=9000", 9000),
        ("lift", 8192),  # learns all of the text and reads what fits
        ("snapkv", 8192),
        ("yarn@factor=2+infllm", None),
        ("yarn@factor=2+infllm@4x", 16384),
        ("yarn@factor=2+em-llm@n_local=16385,n_init=0", 16384),
        ("yarn@factor=2,reach=9000+infllm", 9000),
        ("yarn@factor=2,reach=9000+infllm@reach=30000", 30000),
        ("llmlingua2@4x+infllm", None),
        ("gemfilter", 8192),
        ("gemfilter+infllm", 8192),  # its first pass is dense over the whole prompt
        ("gemfilter+yarn@factor=2", 16384),
        ("gemfilter+yarn@factor=2+infllm", 16384),
    ],
)
def test_the_window_that_a_method_serves(spec: str, served: int | None) -> None:
    assert resolve(spec).window_of(8192) == served


def test_what_is_learned_is_read_cut(cli: Callable[..., Any], folder: Path) -> None:
    """lift learns a text beyond the window and is asked with its middle cut, in a task that cuts nothing."""
    lift = "lift@epochs=1,segment=128,offset=64,rank=2"
    done = cli("run", "--model", folder, "--task", TASK, "--method", f"full,{lift}", "--out", "run")
    assert done.code == 1, done.err
    found, lift = rows("run"), resolve(lift).id
    assert "do not fit" in by_length(found["full"])[40]["error"]
    record = by_length(found[lift])[40]
    assert record["status"] == "ok"
    assert record["prompt_tokens"] <= 296 < record["truncated_from"]
    short = by_length(found[lift])[3]
    assert short["truncated_from"] is None
    assert short["prompt_tokens"] == by_length(found["full"])[3]["prompt_tokens"]


def test_sizes_that_keep_a_method_to_the_window_are_told(cli: Callable[..., Any], folder: Path) -> None:
    done = cli("run", "--model", folder, "--task", TASK, "--method", "em-llm,infllm@4x", "--dry-run")
    said = " ".join((done.out + done.err).split())
    for name in ("em-llm", "infllm@preset=4x"):
        assert f"{name}: its sizes, or a preset, keep it to the model's window; reach=N reads on" in said
    more = cli("run", "--model", folder, "--task", TASK, "--method", "infllm@4x,reach=4000", "--dry-run")
    assert "keep it to the model's window" not in more.out + more.err
