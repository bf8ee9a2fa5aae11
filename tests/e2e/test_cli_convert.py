"""``lcbench convert`` as a user types it: conversions that run afterwards, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from linear_models import linear_model, save_linear
from tiny import save_tiny

Cli = Callable[..., Any]
TASK = "passkey@lengths=20,depths=2,repeats=1,digits=3,max_new_tokens=5"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "llama")


def predictions(run: str) -> list[dict[str, Any]]:
    (file,) = Path(run, "predictions/full").iterdir()
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def go(cli: Cli, model: Path | str, run: str) -> list[dict[str, Any]]:
    done = cli("run", "--model", model, "--method", "full", "--task", TASK, "--out", run)
    assert done.code == 0, done.err
    return predictions(run)


def test_a_conversion_that_loses_nothing_answers_as_the_model(llama: Path, cli: Cli) -> None:
    made = cli("convert", "mha2mla", "--model", llama, "--rope-dims", 32, "--rank", 32, "--out", "mla")
    assert made.code == 0, made.err
    assert "128 values a token and layer instead of 128" in made.out
    plain, latent = go(cli, llama, "plain"), go(cli, "mla", "latent")
    assert [r["pred"] for r in latent] == [r["pred"] for r in plain]
    assert [r["kv_bytes"] for r in latent] == [r["kv_bytes"] for r in plain]


def test_a_conversion_with_chosen_pairs_holds_what_it_says(llama: Path, cli: Cli) -> None:
    Path("text.txt").write_text("words and more words, " * 900)
    made = cli(
        "convert", "mha2mla", "--model", llama, "--rope-dims", 8, "--rank", 12, "--select", "2-norm",
        "--text", "text.txt", "--samples", 2, "--out", "mla",
    )  # fmt: skip
    assert made.code == 0, made.err
    assert "40 values a token and layer instead of 128 (31.2%)" in made.out
    config, facts = (json.loads(Path("mla", name).read_text()) for name in ("config.json", "lcbench.json"))
    assert (facts["select"], facts["rank"], facts["fine_tuned"]) == ("2-norm", 24, False)
    assert len({tuple(head) for layer in config["rope_pairs"] for head in layer}) > 1
    for record in go(cli, "mla", "run"):
        assert record["kv_bytes"] == 4 * 4 * 40 * record["prompt_tokens"]
        assert record["kv_bytes"] == record["kv_bytes_full"]


def test_a_published_rwkv5_file_becomes_a_model(cli: Cli, tmp_path: Path) -> None:
    model = linear_model("rwkv5")
    tensors = {k: v.bfloat16() for k, v in model.state_dict().items()}
    torch.save(tensors, "RWKV-5-tiny-ctx4096.pth")
    Path("vocab.txt").write_text("".join(f"{i + 1} {bytes([i])!r} 1\n" for i in range(256)), encoding="utf-8")
    words = ("convert", "rwkv5", "--from", "RWKV-5-tiny-ctx4096.pth", "--vocabulary", "vocab.txt", "--out", "model")
    made = cli(*words)
    assert made.code == 0, made.err
    records = go(cli, "model", "run")
    assert len({r["kv_bytes"] for r in records}) == 1
    assert records[0]["kv_bytes"] == 3 * 4 * (2 * 64 + 8 * 8 * 8)
    again = cli(*words)
    assert again.code == 2
    assert "is there already" in again.err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("mha2mlo", "--out", "x"), "Did you mean 'mha2mla'"),
        (("mha2mla", "--out", "x"), "needs --rope-dims"),
        (("mha2mla", "--rope-dims", "8", "--out", "x"), "needs --rank"),
        (("mha2mla", "--rope-dims", "7", "--rank", "4", "--out", "x"), "even number"),
        (("mha2mla", "--rope-dims", "8", "--rank", "400", "--out", "x"), "not between 1 and"),
        (("mha2mla", "--rope-dims", "8", "--rank", "4", "--select", "best", "--out", "x"), "none of high"),
        (("mha2mla", "--rope-dims", "10", "--rank", "4", "--select", "uniform", "--out", "x"), "evenly"),
        (("rwkv5", "--out", "x"), "needs --from"),
        (("rwkv5", "--from", "none.pth", "--out", "x"), "needs --vocabulary"),
    ],
)
def test_what_cannot_be_done_is_said(words: tuple[str, ...], sentence: str, llama: Path, cli: Cli) -> None:
    done = cli("convert", *words, "--model", llama)
    assert done.code == 2
    assert sentence in done.err
    assert "Traceback" not in done.err
    assert not Path("x").exists()


def test_files_that_are_something_else_are_named(cli: Cli, tmp_path: Path) -> None:
    Path("vocab.txt").write_text("1 'a' 1\n")
    Path("junk.pth").write_text("junk")
    torch.save({"emb.weight": torch.zeros(4, 4), "blocks.0.att.time_maa_k": torch.zeros(4)}, "rwkv6.pth")
    Path("bad.txt").write_text("a line\n")
    for source, vocabulary, sentence in (
        ("none.pth", "vocab.txt", "cannot be read"),
        ("junk.pth", "vocab.txt", "cannot be read"),
        ("rwkv6.pth", "vocab.txt", "RWKV-6"),
        ("junk.pth", "bad.txt", "line 1"),
    ):
        done = cli("convert", "rwkv5", "--from", source, "--vocabulary", vocabulary, "--out", "x")
        assert done.code == 2, done.err
        assert sentence in done.err
        assert not Path("x").exists()
    done = cli("convert", "mha2mla", "--model", save_linear(tmp_path / "m", "mamba"), "--rope-dims", 8, "--rank", 4,
               "--out", "x")  # fmt: skip
    assert done.code == 2
    assert "mamba" in done.err
