"""`lcbench run --model openai:NAME` against our own server: the answers of the local run, and every kind of trouble."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from lcbench.methods.base import PromptTransform, Traits
from lcbench.methods.registry import method
from lcbench.methods.rewriting import PromptText
from lcbench.server.http import Server
from lcbench.server.service import Service
from lcbench.tasks import registry
from lcbench.tasks.passkey import Passkey
from remote.conftest import Canned, Faults, running

TASK = "passkey@lengths=20,depths=3,repeats=1,digits=3,max_new_tokens=6"
CHAT_TASK = TASK.replace("passkey", "spoken-passkey")


@dataclass(frozen=True)
class SpokenPasskey(Passkey):
    """Passkeys asked as a chat."""

    name: ClassVar[str] = "spoken-passkey"
    chat: ClassVar[bool] = True


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The task is there for these tests alone."""
    monkeypatch.setitem(registry._registered, SpokenPasskey.name, SpokenPasskey)


Cli = Callable[..., Any]


def asked(
    server: Server, *more: object, task: str = TASK, out: str = "served", api: str | None = "completions"
) -> list[Any]:
    where = ["--base-url", server.url, *(["--api", api] if api and "--api" not in more else [])]
    return ["run", "--model", "openai:tiny", *where, "--task", task, "--out", out, *more]


def records(run: str | Path, task: str = TASK, method: str = "full") -> list[dict[str, Any]]:
    (file,) = [f for f in (Path(run) / "predictions" / method).iterdir() if f.name.startswith(task.partition("@")[0])]
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def answers(run: str | Path, task: str = TASK) -> dict[str, tuple[Any, ...]]:
    return {r["_id"]: (r["pred"], r["prompt_tokens"], r["new_tokens"], r["answers"]) for r in records(run, task)}


def test_a_served_model_answers_as_the_local_one(cli: Cli, service: Service, folder: Path) -> None:
    """Bare and chat prompts, by text, by token ids and by chat: always what the run on this machine answers."""
    both = f"{TASK},{CHAT_TASK}"
    here = cli("run", "--model", folder, "--task", both, "--out", "local")
    assert here.code == 0, here.err
    named = ["--tokenizer", str(folder)]
    for number, (options, apis) in enumerate([
        ([], ("completions", "chat")),
        (named, ("completions", "completions")),
        ([*named, "--api", "token-ids"], ("token-ids", "token-ids")),
    ]):  # fmt: skip
        faults, out = Faults(), f"served{number}"
        with running(service, faults) as server:
            done = cli(*asked(server, *options, task=both, out=out, api=None))
        assert done.code == 0, done.err
        for task, api in zip((TASK, CHAT_TASK), apis, strict=True):
            assert answers(out, task) == answers("local", task), (options, api)
            first = records(out, task)[0]
            assert first["served"]["api"] == api
            assert first["served"]["usage"]["completion_tokens"] == first["new_tokens"]
            assert first["decode"] == "served"
            unknown = ("kv_bytes", "kv_bytes_full", "resident_bytes", "kept_tokens", "near_ties")
            assert [first[name] for name in unknown] == [None] * 5
        assert {body.get("temperature", 0) for body in faults.bodies} == {0}
        assert faults.bodies[-1]["max_tokens"] == 6
        assert not (Path(out) / "events.jsonl").exists(), "the tokenizer counts as the server does"
        told = json.loads((Path(out) / "run.json").read_text())["provenance"]["model"]["asked"]
        assert ("its own chat template" in told) == ("chat" in apis)
        pair = cli("compare", "local::full", f"{out}::full", "--json")
        if options:  # what the model reads is known to be the same
            assert pair.code == 0, pair.err
        else:
            assert pair.code == 2
            assert "cannot be paired" in pair.err


_clean: dict[str, Any] = {}


@pytest.fixture
def clean(cli: Cli, service: Service) -> dict[str, Any]:
    """What a server without faults answers; asked once."""
    if not _clean:
        with running(Canned(service.loaded, service.method, service.name)) as server:
            done = cli(*asked(server, out="clean"))
        assert done.code == 0, done.err
        _clean.update(answers("clean"))
    return _clean


def test_reports_do_without_bytes(cli: Cli, server: Server) -> None:
    assert cli(*asked(server)).code == 0
    for arguments in (["score", "served"], ["report", "served"], ["report", "served", "--format", "md"]):
        told = cli(*arguments)
        assert told.code == 0, told.err
    assert "behind http://127.0.0.1" in " ".join(told.out.split())
    page = cli("report", "served", "--out", "page.html")
    assert page.code == 0, page.err
    cells = json.loads(cli("report", "served", "--format", "json").out)
    assert "kv_bytes" in json.dumps(cells)
    same = cli("compare", "served", "served", "--json")
    assert "Traceback" not in same.err


def test_tokens_that_nobody_counted_are_null(cli: Cli, service: Service, folder: Path) -> None:
    with running(service, Faults(always="echo")) as server:  # which tells no usage
        assert cli(*asked(server)).code == 0
        assert cli(*asked(server, "--tokenizer", str(folder), out="counted")).code == 0
    assert {(r["status"], r["prompt_tokens"], r["new_tokens"]) for r in records("served")} == {("ok", None, None)}
    assert {r["new_tokens"] for r in records("counted")} == {None}
    assert all(r["prompt_tokens"] > 0 for r in records("counted"))
    for words in (
        "report served --out page.html",
        "report served",
        "score served",
        "export served --out lm",
        "export served --format parquet --out p.parquet",
    ):
        told = cli(*words.split())
        assert told.code == 0, told.err


def test_bare_tasks_go_to_completions_and_chats_to_chat(cli: Cli, server: Server, folder: Path) -> None:
    """Without a tokenizer each task is asked as the local run asks it: template by the server, or bare."""
    from lcbench.config.spec import make_spec
    from lcbench.remote.asking import Asker
    from lcbench.remote.session import choose_apis
    from lcbench.tasks.registry import resolve

    spec = make_spec({"model": "openai:tiny", "base_url": server.url})
    tasks = [*resolve("qasper"), *resolve("trec")]
    asker = Asker.of(spec.model, 30)
    about = asker.about()
    assert (about.models, about.window) == (("tiny",), 2048)
    assert about.lcbench is not None
    assert about.lcbench["method"] == "full"
    assert choose_apis(spec, tasks, None, asker, about) == {"qasper": "chat", "trec": "completions"}
    assert choose_apis(spec, tasks, object(), asker, about) == {"qasper": "completions", "trec": "completions"}


def test_a_server_of_chats_alone_gets_chats(cli: Cli, server: Server, faults: Faults, folder: Path) -> None:
    faults.only_chat = True
    done = cli(*asked(server, "--tokenizer", folder, api=None))
    assert done.code == 0, done.err
    assert records("served")[0]["served"]["api"] == "chat"
    bare = cli(*asked(server, "--chat", "none", out="bare", api=None))
    assert bare.code == 2
    assert "exact prompts" in bare.err


@pytest.mark.parametrize("trouble", ["429", "500", "503/0.05", "cut", "malformed"])
def test_passing_trouble_leaves_no_trace(
    cli: Cli, server: Server, faults: Faults, clean: dict[str, Any], trouble: str
) -> None:
    faults.script = [trouble, trouble, "good", trouble]
    done = cli(*asked(server, "--concurrency", 2))
    assert done.code == 0, done.err
    assert answers("served") == clean


def test_a_server_that_asks_to_wait_is_waited_for(cli: Cli, server: Server, faults: Faults) -> None:
    faults.script = ["429/1"]
    assert cli(*asked(server, "--concurrency", 1)).code == 0
    assert faults.times[1] - faults.times[0] >= 1


def test_a_late_answer_is_asked_for_again(cli: Cli, server: Server, faults: Faults, clean: dict[str, Any]) -> None:
    faults.script = ["good", "slow:1.5"]
    done = cli(*asked(server, "--timeout", "0.7", "--concurrency", 1))
    assert done.code == 0, done.err
    assert answers("served") == clean
    assert len(faults.times) == len(clean) + 1


def test_calls_at_a_time(cli: Cli, server: Server, faults: Faults) -> None:
    faults.always = "slow:0.05"
    assert cli(*asked(server, "--concurrency", 3)).code == 0
    assert faults.most == 3


def test_lasting_trouble_is_an_error_record_and_the_next_run_mends_it(
    cli: Cli, server: Server, faults: Faults, clean: dict[str, Any]
) -> None:
    faults.script = ["good", "400:the prompt is not nice", "good"]
    done = cli(*asked(server, "--concurrency", 1))
    assert done.code == 1
    (failed,) = [r for r in records("served") if r["status"] == "error"]
    assert failed["error"] == "the server answered 400: the prompt is not nice"
    assert len(faults.bodies) == 3
    again = cli(*asked(server, "--concurrency", 1))
    assert again.code == 0, again.err
    assert "2 were there already" in again.out
    assert {r["_id"]: r["status"] for r in records("served")} == dict.fromkeys(clean, "ok")
    assert answers("served") == clean


@pytest.mark.parametrize(
    ("trouble", "words"), [("401", "LCBENCH_API_KEY"), ("302", "redirects"), ("404", "has no tiny")]
)
def test_what_cannot_get_better_ends_the_run(
    cli: Cli, server: Server, faults: Faults, trouble: str, words: str
) -> None:
    faults.script = ["good", *[trouble] * 20]
    done = cli(*asked(server, "--concurrency", 1))
    assert done.code == 2
    assert words in " ".join(done.err.split())
    assert "Traceback" not in done.err
    assert len(records("served")) == 1
    faults.script = []
    assert cli(*asked(server)).code == 0
    assert len(records("served")) == 3


def test_a_server_that_is_not_there(cli: Cli, server: Server) -> None:
    command = asked(server)
    server.shutdown()
    server.server_close()
    done = cli(*command)
    assert done.code == 2
    assert "does not answer" in done.err
    assert not Path("served").exists()


def test_keys_come_from_the_environment_and_go_nowhere_else(
    cli: Cli, server: Server, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "sk-very-secret-1234567890"
    monkeypatch.setenv("LCBENCH_API_KEY", secret)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-openai-alone")
    server.key = secret
    faults.script = ["good", f"400:your key {secret} is fine, the prompt is not"]
    told = [cli(*asked(server, "--dry-run")), cli(*asked(server, "--log", "json", "--concurrency", 1))]
    assert [one.code for one in told] == [0, 1]
    server.key = "another"
    told.append(cli(*asked(server)))
    assert told[-1].code == 2
    assert "Check LCBENCH_API_KEY" in told[-1].err
    assert set(faults.keys) == {f"Bearer {secret}"}
    kept = b"".join(f.read_bytes() for f in Path().rglob("*") if f.is_file())
    for text in (kept.decode(), *(one.out + one.err for one in told)):
        assert "sk-" not in text
    assert "your key *** is fine" in kept.decode()


def test_a_key_that_an_answer_echoes_stands_in_no_file(
    cli: Cli, server: Server, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "sk-SECRET4242"
    monkeypatch.setenv("LCBENCH_API_KEY", secret)
    server.key, faults.always = secret, "echo"
    assert cli(*asked(server)).code == 0
    assert cli("score", "served").code == 0
    kept = {f: f.read_text() for f in Path("served").rglob("*") if f.is_file()}
    assert any('my key is Bearer ***"' in text for path, text in kept.items() if path.suffix == ".jsonl")
    assert not [path for path, text in kept.items() if secret in text]


def test_keys_that_are_words_leave_answers_alone() -> None:
    from lcbench.endpoint.client import _cleared

    said = {"choices": [{"text": "sk-No-Key-Required: the required EMPTY sk-no-key-requ", "index": 0}], "id": None}
    text = _cleared(said, "sk-no-key-required")["choices"][0]["text"]
    assert text == "***: the required EMPTY sk-no-key-requ"


def test_dry_run_says_how_it_would_ask_and_asks_nothing(cli: Cli, server: Server, faults: Faults, folder: Path) -> None:
    done = cli(*asked(server, "--dry-run", task=CHAT_TASK, api=None))
    assert done.code == 0, done.err
    text = " ".join(done.out.split())
    assert "the server applies its own chat template" in text
    assert "not counted" in text
    assert "3 calls, 8 at a time" in text
    assert "window 2,048 tokens" in text
    assert not faults.bodies
    counted = cli(*asked(server, "--dry-run", "--tokenizer", folder, task=CHAT_TASK))
    assert "in the chat template of" in " ".join(counted.out.split())
    assert "not counted" not in counted.out
    assert not faults.bodies
    assert not Path("served").exists()


def test_long_prompts_are_cut_with_the_named_tokenizer(
    cli: Cli, server: Server, service: Service, folder: Path
) -> None:
    task = "passkey@lengths=600,depths=2,repeats=1,max_new_tokens=4"
    whole = cli(*asked(server, task=task, out="whole"))
    assert whole.code == 1
    assert "maximum context length is 2048" in records("whole", task)[0]["error"]
    options = ["--tokenizer", folder, "--over-length", "truncate"]
    with running(service) as real:
        done = cli(*asked(real, *options, task=task, out="cut"))
    assert done.code == 0, done.err
    mine = records("cut", task)[0]
    assert mine["truncated_from"] > 2048 >= mine["prompt_tokens"] + 4
    local = cli("run", "--model", folder, "--task", task, "--out", "here", "--over-length", "truncate")
    assert local.code == 0, local.err
    here = next(r for r in records("here", task) if r["_id"] == mine["_id"])
    assert (mine["pred"], mine["prompt_tokens"]) == (here["pred"], here["prompt_tokens"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--method", "kivi@bits=2"], "works inside the model"),
        (["--method", "full,snapkv@budget=0.25"], "works inside the model"),
        (["--dtype", "float16"], "weights on this machine"),
        (["--question", "hidden"], "cache"),
        (["--max-input-tokens", "100"], "--tokenizer"),
        (["--api", "token-ids"], "--tokenizer"),
        (["--api", "voice"], "not one of"),
        (["--api", "chat", "--chat", "none"], "cannot be kept"),
        (["--workers", "2"], "--concurrency"),
        (["--concurrency", "0"], "above 0"),
        (["--tokenizer", "./nothing-here"], "nothing-here"),
        (["--base-url", "localhost:8000"], "localhost:8000"),
        (["--base-url", "http://me:secret@127.0.0.1:9/v1"], "more than an address"),
    ],
)
def test_wrong_words_cost_one_sentence(
    cli: Cli, server: Server, faults: Faults, options: list[str], words: str
) -> None:
    done = cli(*asked(server, *options))
    assert done.code == 2
    text = " ".join(done.err.split())
    assert words in text
    assert "secret@" not in text
    assert "Traceback" not in text
    assert not faults.bodies
    assert not Path("served").exists()


def test_address_options_are_for_addresses(cli: Cli, folder: Path) -> None:
    for options in (["--base-url", "http://127.0.0.1:9/v1"], ["--concurrency", "2"], ["--tokenizer", "demo"]):
        done = cli("run", "--model", folder, "--task", TASK, *options)
        assert done.code == 2
        assert "behind an address" in done.err
    assert "behind an address" in cli("bench", "--model", "openai:tiny").err
    assert cli("run", "--model", "openai:", "--base-url", "http://127.0.0.1:9/v1").code == 2


def test_an_unknown_name_is_told_with_what_there_is(cli: Cli, server: Server, folder: Path) -> None:
    command = asked(server, "--tokenizer", folder, api=None)
    command[2] = "openai:tinny"
    done = cli(*command)
    assert done.code == 2
    assert "Did you mean tiny?" in done.err


def test_openais_own_key_is_for_openai(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    done = cli("run", "--model", "openai:gpt-x", "--task", TASK)
    assert done.code == 2
    assert "OPENAI_API_KEY" in done.err


def test_a_killed_run_ends_as_an_unbroken_one(cli: Cli, server: Server, faults: Faults) -> None:
    task = TASK.replace("repeats=1", "repeats=4")
    assert cli(*asked(server, task=task, out="whole")).code == 0
    faults.always = "slow:0.3"
    began = len(faults.times)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    words = [str(word) for word in asked(server, "--concurrency", 2, task=task, out="broken")]
    process = subprocess.Popen(
        [sys.executable, "-m", "lcbench", *words], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    limit = time.monotonic() + 120
    while len(faults.times) < began + 8 and time.monotonic() < limit:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 0 < len(records("broken", task)) < 12
    faults.always = "good"
    assert cli(*asked(server, task=task, out="broken")).code == 0
    (one,) = (Path("whole") / "predictions" / "full").iterdir()
    (other,) = (Path("broken") / "predictions" / "full").iterdir()
    assert one.read_bytes() == other.read_bytes()


def test_a_served_method_says_so(cli: Cli, service: Service, folder: Path) -> None:
    """`lcbench serve --method`: answers are those of the local run with that method."""
    from lcbench.methods.registry import resolve

    snapkv = "snapkv@budget=0.25,window=8"
    with running(Service(service.loaded, resolve(snapkv), "tiny")) as server:
        assert snapkv in cli(*asked(server, "--dry-run")).out
        assert cli(*asked(server)).code == 0
    assert cli("run", "--model", folder, "--method", snapkv, "--task", TASK, "--out", "local").code == 0
    (file,) = (Path("local") / "predictions" / snapkv).iterdir()
    local = {r["_id"]: r["pred"] for r in map(json.loads, file.read_text("utf-8").splitlines())}
    assert {r["_id"]: r["pred"] for r in records("served")} == local
    info = json.loads((Path("served") / "run.json").read_text())
    assert info["provenance"]["model"]["lcbench"]["method"] == snapkv
    assert f"with {snapkv}" in " ".join(cli("report", "served", "--format", "md").out.split())


@method("first-half", paper="", traits=Traits(family="prompt", prefill="own"))
@dataclass(frozen=True)
class FirstHalf(PromptTransform):
    """Keeps the first half of the context."""

    def rewrite(self, prompt: PromptText, helper: Any) -> str:
        return prompt.passage[: len(prompt.passage) // 2]


def test_skipped_prompts_are_counted_by_length_as_here(cli: Cli, server: Server, folder: Path) -> None:
    task = "passkey@lengths=20/600,depths=2,repeats=1,max_new_tokens=4"
    options = ["--over-length", "skip", "--task", task]
    assert cli("run", "--model", folder, *options, "--out", "here").code == 0
    assert cli(*asked(server, *options, "--tokenizer", folder, out="there", task=task)).code == 0
    here, there = (
        json.loads((Path(run) / "run.json").read_text())["provenance"]["tasks"][task] for run in ("here", "there")
    )
    for name in ("prompts_sha256", "skipped_by_method"):
        assert here.get(name) == there.get(name), name
    assert there["skipped_by_method"] == {"full": {"rows": 2, "lengths": {"600": 2}}}


def test_methods_that_shorten_prompts_work_with_any_server(cli: Cli, service: Service, folder: Path) -> None:
    options = ["--method", "full,first-half", "--task", TASK]
    assert cli("run", "--model", folder, *options, "--out", "local").code == 0
    with running(service) as server:
        done = cli(*asked(server, *options, "--tokenizer", folder))
    assert done.code == 0, done.err
    for name in ("full", "first-half"):
        here, there = (
            {r["_id"]: (r["pred"], r["prompt_tokens"], r["tokens_before"]) for r in records(run, method=name)}
            for run in ("local", "served")
        )
        assert here == there
    assert cli("report", "served").code == 0
    both = cli(*asked(server, "--method", "first-half+kivi@bits=2"))
    assert both.code == 2
    assert "works inside the model" in both.err


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"error": {"message": "one\nline"}}, "one line"),
        ({"error": "bare"}, "bare"),
        ({"detail": [{"loc": ["body"], "msg": "field required"}]}, "field required"),
        ({"message": "of old"}, "of old"),
        ([], ""),
        ({"error": {"message": {"no": "text"}}}, ""),
    ],
)
def test_the_sentence_in_an_error_is_passed_on(body: Any, words: str) -> None:
    from lcbench.endpoint.client import _message

    assert " ".join(_message(body).split()) == words


def test_a_key_is_shown_neither_in_part_nor_in_capitals() -> None:
    from lcbench.endpoint.client import _without

    key = "sk-Very-Secret-0123"
    assert _without(f"key {key}!", key) == "key ***!"
    assert _without(f"key {key[:12]} {key[7:]} {key.upper()}", key) == "key *** *** ***"
    assert _without("a secret is no key", key) == "a secret is no key"
    assert _without("an empty key", "") == "an empty key"
    assert _without("short: abc, ab", "abc") == "short: ***, ab"


@pytest.mark.parametrize("trouble", ["520", "524", "500:the card is on fire"])
def test_every_5xx_is_tried_again_and_then_told(cli: Cli, server: Server, faults: Faults, trouble: str) -> None:
    faults.script = [trouble] * 7
    assert cli(*asked(server, "--concurrency", 1)).code == 0
    assert len(faults.bodies) == 7 + 3
    faults.script = [trouble] * 8
    done = cli(*asked(server, "--concurrency", 1, out="again"))
    assert done.code == 1
    (failed,) = [r["error"] for r in records("again") if r["status"] == "error"]
    assert failed == "the server answered " + (trouble.replace(":", ": ") if ":" in trouble else f"{trouble}: no")


def test_what_says_never_is_not_tried_again(cli: Cli, server: Server, faults: Faults) -> None:
    faults.script = ["501"]
    assert cli(*asked(server, "--concurrency", 1)).code == 1
    assert len(faults.bodies) == 3


@pytest.mark.parametrize("trouble", ["402:no credit left.", '429:{"code": "insufficient_quota"}'])
def test_an_empty_account_ends_the_run(cli: Cli, server: Server, faults: Faults, trouble: str) -> None:
    faults.always = trouble
    done = cli(*asked(server, "--concurrency", 1))
    assert done.code == 2
    assert "wants to be paid first" in " ".join(done.err.split())
    assert len(faults.bodies) == 1


def test_trouble_is_not_taken_for_a_server_without_completions(
    cli: Cli, server: Server, faults: Faults, folder: Path
) -> None:
    """Which address is asked decides answers: it must not follow from a busy moment."""
    faults.always = "503"
    done = cli(*asked(server, "--tokenizer", folder, api=None))
    assert done.code == 2
    assert "did not answer a first question of one token" in " ".join(done.err.split())
    assert "what it has." in done.err
    assert len(faults.times) == 5
    assert "--api" in done.err
    assert not Path("served").exists()


def test_a_stop_while_the_server_wants_to_be_waited_for(server: Server, faults: Faults, own_home: Path) -> None:
    """What came is kept; nothing is waited for, tried again or begun."""
    from lcbench.config.spec import make_spec
    from lcbench.remote.session import Calls, open_remote

    faults.script = ["good", "429/30"]
    spec = make_spec({"model": "openai:tiny", "base_url": server.url, "api": "completions", "tasks": TASK})
    session = open_remote(spec, own_home, Calls(concurrency=1), say=lambda text: None)
    began = time.monotonic()
    with session.open_run(Path("served")) as running_:
        outcome = running_.execute(should_stop=lambda: len(faults.bodies) == 2)
    assert time.monotonic() - began < 20
    assert (outcome.interrupted, outcome.written, outcome.failed) == (True, 1, 0)
    assert [r["status"] for r in records("served")] == ["ok"]
    assert len(faults.bodies) == 2


def test_a_server_that_hangs_does_not_hold_a_run_that_has_ended(server: Server, faults: Faults) -> None:
    """One answer ends the run, another never comes: the command is over at once."""
    faults.script = ["slow:60", "401", "401", "401"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "lcbench", *(str(word) for word in asked(server, "--concurrency", 2))],
        env=environment, capture_output=True, text=True, timeout=55,
    )  # fmt: skip
    assert time.monotonic() - began < 50
    assert done.returncode == 2
    assert "refuses the key" in " ".join(done.stderr.split())
    assert "Set LCBENCH_API_KEY" in " ".join(done.stderr.split())


def test_half_a_surrogate_pair_is_sent_and_kept(cli: Cli, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """JSON can write it and UTF-8 cannot; data sets of the web have them."""
    from lcbench.tasks.base import Prompt

    whole = SpokenPasskey.prompt
    monkeypatch.setattr(SpokenPasskey, "prompt", lambda self, row, home: Prompt(whole(self, row, home).text + "\ud800"))
    done = cli(*asked(server, task=CHAT_TASK))
    assert "Traceback" not in done.err
    assert done.code in (0, 1)
    assert len(records("served", CHAT_TASK)) == 3


@pytest.mark.parametrize("concurrency", [1, 16])
def test_calls_at_a_time_decide_nothing(
    cli: Cli, server: Server, faults: Faults, clean: dict[str, Any], concurrency: int
) -> None:
    faults.script = ["slow:0.2", "good", "slow:0.1"]
    assert cli(*asked(server, "--concurrency", concurrency)).code == 0
    (one,) = (Path("served") / "predictions" / "full").iterdir()
    assert cli(*asked(server, out="other")).code == 0
    assert one.read_bytes() == next((Path("other") / "predictions" / "full").iterdir()).read_bytes()
    assert answers("served") == clean


def test_penalties_of_the_server_are_ruled_out_where_it_can_be_said(
    cli: Cli, server: Server, faults: Faults, clean: dict[str, Any]
) -> None:
    assert cli(*asked(server)).code == 0
    ruled_out = {"repetition_penalty": 1, "repeat_penalty": 1, "frequency_penalty": 0}
    assert all({name: body[name] for name in ruled_out} == ruled_out for body in faults.bodies)
    faults.bodies.clear()
    # A server that takes no field it does not know: asked once with them, and never again.
    faults.refuses = lambda body: "repeat_penalty" in body
    assert cli(*asked(server, "--concurrency", 1, out="strict")).code == 0
    assert ["repeat_penalty" in body for body in faults.bodies] == [True, False, False, False]
    assert {body["frequency_penalty"] for body in faults.bodies} == {0}
    assert answers("strict") == clean
    # A prompt that is refused for another reason says nothing about penalties.
    faults.bodies.clear()
    faults.refuses = lambda body: False
    faults.script = ["400:too long"] * 3
    assert cli(*asked(server, "--concurrency", 1, out="mixed")).code == 1
    assert ["repeat_penalty" in body for body in faults.bodies] == [True, False, False, True, True]


def test_a_study_of_a_local_and_a_served_model(cli: Cli, service: Service, folder: Path) -> None:
    with running(service) as server:
        Path("study.yaml").write_text(
            f"models:\n  - {folder}\n  - {{name: 'openai:tiny', base_url: '{server.url}', tokenizer: {folder}}}\n"
            f"methods: [full, first-half]\ntasks: ['{TASK}']\nout: study\n"
        )
        done = cli("run", "--config", "study.yaml", "--concurrency", 2)
        assert done.code == 0, done.err
        both = ["study/tiny", "study/openai-tiny"]
        assert sorted(str(p) for p in Path("study").iterdir()) == sorted(both)
        shown = cli("report", *both)
        assert shown.code == 0, shown.err
        assert "(openai:tiny)" in shown.out
        pair = cli("compare", *(f"{run}::full" for run in both))
        assert pair.code == 0, pair.err
        assert "No difference" in " ".join(pair.out.split())
        refused = cli("run", "--config", "study.yaml", "--method", "full,kivi@bits=2", "--out", "other")
        assert refused.code == 2
        assert "works inside the model" in refused.err


def test_a_shortener_before_a_cache_method_is_sent_where_each_part_works() -> None:
    """The two refusals name commands that both accept: they once named each other."""
    from lcbench.errors import ModelError
    from lcbench.methods.registry import resolve
    from lcbench.remote.session import refuse_cache_method
    from lcbench.server.service import refuse_unservable

    both = resolve("llmlingua2@rate=0.5+kivi@bits=4")
    with pytest.raises(ModelError) as here:
        refuse_cache_method(both, "openai:m")
    with pytest.raises(ModelError) as there:
        refuse_unservable(both)
    for step in (here.value.next_step, there.value.next_step):
        assert "kivi@bits=4" in step
        assert "llmlingua2@rate=0.5" in step
        assert "+" not in step
    refuse_cache_method(resolve("llmlingua2@rate=0.5"), "openai:m")
    refuse_unservable(resolve("kivi@bits=4"))
