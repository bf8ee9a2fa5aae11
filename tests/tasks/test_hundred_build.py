"""What `lcbench build 100-longbench` makes: recomputable answers, lengths that are true, the same bytes everywhere."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hundred_oracle import check, numbered, raw_rows, read_built
from hundred_pools import write_pools

import lcbench
from lcbench.errors import DataMissing
from lcbench.models.counting import WordCounter
from lcbench.tasks.hundred.build import POOLS_OF, Order, Workshop
from lcbench.tasks.hundred.fill import tolerance
from lcbench.tasks.hundred.names import TASKS
from lcbench.tasks.hundred.pools import gather
from lcbench.tasks.registry import resolve

Cli = Callable[..., Any]
WORDS = ("--tokenizer", "words", "--quiet")


@pytest.fixture(scope="module")
def pools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pools(tmp_path_factory.mktemp("pools"))


@pytest.fixture(scope="module")
def rows(pools: Path) -> dict[str, Any]:
    found = raw_rows(pools)
    import pyarrow.parquet as parquet

    for row in parquet.read_table(pools / "cnn_dailymail/1.0.0/test-00000-of-00001.first60.parquet").to_pylist():
        found.setdefault(row["article"], []).append(("", [row["highlights"]]))
    corpus = parquet.read_table(pools / "bioasq/text-corpus/test-00000-of-00001.parquet").to_pylist()
    texts = {row["id"]: row["passage"] for row in corpus}
    asked = parquet.read_table(pools / "bioasq/question-answer-passages/test-00000-of-00001.parquet").to_pylist()
    for row in asked:
        context = "".join(f"Passage {k}:\n{texts[i]}\n" for k, i in enumerate(row["relevant_passage_ids"], 1))
        found.setdefault(context, []).append((row["question"], [row["answer"]]))
    return found


def built(home: Path, name: str = "default") -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (home / "data/100-longbench/builds" / name).glob("*.jsonl")}


@pytest.mark.parametrize("mode", ["reference", "paper"])
@pytest.mark.parametrize("fill", ["exact", "reference"])
def test_every_answer_and_length_can_be_recomputed(
    cli: Cli, own_home: Path, pools: Path, rows: dict[str, Any], mode: str, fill: str
) -> None:
    done = cli(
        "build", "100-longbench", "--lengths", "700,2k,6k", "--rows", 6, "--base-below", "2k", "--pools", pools,
        "--mode", mode, "--fill", fill, *WORDS,
    )  # fmt: skip
    assert done.code == 0, done.err + done.out
    folder = own_home / "data/100-longbench/builds/default"
    made = {f"{t}_{n}.jsonl" for t in TASKS for n in ("base", "700", "2k", "6k")}
    assert {p.name for p in folder.iterdir()} == {*made, "build.json"}
    for path in folder.glob("*.jsonl"):
        recipe, contexts = read_built(path)
        assert recipe["mode"] == mode
        assert all(re.fullmatch(r"[0-9a-f]{64}", source["sha256"]) for source in recipe["sources"])
        assert len(contexts) == 6
        for context in contexts:
            check(recipe, context, rows)
            assert context["length"] == len(context["new_context"].split())
            target = recipe["length"] if recipe["length"] != "base" else context["base_length"]
            if fill == "exact" and target is not None:
                assert abs(context["length"] - target) <= tolerance(target), (path.name, context["_id"])
                assert not context["off_target"]
            if mode == "paper":
                assert context["faults"] == []
                assert recipe["length"] != "base" or context["base_length"] in (512, 1024, 1536)


def test_reference_faults_are_counted(cli: Cli, pools: Path) -> None:
    done = cli("build", "100-longbench", "--lengths", "6k", "--rows", 20, "--pools", pools, *WORDS)
    lines = {line.split()[0]: line for line in done.out.splitlines() if " 6k " in line}
    assert "same document" in lines["passage_count"]
    assert "bracketed" in lines["passage_retrieval"]
    assert "none known" in lines["kv_retrieval"]


def test_two_machines_make_the_same_bytes(cli: Cli, own_home: Path, pools: Path, tmp_path: Path) -> None:
    """Another process, hash seed, number of threads, folder, copy of the files, and order of building."""
    arguments = ["build", "100-longbench", "--lengths", "1k,500", "--rows", "4", "--base-below", "1k", *WORDS]
    assert cli(*arguments, "--pools", pools, "--jobs", 1).code == 0
    mine = built(own_home)
    copy = write_pools(tmp_path / "elsewhere")
    environment = {**os.environ, "LCBENCH_HOME": str(tmp_path / "other"), "PYTHONHASHSEED": "4711"}
    environment["PYTHONPATH"] = str(Path(lcbench.__file__).parents[1])
    command = [sys.executable, "-m", "lcbench", *arguments, "--pools", str(copy), "--jobs", "3", "--name", "b"]
    subprocess.run(command, check=True, env=environment, capture_output=True)
    assert built(tmp_path / "other", "b") == mine
    # One task alone is what it is among all.
    assert cli(*arguments, "--pools", pools, "--tasks", "counting_stars", "--name", "one").code == 0
    one = built(own_home, "one")
    assert set(one) == {"counting_stars_base.jsonl", "counting_stars_1k.jsonl", "counting_stars_500.jsonl"}
    assert all(mine[name] == content for name, content in one.items())


def test_more_rows_begin_with_the_same_ones_and_another_seed_has_others(cli: Cli, own_home: Path, pools: Path) -> None:
    for name, rows, seed in (("few", 2, 42), ("more", 5, 42), ("other", 2, 43)):
        arguments = ["--rows", rows, "--seed", seed, "--name", name, "--pools", pools, "--tasks", "kv_retrieval"]
        assert cli("build", "100-longbench", "--lengths", "1k", *arguments, *WORDS).code == 0
    few, more, other = (
        built(own_home, name)["kv_retrieval_1k.jsonl"].split(b"\n")[1:-1] for name in ("few", "more", "other")
    )
    assert more[:2] == few
    assert not set(other) & set(few)


def test_verify_builds_again_and_compares(cli: Cli, own_home: Path, pools: Path) -> None:
    arguments = ("--pools", pools, "--name", "v", *WORDS)
    build = ("build", "100-longbench", "--lengths", "1k", "--rows", 3, "--tasks", "passage_count,kv_retrieval")
    assert cli(*build, *arguments).code == 0
    done = cli("build", "100-longbench", "--verify", *arguments)
    assert done.code == 0, done.err
    assert "All 4 files" in done.out
    path = own_home / "data/100-longbench/builds/v/kv_retrieval_1k.jsonl"
    content = path.read_text("utf-8")
    path.write_text(content.replace("The value of", "the value of", 1), "utf-8")
    done = cli("build", "100-longbench", "--verify", *arguments)
    assert done.code == 2
    assert "kv_retrieval@1k: line 2 differs" in done.out
    assert "1 of 4 files" in done.err
    path.write_text(content + "\n", "utf-8")
    assert "further lines" in cli("build", "100-longbench", "--verify", *arguments).out
    path.write_text(content.replace('"seed": 42', '"seed": 43', 1), "utf-8")
    assert "differs" in cli("build", "100-longbench", "--verify", *arguments).out
    path.unlink()
    done = cli("build", "100-longbench", "--verify", *arguments)
    assert done.code == 2
    assert "kv_retrieval@1k: not there" in done.out
    assert "1 of 4 files" in done.err
    assert cli("build", "100-longbench", "--verify", "--name", "nothing", *WORDS).code == 2


def test_verify_misses_files_of_which_no_other_speaks(cli: Cli, own_home: Path, pools: Path) -> None:
    """A task, a length, and all files gone: `build.json` knows that they were made."""
    arguments = ("--pools", pools, "--name", "v", *WORDS)
    build = ("build", "100-longbench", "--lengths", "700,1k", "--rows", 2, "--tasks", "passage_count,kv_retrieval")
    assert cli(*build, *arguments).code == 0
    folder = own_home / "data/100-longbench/builds/v"
    manifest = json.loads((folder / "build.json").read_text("utf-8"))
    assert manifest["pools"] is True
    assert manifest["files"] == {
        name: hashlib.sha256(content).hexdigest() for name, content in built(own_home, "v").items()
    }
    for pattern, gone in (("kv_retrieval_*", 3), ("*_700.jsonl", 4), ("*.jsonl", 6)):
        for path in folder.glob(pattern):
            path.unlink()
        done = cli("build", "100-longbench", "--verify", *arguments)
        assert done.code == 2
        assert done.out.count("not there, but the build has it") == gone
        assert ("All 6 files" if gone == 6 else f"{gone} of 6 files") in done.err
    (folder / "build.json").write_text("{", "utf-8")
    assert "not the manifest of a build" in cli("build", "100-longbench", "--verify", *arguments).err


def test_the_next_step_names_the_builds_own_options_and_the_missing_download(
    cli: Cli, own_home: Path, pools: Path
) -> None:
    options = ("--rows", 2, "--seed", 7, "--base-below", "1k", "--name", "v", "--tasks", "kv_retrieval")
    done = cli("build", "100-longbench", "--lengths", "600,700", *options, "--pools", pools, *WORDS)
    assert "Next:  lcbench download 100-longbench" in done.out
    assert "       lcbench run --task 100-longbench@build=v" in done.out
    own = resolve("100-longbench/kv_retrieval@2k,build=v", own_home)[0]
    with pytest.raises(DataMissing) as error:
        own._file(own_home)
    assert error.value.next_step == (
        "Run: lcbench build 100-longbench --lengths 2k --name v --rows 2 --seed 7 --base-below 1k --tokenizer words "
        "--pools DIR"
    )


def test_fewer_contexts_than_rows_are_explained(cli: Cli, own_home: Path, pools: Path) -> None:
    build = ("build", "100-longbench", "--lengths", "1k", "--rows", 100, "--tasks", "single_doc_sum")
    done = cli(*build, "--pools", pools, *WORDS)
    assert done.code == 0, done.err
    said = " ".join(done.out.split())
    assert "Fewer than the 100 contexts of --rows: single_doc_sum@base" in said
    assert "hold no more documents below 8k" in said
    assert "single_doc_sum@1k (" not in said


def test_a_build_is_of_one_recipe(cli: Cli, own_home: Path, pools: Path, tmp_path: Path) -> None:
    build = ("build", "100-longbench", "--rows", 2, "--tasks", "kv_retrieval", *WORDS)
    assert cli(*build, "--lengths", "1k", "--pools", pools).code == 0
    assert cli(*build, "--lengths", "600", "--pools", pools).code == 0  # more lengths, made the same way
    for more in (["--seed", 7], ["--mode", "paper"], ["--fill", "reference"], ["--base-below", "2k"]):
        done = cli(*build, "--lengths", "600", "--pools", pools, *more)
        assert done.code == 2
        assert "made differently" in done.err
        assert "--name" in done.err
    fewer = write_pools(tmp_path / "fewer", leave_out=("cnn_dailymail",))
    assert "other sources" in cli(*build, "--lengths", "2k", "--pools", fewer).err
    assert set(built(own_home)) == {"kv_retrieval_base.jsonl", "kv_retrieval_1k.jsonl", "kv_retrieval_600.jsonl"}
    assert cli(*build, "--lengths", "600", "--pools", pools, "--seed", 7, "--overwrite").code == 0
    assert set(built(own_home)) == {"kv_retrieval_base.jsonl", "kv_retrieval_600.jsonl"}


def test_missing_pools_are_named_and_what_is_there_is_built(cli: Cli, own_home: Path, tmp_path: Path) -> None:
    folder = write_pools(tmp_path / "p", leave_out=("cnn_dailymail", "musique", "legal", "bioasq"))
    arguments = ("--lengths", "1k", "--rows", 2, "--pools", folder, "--tokenizer", "words")
    done = cli("build", "100-longbench", *arguments)
    assert done.code == 0
    assert "Pool CNN: missing cnn_dailymail" in done.err
    assert "missing longbench/musique, bioasq; only part of longbench/hotpotqa (first 14 of 200 rows)" in done.err
    assert "lcbench download 100-longbench-pools" in done.err
    recipe, _ = read_built(own_home / "data/100-longbench/builds/default/kv_retrieval_1k.jsonl")
    assert any("CNN: missing cnn_dailymail" in note for note in recipe["notes"])
    strict = cli("build", "100-longbench", *arguments, "--strict", "--overwrite")
    assert strict.code == 2
    assert "not complete" in strict.err
    assert "documents are" not in strict.err
    nothing = cli("build", "100-longbench", "--lengths", "1k", *WORDS)
    assert nothing.code == 2
    assert "lcbench download 100-longbench-pools" in nothing.err


def test_a_pool_that_is_not_there_leaves_its_tasks_out(cli: Cli, tmp_path: Path) -> None:
    folder = write_pools(tmp_path / "p", leave_out=("multi_news", "hotpotqa", "2wikimqa", "musique", "bioasq"))
    done = cli("build", "100-longbench", "--lengths", "1k", "--rows", 2, "--pools", folder, *WORDS)
    assert done.code == 1
    assert "multi_doc_sum@1k is not built: There are no documents in the pool MSUM" in done.out
    assert "multi_doc_qa@base is not built" in done.out
    alone = cli("build", "100-longbench", "--lengths", "1k", "--tasks", "multi_doc_qa", "--pools", folder, *WORDS)
    assert alone.code == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["longbench", "--lengths", "1k"], "100-longbench"),
        (["100-longbench"], "--lengths 8k,16k"),
        (["100-longbench", "--lengths", "long"], "16k"),
        (["100-longbench", "--lengths", "12"], "too short"),
        (["100-longbench", "--lengths", "base"], "always built"),
        (["100-longbench", "--lengths", "1k", "--tasks", "kv_retrieva"], "kv_retrieval"),
        (["100-longbench", "--lengths", "1k", "--mode", "paperr"], "reference, paper"),
        (["100-longbench", "--lengths", "1k", "--fill", "full"], "exact, reference"),
        (["100-longbench", "--lengths", "1k", "--base-below", "100"], "too short"),
        (["100-longbench", "--lengths", "1k", "--base-below", "600"], "1k or more"),
        (["100-longbench", "--lengths", "1k", "--name", "../x"], "not a name"),
        (["100-longbench", "--lengths", "1k", "--pools", "nowhere"], "nowhere"),
        (["100-longbench", "--lengths", "1k", "--custom", "nowhere"], "nowhere"),
        (["100-longbench", "--lengths", "1k", "--custom", ".", "--pools", "."], "do not go together"),
        (["100-longbench", "--lengths", "1k", "--tokenizer", "no.json"], "tokenizer"),
    ],
)
def test_wrong_words(cli: Cli, arguments: list[str], said: str) -> None:
    done = cli("build", *arguments, *([] if "--tokenizer" in arguments else ["--tokenizer", "words"]))
    assert done.code == 2
    assert said in done.err
    assert "Traceback" not in done.err


def test_memory_holds_a_few_contexts_whatever_their_number(own_home: Path, pools: Path) -> None:
    """Sixty contexts of 20,000 words are 8 MB of text; building them takes a few of them at a time."""
    counter = WordCounter()
    material = gather(POOLS_OF["kv_retrieval"], counter, "reference", home=own_home, place=str(pools))
    workshop = Workshop(Order((20_000,), 60, tasks=("kv_retrieval",)), material, counter, own_home)
    workshop.make("kv_retrieval", 2_000)  # caches of the pool
    tracemalloc.start()
    done = workshop.make("kv_retrieval", 20_000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert done.path.stat().st_size > 7_000_000
    assert peak < 5_000_000


def test_headers_inside_documents_do_not_confuse_the_oracle() -> None:
    assert numbered("Paragraph 1: a Paragraph 9: b\n\nParagraph 2: c", "Paragraph", ": ") == [
        "a Paragraph 9: b\n\n", "c",
    ]  # fmt: skip


def test_real_rows_with_the_demo_tokenizer(cli: Cli, own_home: Path, shared_data: Path, demo_home: Path) -> None:
    """The pools under ../shared/data suffice for a build at the lengths that the demo model reads."""
    own_home.mkdir(parents=True, exist_ok=True)
    (own_home / "models").symlink_to(demo_home / "models")
    done = cli(
        "build", "100-longbench", "--lengths", "1k,4k", "--rows", 3, "--base-below", "1k", "--pools", shared_data,
        "--tasks", "single_doc_qa,multi_doc_qa", "--quiet",
    )  # fmt: skip
    assert done.code == 0, done.err
    known = raw_rows(shared_data / "longbench") | raw_rows(shared_data / "leval")
    for name, content in built(own_home).items():
        first, *lines = content.decode().splitlines()
        recipe = json.loads(first)["recipe"]
        assert recipe["counter"] == "demo"
        assert lines
        for line in lines:
            context = json.loads(line)
            check(recipe, context, known)
            target = context["base_length"] if recipe["length"] == "base" else recipe["length"]
            assert target is None or abs(context["length"] - target) <= tolerance(target), name
