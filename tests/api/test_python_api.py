"""`import lcbench`: quick, and every name does what its command does. The README's examples run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import lcbench
from lcbench.errors import BadValue, LcbenchError, ModelError, UnknownName
from lcbench.methods.full import Full
from lcbench.methods.memory.lift import Lift
from tiny import save_tiny

TASK = "passkey@lengths=20,depths=3,repeats=1,digits=3,max_new_tokens=5"
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Plain(Full):
    """A method that nobody has registered."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny", window=2048, seed=1)


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return lcbench.load_model(str(folder))


def test_importing_is_quick() -> None:
    code = "import sys, lcbench; dir(lcbench); print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_name_is_there() -> None:
    for name in lcbench.__all__:
        assert getattr(lcbench, name) is not None
    assert set(dir(lcbench)) == set(lcbench.__all__)
    with pytest.raises(AttributeError, match="genrate"):
        lcbench.genrate  # noqa: B018


def test_generate_tells_the_answer_and_the_bytes(model: Any) -> None:
    prompts = ["The key is 4711. " * 12, "Where is the key? " * 8]
    full = lcbench.generate(model, prompts, max_new_tokens=6)
    less = lcbench.generate(model, prompts, "snapkv@budget=0.25,window=8", max_new_tokens=6)
    assert [g.prompt_tokens for g in full] == [g.prompt_tokens for g in less]
    for one, other in zip(full, less, strict=True):
        assert one.kv_bytes == one.kv_bytes_full == other.kv_bytes_full
        assert 3.5 < other.kv_bytes_full / other.kv_bytes < 4.5
        assert len(one.token_ids) <= 6
    assert lcbench.generate(model, prompts[0], max_new_tokens=6) == full[:1]
    chat = lcbench.generate(model, prompts[0], max_new_tokens=6, chat=True)
    assert chat[0].prompt_tokens > full[0].prompt_tokens


def test_lift_learns_a_text_beyond_the_window_and_reads_it_cut(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = lcbench.load_model(str(save_tiny(folder.parent / "small", window=128, seed=1)))
    learned: list[int] = []
    learn = Lift._learn

    def listening(self: Any, model: Any, weights: Any, lesson: Any, draws: Any) -> list[float]:
        learned.append(len(lesson))
        return learn(self, model, weights, lesson, draws)

    monkeypatch.setattr(Lift, "_learn", listening)
    quick = "lift@segment=64,offset=64,epochs=1,rank=4"
    (cut,) = lcbench.generate(small, "The key is 4711. " * 20, quick, max_new_tokens=8)
    assert cut.prompt_tokens == 120
    assert learned[0] > 300
    (idle,) = lcbench.generate(small, "a" * 400, "lift@epochs=0", max_new_tokens=8)
    (full,) = lcbench.generate(small, "a" * 119, max_new_tokens=8)  # a start of text, then letters
    assert (idle.token_ids, idle.prompt_tokens) == (full.token_ids, full.prompt_tokens)
    with pytest.raises(BadValue, match="do not fit the window of 128"):
        lcbench.generate(small, "abc", quick, max_new_tokens=127)


def test_wrong_calls_say_what_is_wrong(model: Any) -> None:
    with pytest.raises(UnknownName, match="snapvk"):
        lcbench.generate(model, "a", "snapvk")
    with pytest.raises(BadValue, match="do not fit the window of 2048"):
        lcbench.generate(model, "a" * 2100)
    with pytest.raises(BadValue, match="max_new_tokens"):
        lcbench.generate(model, "a", max_new_tokens=0)
    with pytest.raises(ModelError, match="nothing-here"):
        lcbench.load_model("./nothing-here")
    with pytest.raises(UnknownName, match="dtpye"):
        lcbench.load_model("demo", dtpye="float32")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: lcbench.generate(m, [3]), "A prompt is of type int"),
        (lambda m: lcbench.generate(m, b"abc"), "A prompt is of type bytes"),
        (lambda m: lcbench.generate(m, {"a": "b"}), "A prompt is of type dict"),
        (lambda m: lcbench.generate(m, "a\ud800"), "surrogate"),
        (lambda m: lcbench.generate(3, "a"), "model is of type int"),
        (lambda m: lcbench.generate(m.model, "a"), "what lcbench.load_model gives"),
        (lambda m: lcbench.generate(m, "a", ["full"]), "method is of type list"),
        (lambda m: lcbench.generate(m, "a", max_new_tokens="8"), "max_new_tokens is of type str"),
        (lambda m: lcbench.generate(m, "a", seed=None), "seed is of type NoneType"),
        (lambda m: lcbench.generate(m, "a", home=3), "home is of type int"),
        (lambda m: lcbench.run(m, "full", TASK), "a run wants a name"),
        (lambda m: lcbench.run("x", "full", TASK, out=3), "out is of type int"),
        (lambda m: lcbench.run("openai:x", "full", TASK, base_url="http://127.0.0.1:9/v1", timeout=None), "above 0"),
        (lambda m: lcbench.run("openai:x", "full", TASK, base_url="http://127.0.0.1:9/v1", concurrency=0), "above 0"),
        (lambda m: lcbench.score(None), "path is of type NoneType"),
        (lambda m: lcbench.score("here", jbos=1), "jbos"),
        (lambda m: lcbench.compare(None, "full"), "a side is of type NoneType"),
        (lambda m: lcbench.compare("full", "kivi", run=3), "run is of type int"),
        (lambda m: lcbench.generate(m, "a", seed=2**80), "does not fit 64 bits"),
        (lambda m: lcbench.load_model("demo", method="full"), "Unknown option 'method' of load_model"),
        (lambda m: lcbench.score(".", longscore="yes"), "longscore is of type str"),
        (lambda m: lcbench.score(".", resamples="many"), "resamples is of type str"),
        (lambda m: lcbench.score(".", jobs=True), "jobs is of type bool"),
        (lambda m: lcbench.register_task("mine")(3), "not a dataclass of kind"),
        (lambda m: lcbench.register_task(type(m)), "LoadedModel cannot be the name of a task"),
        (lambda m: lcbench.register_method("mine")(Plain), "'mine' has no traits"),
        (lambda m: lcbench.register_method("mine", paper="")(Plain), "'mine' has no traits"),
        (lambda m: lcbench.register_method(Plain), "Plain cannot be the name of a method"),
        (lambda m: lcbench.register_method("My Method@2"), "'My Method@2' cannot be the name of a method"),
    ],
)
def test_arguments_of_a_wrong_kind_cost_one_sentence(
    model: Any, call: Callable[[Any], Any], words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(LcbenchError, match=re.escape(words)) as found:
        call(model)
    assert "\n" not in found.value.message
    assert found.value.next_step
    assert capfd.readouterr().out == ""


def test_paths_may_be_text(model: Any, tmp_path: Path) -> None:
    assert lcbench.generate(model, ("abc",), max_new_tokens=2, home=str(tmp_path / "home"))[0].new_tokens <= 2


def test_run_score_and_compare_are_the_commands(folder: Path, cli: Callable[..., Any]) -> None:
    methods = ["full", "streamingllm@budget=32"]
    done = lcbench.run(str(folder), methods, TASK, out="here")
    assert (done.written, done.reused, done.failed) == (6, 0, 0)
    told = cli("run", "--model", folder, "--method", ",".join(methods), "--task", TASK, "--out", "there")
    assert told.code == 0, told.err
    for file in (Path("there") / "predictions").rglob("*.jsonl"):
        assert file.read_bytes() == (Path("here") / file.relative_to("there")).read_bytes()
    assert lcbench.run(str(folder), methods, TASK, out="here").reused == 6
    scores = lcbench.score(done)
    assert scores == json.loads(Path("here/scores.json").read_text())
    found = lcbench.compare(*methods, run=done)
    assert found.verdict().endswith(".")
    assert found.overall.n == 3


def examples(title: str) -> str:
    """The Python blocks of a section of the README."""
    text = (ROOT / "README.md").read_text("utf-8")
    section = text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"```python\n(.*?)```", section, re.S)
    assert blocks, title
    return "\n".join(blocks)


def test_the_examples_of_the_readme_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = examples("From Python")
    assert '"demo"' in code
    exec(compile(code.replace('"demo"', repr(str(folder))), "README.md", "exec"), {})
    assert "snapkv" in capsys.readouterr().out
