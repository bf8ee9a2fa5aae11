"""``lcbench bench`` as a user calls it, on a tiny model with random weights."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lcbench.measure.memory import available_bytes
from lcbench.store.rundir import RunDirectory
from lcbench.store.schema import PredictionRecord
from tiny import save_tiny

Cli = Callable[..., Any]
TINY = ("bench", "--random-weights", "tiny", "--repeats", "2", "--new-tokens", "4")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Each further thread has scratch memory, a quarter of a MiB, beside the byte model: much for a tiny model."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def known_bandwidth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring it takes half a second; tests/measure does."""
    from lcbench.bench import sweep

    monkeypatch.setattr(sweep, "copy_bandwidth", lambda device: 1e10)


def lines(path: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(path) / "efficiency.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("words", "sentence", "step"),
    [
        (("--lengths", "0"), "--lengths 0", "1,4,16"),
        (("--lengths", "12,x"), "--lengths 12,x", "1,4,16"),
        (("--lengths", "12,12"), "different", "1,4,16"),
        (("--lengths", "99999999999999999999"), "is not a list", "1,4,16"),
        (("--method", "full,full"), "full is given twice", "once"),
        (("--random-weights", ""), "names nothing", "list models"),
        (("--revision", "main"), "no revision", "--model"),
        (("--batch", "-1"), "--batch -1", "1,4,16"),
        (("--random-weights", "llama-3-9b"), "Unknown architecture 'llama-3-9b'", "llama-3-8b"),
        (("--random-weights", "nowhere/config.json"), "There is no file nowhere/config.json", "qwen3-8b"),
        (("--random-weights", "config.json"), "There is no file config.json", "config.json, or a name: llama-2-7b"),
        (("--model", "demo"), "both given", "one of them"),
        (("--max-batch", "--memory", "20"), "--memory 20 is 20 bytes", "--memory 20GiB"),
        (("--max-batch", "--memory", "5000"), "5,000 bytes", "--memory 4GiB"),
        (("--method", "full,kivi@group_size=64"), "does not divide this model's head dimension 32", "group_size=32"),
        (("--method", "full,llmlingua2"), "rewrites the text", "Leave it out"),
        (("--memory", "1GiB"), "--max-batch", "leave --memory out"),
        (("--max-batch", "--memory", "much"), "--memory much is not an amount", "80GiB"),
        (("--max-batch", "--memory", "0GiB"), "--memory 0GiB is not an amount", "80GiB"),
        (("--method", "fulll"), "Unknown method 'fulll'", "full"),
        (("--method", "kivi@bits=3"), "kivi@bits", ""),
        (("--device", "cuda:99"), "cuda:99", ""),
        (("--device", "auto-map"), "one GPU", "cuda:0"),
        (("--load-in", "4bit"), "8 or 4 bits", "Leave --load-in out"),
        (("--dtype", "int4"), "dtype=int4", "float32"),
    ],
)
def test_bad_input_is_one_sentence_and_a_next_step(cli: Cli, words: tuple[str, ...], sentence: str, step: str) -> None:
    done = cli(*TINY, *words)
    assert done.code == 2
    assert sentence in done.err
    assert step in done.err
    assert "Traceback" not in done.err
    assert not Path("runs").exists()


def small(folder: Path, **facts: Any) -> Path:
    config = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 32, "vocab_size": 99}
    config |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, **facts}
    (folder / "config.json").write_text(json.dumps(config))
    return folder / "config.json"


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"num_hidden_layers": -2}, "num_hidden_layers is -2"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"hidden_size": 33}, "The hidden size (33) is not a multiple"),
        ({"num_attention_heads": 0}, "config of a model"),
    ],
)
def test_a_config_that_makes_no_model(cli: Cli, tmp_path: Path, facts: dict[str, int], sentence: str) -> None:
    done = cli("bench", "--random-weights", small(tmp_path, **facts), "--lengths", "8")
    assert done.code == 2
    assert sentence in done.err
    assert "Traceback" not in done.err


def test_a_config_that_changed_is_another_model(cli: Cli, tmp_path: Path) -> None:
    command = ("bench", "--random-weights", tmp_path / "config.json", "--method", "full", "--lengths", "8")
    command += ("--new-tokens", "2", "--repeats", "1", "--out", "r")
    small(tmp_path)
    cli(*command)
    small(tmp_path, num_hidden_layers=3)
    done = cli(*command)
    assert done.code == 0
    assert "measured before" not in done.err
    two, three = lines("r")
    assert two["identity"] != three["identity"]
    assert two["weight_bytes"] < three["weight_bytes"]
    assert "1 of 1 were measured before" in cli(*command).err


def test_lengths_beyond_the_window(cli: Cli, tmp_path: Path) -> None:
    options = ("--method", "full", "--new-tokens", "2", "--repeats", "1")
    learned = {"model_type": "gpt2", "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
    done = cli("bench", "--random-weights", small(tmp_path, **learned), "--lengths", "63", *options)
    assert done.code == 0, done.err  # the second new token is not fed back: positions 0 to 63
    done = cli("bench", "--random-weights", tmp_path / "config.json", "--lengths", "8,64", *options)
    assert done.code == 2
    assert "learned positions for 64 tokens" in done.err
    rotated = small(tmp_path, max_position_embeddings=64)
    done = cli("bench", "--random-weights", rotated, "--lengths", "80", *options)
    assert done.code == 0
    assert "was trained for 64 tokens" in done.err


def test_an_architecture_larger_than_memory_is_refused_before_it_is_made(cli: Cli, tmp_path: Path) -> None:
    config = {"model_type": "llama", "hidden_size": 65536, "intermediate_size": 65536, "vocab_size": 1000}
    config |= {"num_hidden_layers": 200, "num_attention_heads": 512, "num_key_value_heads": 512}
    (tmp_path / "config.json").write_text(json.dumps(config))
    done = cli("bench", "--random-weights", tmp_path / "config.json", "--lengths", "8")
    assert done.code == 2
    assert "GiB are free on cpu" in done.err
    assert not Path("runs").exists()
    assert available_bytes() > 0


def test_a_line_can_be_recomputed_by_hand(cli: Cli) -> None:
    done = cli(*TINY, "--method", "full,kivi@bits=2", "--lengths", "300", "--batch", "3", "--json", "--out", "r")
    assert done.code == 0, done.err
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert rows == lines("r")
    assert [row["method"] for row in rows] == ["full", "kivi@bits=2"]
    full = rows[0]
    # tiny: 4 layers, 2 KV heads of 32, fp32; three prompts of 300 tokens
    assert full["kv_bytes"] == full["kv_bytes_full"] == 3 * 2 * 4 * 2 * 32 * 4 * 300
    # Three tokens fit; room is taken in steps of 64. A CPU's stack also holds, a layer, which places are seen.
    assert full["kv_end_bytes"] == 3 * 2 * 4 * 2 * 32 * 4 * 320 + 4 * 3 * (320 + 8)
    assert full["weight_bytes"] == 296_000 * 4
    assert full["peak_bytes"] == full["weight_bytes"] + full["kv_peak_bytes"] + full["activation_bytes"]
    for row in rows:
        passes = row["seconds"]
        assert [len(one["first_token"]) for one in passes] == [3, 3]  # two passes of three prompts
        assert row["time_to_first_token"] == statistics.median(s for one in passes for s in one["first_token"])
        assert row["decode_tokens_per_second"] == 3 * 3 / statistics.median(one["decode"] for one in passes)
        total = [one["prefill"] + one["decode"] for one in passes]
        assert row["samples_per_second"] == pytest.approx(3 / statistics.median(total))
        assert all(sum(one["first_token"]) <= one["prefill"] for one in passes)
        grown = min(row["kv_end_bytes"] - row["kv_held_bytes"], 3 * 2 * 4 * 2 * 32 * 4 * 3)  # 3 tokens are fed back
        read = (296_000 - 260 * 64) * 4 + row["kv_read_bytes"] + grown // 2
        assert row["kv_read_bytes"] == row["kv_held_bytes"]  # neither method looks anything up
        assert row["step_bytes"] == read
        assert row["limit_tokens_per_second"] == pytest.approx(3 * 1e10 / read)
        assert (row["status"], row["weights"], row["batch"], row["prompt_tokens"]) == ("ok", "random", 3, 300)
        assert row["machine"]["threads"] == torch.get_num_threads()


def test_what_is_there_is_kept_and_the_rest_is_measured(cli: Cli) -> None:
    first = cli(*TINY, "--method", "full", "--lengths", "16", "--out", "r")
    assert first.code == 0
    before = lines("r")
    more = cli(*TINY, "--method", "full,streamingllm@budget=8", "--lengths", "16,32", "--out", "r")
    assert more.code == 0
    assert "1 of 4 were measured before" in more.err
    assert lines("r")[:1] == before
    assert [(row["method"], row["prompt_tokens"]) for row in lines("r")[1:]] == [
        ("streamingllm@budget=8", 16), ("full", 32), ("streamingllm@budget=8", 32),
    ]  # fmt: skip
    again = cli(*TINY, "--method", "full", "--lengths", "16", "--out", "r", "--again", "--json")
    assert again.code == 0
    assert json.loads(again.out)["key"] == before[0]["key"]
    assert len(lines("r")) == 5
    report = json.loads(cli("report", "r", "--format", "json").out)
    assert len(report["efficiency"]) == 4  # the latest of a cell counts
    assert report["efficiency"][0]["time_to_first_token"] == lines("r")[-1]["time_to_first_token"]


def test_other_settings_are_other_measurements(cli: Cli) -> None:
    for words in ((), ("--dtype", "bfloat16"), ("--repeats", "1"), ("--prefill-chunk", "5")):
        assert cli(*TINY, "--method", "full", "--lengths", "16", "--out", "r", *words).code == 0
    assert len(lines("r")) == 4


def test_the_largest_batch_by_the_byte_model(cli: Cli) -> None:
    words = ("--method", "full,streamingllm@budget=16", "--lengths", "64", "--max-batch", "--memory", "64MiB")
    done = cli(*TINY, *words, "--json", "--out", "r")
    assert done.code == 0, done.err
    rows = [row for row in lines("r") if row["kind"] == "max_batch"]
    assert [row["tried"] for row in rows] == [False, False]
    for row in rows:
        model = row["byte_model"]
        by_hand = (64 * 2**20 - model["weights"] - model["base"]) // model["row"]
        assert row["max_batch"] == row["predicted"] == by_hand
    assert rows[0]["byte_model"]["kv"] == 2 * 4 * 2 * 32 * 4 * 64
    assert rows[1]["max_batch"] > 2 * rows[0]["max_batch"]
    assert cli(*TINY, *words, "--json", "--out", "r").code == 0
    assert len(lines("r")) == 4  # kept


def test_where_not_even_one_fits_it_is_said_what_one_takes(cli: Cli) -> None:
    words = ("--method", "full", "--lengths", "64", "--max-batch", "--memory", "1200kB", "--out", "r")
    done = cli(*TINY, *words, "--json")
    (row,) = (row for row in lines("r") if row["kind"] == "max_batch")
    model = row["byte_model"]
    one = model["weights"] + max(model["read"], model["compress"], model["alone"])
    assert (done.code, row["max_batch"], row["least_bytes"]) == (0, 0, one)
    sentence = f"full at 64: not one sequence fits 1.14 MiB; with the weights it takes {one / 2**20:.2f} MiB"
    assert sentence in done.err
    assert sentence in " ".join(cli(*TINY, *words).out.split())


def test_a_cell_that_fails_is_told_and_the_others_are_measured(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from lcbench.bench import sweep

    real = sweep.measure

    def short_of_memory(loaded: Any, method: Any, work: Any) -> Any:
        if work.prompt_tokens == 32:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate …")
        return real(loaded, method, work)

    with monkeypatch.context() as patch:
        patch.setattr(sweep, "measure", short_of_memory)
        done = cli(*TINY, "--method", "full", "--lengths", "16,32,48", "--out", "r")
    assert done.code == 1
    assert "full at 32 x 1: out of memory" in " ".join(done.out.split())
    assert [row["status"] for row in lines("r")] == ["ok", "error", "ok"]
    assert cli(*TINY, "--method", "full", "--lengths", "16,32,48", "--out", "r").code == 0  # tried again, alone
    assert [row["status"] for row in lines("r")] == ["ok", "error", "ok", "ok"]


def test_a_run_shows_speed_below_its_scores(cli: Cli, tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "m")
    with RunDirectory.create_or_continue(
        "r", {"model": {"name": str(model)}, "methods": ["full"], "tasks": ["qasper"]}, {"model": {"name": str(model)}}
    ) as run:
        run.append(
            "full", "qasper", PredictionRecord("Paris", ["Paris"], None, 3, "0", kv_bytes=100, kv_bytes_full=100)
        )
    info = (Path("r") / "run.json").read_bytes()
    done = cli("bench", "--model", model, "--method", "full", "--lengths", "16", "--new-tokens", "2", "--out", "r")
    assert done.code == 0, done.err
    assert (Path("r") / "run.json").read_bytes() == info
    shown = cli("report", "r").out
    assert shown.index("100.00") < shown.index("first token") < shown.index("each method alone")
    assert "lcbench report r" in done.err
    markdown = cli("report", "r", "--format", "md").out
    assert "Speed and memory, each method alone" in markdown
    assert lines("r")[0]["weights"] == "checkpoint"
    assert len(lines("r")[0]["identity"]) == 64


def test_a_folder_of_the_bench_is_never_taken_for_the_latest_run(cli: Cli) -> None:
    assert cli(*TINY, "--method", "full", "--lengths", "8").code == 0
    assert Path("runs/bench-tiny/efficiency.jsonl").is_file()
    error = cli("score", "runs/bench-tiny").err
    assert "no predictions" in error
    assert "lcbench report runs/bench-tiny" in error
    with RunDirectory.create_or_continue(
        "runs/old", {"model": {"name": "m"}, "methods": ["full"], "tasks": ["qasper"]}, {}
    ) as run:
        run.append("full", "qasper", PredictionRecord("Paris", ["Paris"], None, 3, "0"))
    assert cli(*TINY, "--method", "full", "--lengths", "9").code == 0
    assert "qasper" in cli("score").out


def test_a_run_that_is_being_written_is_left_alone(cli: Cli) -> None:
    assert cli(*TINY, "--method", "full", "--lengths", "8", "--out", "r").code == 0
    import subprocess
    import sys

    holder = "import sys, time\nfrom pathlib import Path\nfrom lcbench.store.lock import RunLock\n"
    holder += "lock = RunLock(Path('r'))\nlock.acquire()\nprint('held', flush=True)\ntime.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", holder], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        done = cli(*TINY, "--method", "full", "--lengths", "9", "--out", "r")
        assert done.code == 2
        assert "in use" in done.err
    finally:
        other.kill()
        other.wait()
    assert len(lines("r")) == 1


def test_a_broken_line_is_named(cli: Cli) -> None:
    assert cli(*TINY, "--method", "full", "--lengths", "8", "--out", "r").code == 0
    with (Path("r") / "efficiency.jsonl").open("a") as file:
        file.write('{"speed": 3}\n')
    done = cli("report", "r")
    assert done.code == 2
    assert "line 2 is not a measurement" in done.err
