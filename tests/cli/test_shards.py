"""``run --shard`` and ``merge``: a divided run ends as the undivided one, and nothing foreign gets in."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lcbench.cli import main
from lcbench.config.shard import Shard
from lcbench.errors import BadValue
from lcbench.store.shards import shared_batching
from tiny import save_tiny

METHODS = "full,streamingllm@budget=16"
TASK = "passkey@lengths=20/60,depths=4,repeats=1,digits=3,max_new_tokens=12"
MEMORY = "128500KiB"  # little more than reading one prompt needs: several groups


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny")


def words(model: Path, out: Path, *more: str) -> list[str]:
    said = ["run", "--model", str(model), "--method", METHODS, "--task", TASK, "--group-memory", MEMORY, "--quiet"]
    return [*said, "--out", str(out), *more]


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undivided run; tests only read it."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LCBENCH_HOME", str(folder / "home"))
        patch.setattr(sys, "argv", ["lcbench", *words(model, folder / "whole")])
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == 0
    return folder / "whole"


def kept(run: Path) -> dict[str, bytes]:
    """All files of the byte-for-byte guarantee, options and limits."""
    files = [*(run / "predictions").rglob("*.jsonl"), run / "batching.json", run / "config.yaml"]
    return {str(file.relative_to(run)): file.read_bytes() for file in sorted(files)}


def divided(cli: Callable[..., Any], model: Path, out: Path, of: int = 3) -> list[Path]:
    for k in range(of, 0, -1):
        done = cli(*words(model, out, "--shard", f"{k}/{of}"))
        assert done.code == 0, done.err
        assert f"lcbench merge {out}" in done.out
    return [out / "shards" / f"{k}-of-{of}" for k in range(1, of + 1)]


def test_three_shards_merged_are_the_undivided_run(
    model: Path, whole: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    out = tmp_path / "divided"
    shards = divided(cli, model, out)
    plans = [json.loads((shard / "shard.json").read_text()) for shard in shards]
    assert len({plan["plan_sha256"] for plan in plans}) == 1
    assert all(plan["groups"] for plan in plans), "every shard has work"
    assert sorted(group[0] for plan in plans for group in plan["groups"]) == list(
        range(sum(len(plan["groups"]) for plan in plans))
    )
    refused = cli("score", out)
    assert refused.code == 2
    assert f"lcbench merge {out}" in refused.err
    done = cli("merge", out)
    assert done.code == 0, done.err
    assert kept(out) == kept(whole)
    ours, theirs = (json.loads((run / "run.json").read_text()) for run in (out, whole))
    assert {**ours, "created": ""} == {**theirs, "created": ""}
    for file in (whole / "timings").rglob("*.jsonl"):
        rows = [json.loads(line)["_id"] for line in (out / file.relative_to(whole)).read_text().splitlines()]
        assert rows == [json.loads(line)["_id"] for line in file.read_text().splitlines()]
    assert cli("merge", out).code == 0, "merging again changes nothing"
    assert kept(out) == kept(whole)
    assert cli("score", out).code == 0
    again = cli(*words(model, out))  # the undivided command finds everything done
    assert again.code == 0
    assert "were there already" in again.out
    globbed = cli("merge", tmp_path / "globbed", *(out / "shards").glob("[!.]*"))  # batching.json among them
    assert (globbed.code, "Merged 3 shards" in globbed.out) == (0, True), globbed.err
    assert kept(tmp_path / "globbed") == kept(whole)
    moved = [shard.rename(tmp_path / f"node{i}") for i, shard in enumerate(shards)]
    assert cli("merge", tmp_path / "elsewhere", *moved).code == 0
    assert kept(tmp_path / "elsewhere") == kept(whole)


def test_more_shards_than_groups(model: Path, whole: Path, tmp_path: Path, cli: Callable[..., Any]) -> None:
    """Nine for eight groups: one has no work. What was done is not done again, other settings do not get in."""
    out = tmp_path / "divided"
    shards = divided(cli, model, out, of=9)
    assert [] in [json.loads((shard / "shard.json").read_text())["groups"] for shard in shards]
    before = kept(shards[0])
    again = cli(*words(model, out, "--shard", "1/9"))
    assert again.code == 0, again.err
    assert kept(shards[0]) == before
    refused = cli(*words(model, out, "--shard", "1/9", "--seed", "7"))
    assert (refused.code, "seed: was 42, now 7" in refused.err) == (2, True)
    shutil.move(shards[7], tmp_path / "eighth")
    missing = cli("merge", out)
    assert (missing.code, "Shard 8/9 is missing" in missing.err) == (2, True)
    shutil.move(tmp_path / "eighth", shards[7])
    assert cli("merge", out).code == 0
    assert kept(out) == kept(whole)


def test_what_is_no_set_of_shards_is_refused(model: Path, tmp_path: Path, cli: Callable[..., Any]) -> None:
    out = tmp_path / "divided"
    one, two, three = divided(cli, model, out)

    def refused(said: str, *folders: Path) -> None:
        done = cli("merge", tmp_path / "merged", *folders)
        assert done.code == 2
        assert said in done.err, done.err
        assert "Traceback" not in done.err
        assert not (tmp_path / "merged").exists()

    refused("Shard 2/3 is missing", one, three)
    refused("Shards 2/3, 3/3 are missing", one)
    refused("Shard 2/3 is given twice", one, two, two, three)
    refused("does not exist", one, two, tmp_path / "nowhere")
    refused("merged does not exist")
    assert "There are no shards in" in cli("merge", model).err
    refused("has no shard.json", one, two, model)
    refused("run.json is not a shard: it is a file", one, two, three / "run.json")
    (tmp_path / "note").write_text("mine")
    onto = cli("merge", tmp_path / "note", one, two, three)
    assert (onto.code, (tmp_path / "note").read_text()) == (2, "mine")
    assert "is a file, not a folder" in onto.err
    assert cli(*words(model, tmp_path / "four", "--shard", "4/4")).code == 0
    refused("one of 4", one, two, three, tmp_path / "four" / "shards" / "4-of-4")
    assert cli(*words(model, tmp_path / "seed", "--seed", "7", "--shard", "3/3")).code == 0
    refused("seed: was 42, now 7", one, two, tmp_path / "seed" / "shards" / "3-of-3")
    other = json.loads((three / "shard.json").read_text()) | {"plan_sha256": "0" * 64}
    (tmp_path / "three").mkdir()
    shutil.copytree(three, tmp_path / "three", dirs_exist_ok=True)
    (tmp_path / "three" / "shard.json").write_text(json.dumps(other))
    refused("--group-memory", one, two, tmp_path / "three")
    file = next((three / "predictions").rglob("*.jsonl"))
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:-1]))
    refused("Shard 3/3 is not finished", one, two, three)
    foreign = json.loads(lines[-1]) | {"_id": "somebody-else"}
    file.write_bytes(b"".join(lines[:-1]) + json.dumps(foreign).encode() + b"\n")
    refused("somebody-else", one, two, three)
    file.write_bytes(b"".join(lines))
    shutil.copytree(one, out, dirs_exist_ok=True)  # as if the undivided run had begun there with other records
    target = out / file.relative_to(three)
    target.write_bytes(lines[-1])
    done = cli("merge", out)
    assert done.code == 2
    assert "holds records that are not those of the shards" in done.err
    assert target.read_bytes() == lines[-1]


@pytest.mark.timeout(300)
def test_a_killed_shard_is_continued(model: Path, whole: Path, tmp_path: Path, cli: Callable[..., Any]) -> None:
    out = tmp_path / "divided"
    shard = out / "shards" / "1-of-2"
    command = [sys.executable, "-m", "lcbench", *words(model, out, "--shard", "1/2")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while not any(file.stat().st_size for file in (shard / "predictions").rglob("*.jsonl")):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < until
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    divided(cli, model, out, of=2)
    assert cli("merge", out).code == 0
    assert kept(out) == kept(whole)


def test_limits_are_those_of_the_shard_that_began_first(tmp_path: Path) -> None:
    first = {"rows": 3, "tokens": 5, "nbytes": 7}
    assert shared_batching(tmp_path, first) == first
    assert shared_batching(tmp_path, {"rows": 30, "tokens": 50, "nbytes": 70}) == first
    (tmp_path / "shards" / "batching.json").write_text("{")
    assert shared_batching(tmp_path, {"rows": 1, "tokens": 1, "nbytes": 1}) == {"rows": 1, "tokens": 1, "nbytes": 1}


def test_parts_are_disjoint_and_whole() -> None:
    for of in (1, 2, 3, 8, 11):
        owners = [[k for k in range(1, of + 1) if Shard(k, of).has(index)] for index in range(30)]
        assert all(len(owner) == 1 for owner in owners)
    assert Shard.parse(" 3/8 ") == Shard(3, 8)
    for text in ("0/8", "9/8", "3", "3/", "/8", "a/b", "-1/8", "1/0", "1.5/8", "1/8/2", "", "²/3"):
        with pytest.raises(BadValue, match="--shard"):
            Shard.parse(text)


def test_a_shard_of_another_run_is_refused_before_it_answers(
    model: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    out = tmp_path / "run"
    assert cli(*words(model, out, "--shard", "1/2")).code == 0
    before = sorted(out.rglob("*"))
    for more, said in (
        (("--seed", "7", "--shard", "2/2"), "seed: was 42, now 7"),
        (("--shard", "1/4"), "is one of 2 shards, and --shard 1/4 one of 4"),
    ):
        done = cli(*words(model, out, *more))
        assert (done.code, said in done.err) == (2, True), done.err
        assert sorted(out.rglob("*")) == before
    assert cli(*words(model, out, "--shard", "2/2")).code == 0
    assert cli("merge", out).code == 0


def test_shard_and_memory_are_checked_before_anything_else(
    model: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    done = cli("run", "--model", model, "--out", tmp_path / "run", "--shard", "9/8")
    assert (done.code, "--shard 3/8" in done.err) == (2, True)
    done = cli("run", "--model", model, "--out", tmp_path / "run", "--group-memory", "much")
    assert (done.code, "not an amount of memory" in done.err) == (2, True)
    done = cli("run", "--model", model, "--out", tmp_path / "run", "--group-memory", "4")
    assert (done.code, "Name the unit: --group-memory 4GiB." in done.err) == (2, True)
    done = cli("run", "--model", model, "--out", tmp_path / "run", "--ray-gpus", "1")
    assert (done.code, "Add --engine ray" in done.err) == (2, True)
    assert not (tmp_path / "run").exists()
