"""`lcbench compare`: what is paired, what is refused and why, and what is said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_runs import failed, make, passkey, right, wrong
from typer.testing import CliRunner

from lcbench.cli import app
from lcbench.errors import BadValue, LcbenchError, NotARun, UnknownName
from lcbench.reporting.comparison import compare, compare_all, p_text, signed
from lcbench.reporting.sides import Side, pairs_of
from lcbench.store.rundir import RunDirectory
from lcbench.store.schema import PredictionRecord

FULL, KIVI = "full", "kivi@bits=2"


def none() -> Path:
    raise NotARun("There is no run yet.", "")


def sides(run: RunDirectory, first: str = FULL, second: str = KIVI) -> tuple[Side, Side]:
    return Side(run, first), Side(run, second)


def scored(rights: int, wrongs: int, start: int = 0) -> list[PredictionRecord]:
    return [right(start + i) if i < rights else wrong(start + i) for i in range(rights + wrongs)]


# -- the statistics --------------------------------------------------------------------------------------------------


def test_a_real_difference_is_said_in_one_sentence(tmp_path: Path) -> None:
    found = compare(*sides(make(tmp_path / "r", {(FULL, "qasper"): scored(30, 0), (KIVI, "qasper"): scored(12, 18)})))
    ((task, metric, result),) = found.tasks
    assert (task, metric, result.n) == ("qasper", "qa_f1", 30)
    assert (result.first, result.second, result.difference) == (100.0, 40.0, -60.0)
    assert (result.wins, result.ties, result.losses, result.test) == (0, 12, 18, "mcnemar")
    assert found.kv_bytes == (250.0, 250.0)
    verdict = found.verdict()
    assert verdict.startswith("The difference is real: kivi@bits=2 scores 60.0 points less than full (95 % interval −")
    assert verdict.endswith(", p < 0.0001, 30 pairs).")
    assert "\n" not in verdict


def test_a_small_difference_is_not_called_real(tmp_path: Path) -> None:
    found = compare(*sides(make(tmp_path / "r", {(FULL, "qasper"): scored(20, 10), (KIVI, "qasper"): scored(19, 11)})))
    assert found.verdict().startswith("No difference is shown: kivi@bits=2 scores 3.3 points less than full, which may")
    assert found.overall.p == 1.0


def test_no_difference_and_the_edge(tmp_path: Path) -> None:
    same = compare(*sides(make(tmp_path / "a", {(m, "qasper"): scored(3, 3) for m in (FULL, KIVI)})))
    assert same.verdict() == "No difference: kivi@bits=2 scores exactly as full on every one of the 6 pairs."
    one = compare(*sides(make(tmp_path / "one", {(m, "qasper"): scored(1, 0) for m in (FULL, KIVI)})))
    assert one.verdict() == "No difference: kivi@bits=2 scores exactly as full on the one pair."
    edge = compare(*sides(make(tmp_path / "b", {(FULL, "qasper"): scored(12, 0), (KIVI, "qasper"): scored(7, 5)})))
    assert edge.overall.p == pytest.approx(0.0625)
    assert edge.verdict().startswith("The difference is on the edge, the interval excludes 0 but the test does not")


def test_several_tasks_count_after_holm(tmp_path: Path) -> None:
    tasks = {"qasper": scored(5, 25), "hotpotqa": scored(29, 1), "musique": scored(28, 2)}
    run = make(
        tmp_path / "r", {**{(FULL, t): scored(30, 0) for t in tasks}, **{(KIVI, t): r for t, r in tasks.items()}}
    )
    found = compare(*sides(run))
    assert [r.p_holm for _, _, r in found.tasks][1:] == [1.0, 1.0]
    assert "over 3 tasks" in found.verdict()
    assert "; after Holm's correction it stands in 1 of the 3 tasks." in found.verdict()
    assert found.overall.difference == pytest.approx((-2500 / 30 - 100 / 30 - 200 / 30) / 3)


def test_failed_and_missing_samples_are_left_out_and_counted(tmp_path: Path) -> None:
    run = make(
        tmp_path / "r",
        {
            (FULL, "qasper"): [right(0), right(1), failed(2), right(3)],
            (KIVI, "qasper"): [right(0), failed(1), right(2)],
        },
    )
    found = compare(*sides(run))
    assert (found.overall.n, found.failed, found.unmatched) == (1, 2, 1)


def test_samples_that_changed_most_come_first(tmp_path: Path) -> None:
    full = [right(0, answers=["red blue"], pred="red blue"), right(1), right(2)]
    kivi = [right(0, answers=["red blue"], pred="red"), wrong(1), right(2)]
    found = compare(*sides(make(tmp_path / "r", {(FULL, "qasper"): full, (KIVI, "qasper"): kivi})), show=5)
    assert [(c.id, c.first) for c in found.changes] == [("1", 100.0), ("0", 100.0)]
    assert found.changes[1].second == pytest.approx(200 / 3)
    assert (found.changes[0].first_text, found.changes[0].second_text) == ("Paris", "London")


def test_repeats_of_a_passkey_cell_are_no_independent_samples(tmp_path: Path) -> None:
    cells = [(n, d, r) for n in (256, 512) for d in (0.0, 0.5, 1.0) for r in range(4)]
    full = [passkey(*cell, found=True) for cell in cells]
    kivi = [passkey(*cell, found=cell[1] > 0) for cell in cells]
    found = compare(*sides(make(tmp_path / "r", {(FULL, "passkey"): full, (KIVI, "passkey"): kivi})))
    assert (found.overall.n, found.overall.clusters) == (24, 6)
    assert any("share a context" in note for note in found.notes)
    low, high = found.overall.interval or (0, 0)
    assert low < -60  # two of six cells are lost; 24 independent samples would say about −54
    assert high == 0.0


def test_several_methods_against_one_are_corrected_together(tmp_path: Path) -> None:
    run = make(
        tmp_path / "r",
        {
            (FULL, "qasper"): scored(10, 0),
            ("a", "qasper"): scored(3, 7),
            ("b", "qasper"): scored(4, 6),
            ("c", "qasper"): scored(10, 0),
        },
    )
    found = compare_all(pairs_of([str(run.path)], FULL, none))
    assert [one.second.method for one in found] == ["a", "b", "c"]
    assert [one.p_holm for one in found] == [3 * 2 / 2**7, 2 * 2 / 2**6, 1.0]


# -- what cannot be paired -------------------------------------------------------------------------------------------


def two(
    tmp_path: Path, first: dict[str, Any], second: dict[str, Any], **records: list[PredictionRecord]
) -> tuple[Side, Side]:
    """Two runs of one method each; ``first`` and ``second`` are entries of run.json that differ."""
    made = []
    for name, entries in (("a", first), ("b", second)):
        facts = {"rows": 3, "data_sha256": "d1", "task_version": 1, "prompts_sha256": {"shared": "p1"}}
        facts.update(entries.get("facts", {}))
        spec = {"max_input_tokens": None, "truncation": "middle", "context": "full", **entries.get("spec", {})}
        run = make(
            tmp_path / name, {(name, "qasper"): records.get(name) or scored(2, 1)}, facts={"qasper": facts}, **spec
        )
        if "model" in entries:
            info = json.loads((run.path / "run.json").read_text())
            info["provenance"]["model"].update(entries["model"])
            (run.path / "run.json").write_text(json.dumps(info))
        made.append(Side(RunDirectory.open(run.path), name))
    return made[0], made[1]


PROMPTS = {"prompts_sha256": {"shared": "p2"}}


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        ({"facts": {"data_sha256": "d2"}}, "other data (data_sha256 is d1 and d2)"),
        ({"facts": {"task_version": 2}}, "another version of the task"),
        (
            {"facts": PROMPTS, "spec": {"max_input_tokens": 512}},
            "other truncation (--max-input-tokens was not given and 512)",
        ),
        (
            {"facts": PROMPTS, "spec": {"truncation": "exact-ids"}},
            "other truncation (--truncation was middle and exact",
        ),
        ({"facts": PROMPTS, "spec": {"context": "none"}}, "other prompts (--context was full and none)"),
        ({"facts": PROMPTS, "model": {"chat_template_sha256": "c2"}}, "other prompts (the chat templates differ"),
        ({"facts": PROMPTS, "model": {"identity": "w2"}}, "other prompts (the models differ: w1 and w2)"),
        ({"facts": PROMPTS}, "other prompts (prompts_sha256 is p1 and p2)"),
    ],
)
def test_other_inputs_are_refused_with_the_reason(tmp_path: Path, entries: dict[str, Any], why: str) -> None:
    with pytest.raises(BadValue) as caught:
        compare(*two(tmp_path, {}, entries))
    assert f"cannot be paired: qasper has {why}" in caught.value.message
    assert caught.value.next_step


def test_other_answers_or_cuts_of_the_same_sample_are_refused(tmp_path: Path) -> None:
    other = [right(0, answers=["Rome"]), right(1), right(2)]
    with pytest.raises(BadValue, match="samples of one id have different answers"):
        compare(*two(tmp_path / "x", {}, {}, b=other))
    fewer = {"facts": {**PROMPTS, "rows": 2}}
    with pytest.raises(BadValue, match="the same sample was cut differently"):
        compare(*two(tmp_path / "y", {}, fewer, b=[right(0, truncated_from=90), right(1)]))
    with pytest.raises(BadValue, match="different numbers of tokens"):
        compare(*two(tmp_path / "z", {}, fewer, b=[right(0, prompt_tokens=11), right(1)]))


def test_the_same_prompts_are_paired_whatever_else_differs(tmp_path: Path) -> None:
    longer_window = {
        "spec": {"max_input_tokens": 9999, "question": "hidden"},
        "model": {"identity": "w2", "name": "finetuned"},
    }
    found = compare(*two(tmp_path / "x", {}, longer_window))
    assert found.overall.n == 3
    assert found.differs == ("the model's weights (demo, w1 and finetuned, w2)", "--question (visible and hidden)")
    fewer = {"facts": {**PROMPTS, "rows": 2}, "spec": {"limit": 2}}
    some = compare(*two(tmp_path / "y", {}, fewer, b=scored(2, 0)))
    assert (some.overall.n, some.unmatched) == (2, 1)


def test_what_else_differs_stands_in_the_verdict_itself(tmp_path: Path) -> None:
    hidden = {"spec": {"question": "hidden"}}
    first, second = two(tmp_path / "x", {}, hidden, a=scored(9, 0), b=[wrong(i) for i in range(9)])
    verdict = compare(first, second).verdict()
    assert "not between the methods alone (the runs also differ in --question (visible and hidden)): " in verdict
    assert f"{second.name} scores 100.0 points less than {first.name}" in verdict
    facts = {"qasper": {"prompts_sha256": {"shared": "p"}}}
    a, b = (
        make(tmp_path / weights, {(FULL, "qasper"): scored(*counts)}, identity=weights, facts=facts)
        for weights, counts in (("w1", (9, 0)), ("w2", (0, 9)))
    )
    verdict = compare(Side(a, FULL), Side(b, FULL)).verdict()
    assert "one method in two runs that differ in the model's weights (demo, w1 and demo, w2)" in verdict
    assert not compare(*sides(make(tmp_path / "r", {(m, "qasper"): scored(2, 1) for m in (FULL, KIVI)}))).differs


def parametrized(path: Path, parameters: dict[str, dict[str, str]], records: Any, task: str = "qasper") -> RunDirectory:
    run = make(path, {(method, task): records for method in parameters})
    facts = {
        m: {"name": m.partition("@")[0], "parameters": p, "calibration_sha256": None} for m, p in parameters.items()
    }
    info = {**run.info, "provenance": {**run.provenance, "methods": facts}}
    (run.path / "run.json").write_text(json.dumps(info))
    return RunDirectory.open(run.path)


def test_two_runs_are_compared_by_what_methods_are_and_not_by_how_they_are_spelled(tmp_path: Path) -> None:
    quarter, half = {"budget": "0.25"}, {"budget": "0.5"}
    a = parametrized(tmp_path / "a", {"full": {}, "snapkv": quarter}, scored(3, 0))
    b = parametrized(
        tmp_path / "b", {"full": {}, "snapkv@budget=0.25": quarter, "snapkv@budget=0.5": half}, scored(2, 1)
    )
    found = pairs_of([str(a.path), str(b.path)], None, none)
    assert [(x.method, y.method) for x, y in found] == [("full", "full"), ("snapkv", "snapkv@budget=0.25")]
    other = parametrized(tmp_path / "c", {"snapkv": half}, scored(2, 1))  # another default in another version
    ((x, y),) = pairs_of([str(a.path), str(other.path)], None, none)
    assert compare(x, y).differs == ("the parameters of snapkv",)


def test_a_task_that_cannot_be_paired_does_not_stop_the_others(tmp_path: Path) -> None:
    for name, sha in (("a", "d1"), ("b", "d2")):
        facts = {"qasper": {"data_sha256": sha}, "hotpotqa": {"data_sha256": "same"}}
        make(tmp_path / name, {(FULL, t): scored(2, 1) for t in facts}, facts=facts)
    found = compare(*pairs_of([str(tmp_path / "a"), str(tmp_path / "b")], None, none)[0])
    assert [task for task, _, _ in found.tasks] == ["hotpotqa"]
    assert "other data" in found.refused["qasper"]


def test_nothing_in_common_is_refused(tmp_path: Path) -> None:
    a = make(tmp_path / "a", {(FULL, "qasper"): [right(0)]})
    b = make(tmp_path / "b", {(FULL, "hotpotqa"): [right(0)]})
    with pytest.raises(BadValue, match="no task in common"):
        compare(Side(a, FULL), Side(b, FULL))
    c = make(tmp_path / "c", {(FULL, "qasper"): [right(7)]})
    with pytest.raises(BadValue, match="no sample in common"):
        compare(Side(a, FULL), Side(c, FULL))
    d = make(tmp_path / "d", {(FULL, "qasper"): [right(0)], (KIVI, "qasper"): []})
    with pytest.raises(BadValue, match="kivi@bits=2 has no predictions"):
        compare(*sides(d))
    e = make(tmp_path / "e", {(FULL, "qasper"): [right(0)], (KIVI, "qasper"): [failed(0)]})
    with pytest.raises(BadValue, match="failed sample"):
        compare(*sides(e))


def test_prompt_methods_read_their_own_prompts_within_a_run_and_across(tmp_path: Path) -> None:
    a, b = two(
        tmp_path, {}, {"facts": {"prompts_sha256": {"b": "short"}}}, b=[right(i, prompt_tokens=4) for i in range(3)]
    )
    info = {**b.run.info, "provenance": {**b.run.provenance, "methods": {"b": {"family": "prompt"}}}}
    (b.run.path / "run.json").write_text(json.dumps(info))
    found = compare(a, replace(b, run=RunDirectory.open(b.run.path)))
    assert found.overall.n == 3
    assert any("rewrites the prompt" in note for note in found.notes)


# -- words of the command line ---------------------------------------------------------------------------------------


def test_words_name_methods_runs_or_both(tmp_path: Path) -> None:
    a = str(make(tmp_path / "a", {(m, "qasper"): [right(0)] for m in (FULL, KIVI, "knorm")}).path)
    b = str(make(tmp_path / "b", {(m, "qasper"): [right(0)] for m in (FULL, KIVI)}).path)

    def names(words: list[str], baseline: str | None = None) -> list[tuple[str, str]]:
        return [(x.name, y.name) for x, y in pairs_of(words, baseline, lambda: Path(a))]

    assert names([FULL, KIVI]) == [(f"{a}::full", f"{a}::{KIVI}")]
    assert names([b, KIVI, FULL]) == [(f"{b}::{KIVI}", f"{b}::full")]
    assert names([b]) == [(f"{b}::full", f"{b}::{KIVI}")]
    assert names([a, b]) == [(f"{a}::full", f"{b}::full"), (f"{a}::{KIVI}", f"{b}::{KIVI}")]
    assert names([f"{a}::knorm", f"{b}::full"]) == [(f"{a}::knorm", f"{b}::full")]
    assert names([a], FULL) == [(f"{a}::full", f"{a}::{KIVI}"), (f"{a}::full", f"{a}::knorm")]
    assert names([], "knorm") == [(f"{a}::knorm", f"{a}::full"), (f"{a}::knorm", f"{a}::{KIVI}")]


@pytest.mark.parametrize(
    ("words", "baseline", "error", "said"),
    [
        (["{a}"], None, BadValue, "full, kivi@bits=2, knorm"),
        (["{a}", "full"], None, BadValue, "full, kivi"),
        (["{a}", "full", "ful"], None, UnknownName, "Did you mean 'full'?"),
        (["{a}", "full", "full"], None, BadValue, "two runs"),
        (["{a}", "{a}"], None, BadValue, "two methods"),
        (["{a}", "{c}"], None, BadValue, "::full"),
        (["{a}::full"], None, BadValue, "RUN::METHOD twice"),
        (["{a}::full", "{a}::nope"], None, UnknownName, "Known"),
        (["nowhere/at/all", "full"], None, NotARun, "lcbench run"),
        (["{plain}", "full"], None, NotARun, "lcbench run"),
        (["{c}"], "quest", BadValue, "another run"),
    ],
)
def test_wrong_words(
    tmp_path: Path, words: list[str], baseline: str | None, error: type[LcbenchError], said: str
) -> None:
    a = make(tmp_path / "a", {(m, "qasper"): [right(0)] for m in (FULL, KIVI, "knorm")}).path
    c = make(tmp_path / "c", {("quest", "qasper"): [right(0)]}).path
    (tmp_path / "plain").mkdir()
    filled = [word.format(a=a, c=c, plain=tmp_path / "plain") for word in words]
    with pytest.raises(error) as caught:
        pairs_of(filled, baseline, none)
    assert said in caught.value.next_step


# -- the command -----------------------------------------------------------------------------------------------------


def call(*words: str) -> Any:
    return CliRunner().invoke(app, ["compare", *words])


@pytest.mark.parametrize("width", [80, 200])
def test_the_terminal_shows_verdict_table_and_changes(
    tmp_path: Path, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    hostile = "\x1b[31m\u202eevil [bold]x[/]"
    kivi = [wrong(i, answers=["Paris"]) if i else right(0, pred=hostile) for i in range(12)]
    run = make(tmp_path / "r", {(FULL, "qasper"): scored(12, 0), (KIVI, "qasper"): kivi})
    result = call(str(run.path), FULL, KIVI)
    assert result.exit_code == 0, result.output
    assert max(map(len, result.stdout.splitlines())) <= width
    text = " ".join(result.stdout.split())
    assert "The difference is real: kivi@bits=2 scores 100.0 points less than full" in text
    assert "0/0/12" in text
    assert "McNemar's exact test" in text
    assert "Samples that changed most" in text
    assert "evil [bold]x[/]" in text
    assert "\x1b" not in result.stdout
    assert "\u202e" not in result.stdout
    assert "p (Holm)" in text
    assert (" qa_f1 " in text) == (width == 200)
    assert "an interval without width: every pair differs by the same" in text  # −100.0 to −100.0
    mixed = make(tmp_path / "mixed", {(FULL, "qasper"): scored(12, 0), (KIVI, "qasper"): scored(7, 5)})
    assert "without width" not in call(str(mixed.path), FULL, KIVI).stdout


def test_names_of_tasks_are_broken_at_their_joints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    width = 80
    monkeypatch.setenv("COLUMNS", str(width))
    tasks = ("passage_retrieval_en", "passage_count")
    kept = {FULL: 120, KIVI: 20}
    answers = {
        m: [right(i, pred="3" if i < n else "4", answers=["Paragraph 3"]) for i in range(120)] for m, n in kept.items()
    }
    run = make(tmp_path / "r", {(method, task): answers[method] for method in answers for task in tasks})
    result = call(str(run.path), FULL, KIVI)
    assert result.exit_code == 0, result.output
    assert max(map(len, result.stdout.splitlines())) <= width
    firsts = [line.partition(" ")[0] for line in result.stdout.splitlines()]
    parts = [firsts[i : i + n] for i in range(len(firsts)) for n in (2, 3)]
    (broken,) = [part for part in parts if "".join(part) == "passage_retrieval_en" and all(part)]
    assert all(piece.endswith("_") for piece in broken[:-1])


def test_what_a_terminal_would_hide_or_obey_is_named(tmp_path: Path) -> None:
    hostile = "a\x1b[31mb\u200bc\u202ed\ufeff\ne"
    run = make(tmp_path / "r", {(FULL, "qasper"): [right(0), right(1)],
                                (KIVI, "qasper"): [right(0, pred=hostile), right(1)]})  # fmt: skip
    shown = CliRunner().invoke(app, ["compare", str(run.path)]).stdout
    assert "a⟨U+001B⟩[31mb⟨U+200B⟩c⟨U+202E⟩d⟨U+FEFF⟩ e" in shown
    assert not set("\x1b\u200b\u202e\ufeff") & set(shown)


def test_json_and_file(tmp_path: Path) -> None:
    run = make(tmp_path / "r", {(FULL, "qasper"): scored(12, 0), (KIVI, "qasper"): scored(2, 10)})
    result = call(str(run.path), "--json", "--out", str(tmp_path / "x.json"), "--show", "1")
    data = json.loads(result.stdout)
    assert json.loads((tmp_path / "x.json").read_text()) == data
    (one,) = data["comparisons"]
    assert one["verdict"].startswith("The difference is real")
    assert one["tasks"][0]["interval"][1] < 0
    assert len(one["changes"]) == 1
    assert data["schema_version"] == 1


def test_all_against_one_is_one_line_a_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    methods = [FULL, KIVI, "snapkv@budget=0.25,window=64,kernel=5,pooling=avg"]
    run = make(tmp_path / "r", {(m, "qasper"): scored(9, 1 + i) for i, m in enumerate(methods)})
    result = call(str(run.path), "--baseline", FULL)
    assert result.exit_code == 0, result.output
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "corrected for 2 comparisons" in result.stdout
    assert result.stdout.count("\n- ") == 2


def test_numbers_as_words() -> None:
    assert [signed(x) for x in (1.25, -3.4, 0.0, 1e-15)] == ["+1.2", "−3.4", "0.0", "0.0"]
    # An end of an interval shows on which side of 0 it lies.
    assert [signed(x) for x in (0.04, -0.02, 0.004, -2e-5)] == ["+0.04", "−0.02", "+0.004", "−2e-05"]
    assert [p_text(p) for p in (0.5, 0.0123, 0.00123, 0.00001)] == ["p = 0.50", "p = 0.012", "p = 0.0012", "p < 0.0001"]
