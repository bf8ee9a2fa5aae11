"""The passkey construction against a slow one written from the description, and the published configurations."""

from __future__ import annotations

import hashlib
import json
import random
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from lcbench.data.install import install
from lcbench.errors import BadValue, DataMissing
from lcbench.tasks import passkey as passkey_module
from lcbench.tasks.base import Loaded, Task
from lcbench.tasks.passkey import Passkey, evenly, make_background
from lcbench.tasks.registry import resolve

HOME = Path("nowhere")
PUBLISHED_LENGTHS = [512, 2730, 4949, 7168, 9386, 11605, 13824, 16042, 18261, 20480]


def passkey(options: str = "") -> Task:
    return resolve(f"passkey@{options}" if options else "passkey")[0]


def slow_words(text: str) -> list[str]:
    """Character by character: a word is a run of non-blanks and the blanks after it; blanks in front are dropped."""
    words: list[str] = []
    in_word = False
    for char in text:
        if not char.isspace():
            if in_word:
                words[-1] += char
            else:
                words.append(char)
                in_word = True
        elif words:
            words[-1] += char
            in_word = False
    return words


def slow_prompts(texts: Sequence[str], config: dict[str, object], lengths: Sequence[int]) -> list[tuple[str, str]]:
    """(prompt, key) of every input, from passkey.md section 2."""
    random.seed(42)
    out = []
    for length in lengths:
        counted, joined, at = 0, "", 0
        while counted < length:
            joined += texts[at % len(texts)]
            counted += len(slow_words(texts[at % len(texts)]))
            at += 1
        background = "".join(slow_words(joined)[:length]).strip()
        words = slow_words(background)
        for k in range(10):
            for _ in range(int(str(config["depth_num_iterations"]))):
                digits = int(str(config["retrieval_target_len"]))
                key = "".join(random.choice("0123456789") for _ in range(digits))
                needle = str(config["retrieval_target_template"]).replace("<PASS KEY>", key)
                position = int(len(words) * (k / 9))
                before, after = "".join(words[:position]).strip(), "".join(words[position:]).strip()
                context = before + " " + needle + " " + after + " "
                out.append((str(config["instruction"]) + context + str(config["retrieval_question"]), key))
    return out


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return passkey().load(HOME)


@pytest.fixture(scope="module")
def essays(shared_data: Path) -> tuple[str, ...]:
    """The 49 essays in the order of their names, read as the published code reads them."""
    paths = sorted((shared_data / "haystack" / "paulgraham").glob("*.txt"), key=lambda path: path.name)
    texts = tuple(path.read_text(encoding="utf-8") for path in paths)
    assert len(texts) == 49
    return texts


@pytest.fixture(scope="module")
def essay_home(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with the essays, installed from the shared copy."""
    home = tmp_path_factory.mktemp("essays")
    report = install(home, ["paulgraham"], str(shared_data / "haystack" / "paulgraham"))
    assert not report.problems
    return home


def test_lengths_depths_and_keys_of_the_main_setting(loaded: Loaded) -> None:
    task = passkey()
    assert isinstance(task, Passkey)
    assert list(task.lengths) == PUBLISHED_LENGTHS
    assert task.depth_values() == [k / 9 for k in range(10)]
    assert len(loaded.rows) == task.rows == 300
    assert [row.answers[0] for row in loaded.rows[:4]] == ["1043321", "8196001", "3389083", "8637940"]
    order = [(row.meta["length_words"], row.meta["depth"], row.meta["repeat"]) for row in loaded.rows]
    assert order == sorted(order)
    assert len({row.id for row in loaded.rows}) == 300
    assert loaded.rows[3].id == "len512-depth0.111-rep0"
    assert task.answer_tokens(HOME) == 256
    assert (task.chat, task.truncate, task.metric) == (False, "error", "passkey")


def test_texts_are_the_published_ones() -> None:
    texts = passkey_module._texts()
    sizes = {name: (len(texts[name]), hashlib.sha256(texts[name].encode()).hexdigest()[:12]) for name in texts}
    assert sizes["instruction"] == (147, "5b191a7bf363")
    assert sizes["needle"] == (68, "7879995b24e4")
    assert sizes["question"] == (39, "fe843ef83c25")
    assert texts["needle"].count(texts["placeholder"]) == 2


def test_texts_equal_the_published_configuration(shared_data: Path) -> None:
    for path in (shared_data / "longctx_bench/eval_config/paulgraham_passkey").glob("*.json"):
        config = json.loads(path.read_text("utf-8"))["eval_params"]
        texts = passkey_module._texts()
        assert config["instruction"] == texts["instruction"]
        assert config["retrieval_target_template"] == texts["needle"]
        assert config["retrieval_target_placeholder"] == texts["placeholder"]
        assert config["retrieval_question"] == texts["question"]
        assert config["max_new_tokens"] == passkey().answer_tokens(HOME)


@pytest.mark.parametrize("digits", [7, 64])
def test_prompts_equal_the_slow_construction(
    shared_data: Path, essays: tuple[str, ...], essay_home: Path, digits: int
) -> None:
    name = f"20480words_10x10x3_{digits}digits.json"
    path = shared_data / "longctx_bench/eval_config/paulgraham_passkey" / name
    config = json.loads(path.read_text("utf-8"))["eval_params"]
    lengths = PUBLISHED_LENGTHS[:3]
    task = passkey(f"haystack=paulgraham,digits={digits}")
    rows = task.load(essay_home).rows
    expected = slow_prompts(essays, config, lengths)
    assert len(rows) == 300
    for row, (prompt, key) in zip(rows[: len(expected)], expected, strict=True):
        assert task.prompt(row, HOME).text == prompt
        assert row.answers == (key,)


def test_smoke_configuration_has_both_ends(essays: tuple[str, ...], essay_home: Path) -> None:
    loaded = passkey("haystack=paulgraham,lengths=20480,depths=1,repeats=1").load(essay_home)
    assert [row.meta["depth"] for row in loaded.rows] == [0.0, 1.0]
    background = loaded.rows[0].fields["background"]
    assert len(background.split()) == 20480
    assert loaded.sha256 == hashlib.sha256("".join(essays).encode()).hexdigest()


def test_essays_not_downloaded(tmp_path: Path) -> None:
    with pytest.raises(DataMissing) as caught:
        passkey("haystack=paulgraham").load(tmp_path)
    assert "lcbench download paulgraham" in caught.value.next_step


def test_backgrounds_have_the_words_asked_for(loaded: Loaded) -> None:
    for length in PUBLISHED_LENGTHS:
        row = next(row for row in loaded.rows if row.meta["length_words"] == length)
        assert len(row.fields["background"].split()) == length
    assert len({row.meta["background"] for row in loaded.rows}) == 10


def test_needle_stands_after_the_published_word(loaded: Loaded) -> None:
    task, row = passkey(), loaded.rows[3]
    text = task.prompt(row, HOME).text
    before = text[len(passkey_module._texts()["instruction"]) : text.index("The pass key is")]
    assert len(before.split()) == int(512 / 9) == 56
    assert before.split() == row.fields["background"].split()[:56]


def test_blanks_around_the_needle(loaded: Loaded) -> None:
    task = passkey()
    question, instruction = passkey_module._texts()["question"], passkey_module._texts()["instruction"]
    first, last = loaded.rows[0], loaded.rows[29]
    assert (first.meta["depth"], last.meta["depth"]) == (0.0, 1.0)
    assert task.prompt(first, HOME).text.startswith(f"{instruction} The pass key is {first.answers[0]}. Remember it.")
    assert task.prompt(first, HOME).text.endswith(f" {question}")
    assert task.prompt(last, HOME).text.endswith(f"{last.answers[0]} is the pass key.  {question}")
    for row in loaded.rows:
        text = task.prompt(row, HOME).text
        assert text.count(row.answers[0]) == 2
        assert text.startswith(instruction)


def test_question_start_and_suffix(loaded: Loaded) -> None:
    texts = passkey_module._texts()
    row = loaded.rows[5]
    prefix = passkey().prompt(row, HOME)
    assert prefix.question_start is not None
    assert prefix.text[prefix.question_start :] == texts["question"]
    suffix = passkey("instruction=suffix").prompt(row, HOME)
    assert suffix.question_start is not None
    assert suffix.text[suffix.question_start :] == texts["instruction"] + texts["question"]
    context = prefix.text[len(texts["instruction"]) : prefix.question_start]
    assert suffix.text[: suffix.question_start] == context


def test_limit_takes_the_first_rows(loaded: Loaded) -> None:
    part = passkey().load(HOME, limit=7)
    assert list(part.rows) == list(loaded.rows[:7])
    assert part.sha256 == loaded.sha256


def test_python_haystack_is_named_and_hashed(loaded: Loaded) -> None:
    from pydoc_data.topics import topics

    text = "".join(topics[name] for name in sorted(topics))
    assert loaded.sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert sys.version.split()[0] in loaded.note
    assert text.split()[:500] == loaded.rows[0].fields["background"].split()[:500]


def test_a_python_without_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    passkey_module._language_reference.cache_clear()
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(DataMissing, match=r"pydoc_data\.topics") as caught:
        passkey().load(HOME)
    assert "haystack=paulgraham" in caught.value.next_step


def test_background_wraps_fuses_and_counts_as_published() -> None:
    assert make_background(("a b\n", "c d "), 3) == "a b\nc"
    assert make_background((" a b", "c d"), 3) == "a bc d"[:6]  # 'b' and 'c' fuse: 2 + 2 counted, 3 words there
    assert make_background((" a b", "c d"), 4) == "a bc d"  # one word short
    assert make_background(("a b ",), 5) == "a b a b a"
    with pytest.raises(BadValue):
        make_background((" ", "\n"), 3)


def test_evenly() -> None:
    assert evenly(0, 1, 3) == [0, 0.5, 1]
    assert evenly(0, 1, 1) == [0, 1]
    assert evenly(0.5, 0.5, 9) == [0.5]
    assert [int(n) for n in evenly(512, 20480, 10)] == PUBLISHED_LENGTHS


def test_explicit_depths_and_ids() -> None:
    task = passkey("lengths=20/40,depths=0.5/0.25,repeats=2")
    assert task.id == "passkey@lengths=20/40,depths=0.5/0.25,repeats=2"
    assert resolve(task.id)[0] == task
    rows = task.load(HOME).rows
    assert [row.id for row in rows[:4]] == [f"len20-depth{d}-rep{r}" for d in ("0.500", "0.250") for r in (0, 1)]
    assert Counter(row.meta["depth"] for row in rows) == {0.5: 4, 0.25: 4}
    close = passkey("lengths=20,depths=0.1111/0.1112,repeats=1").load(HOME).rows
    assert [row.id for row in close] == ["len20-depth0.1111-rep0", "len20-depth0.1112-rep0"]
    assert passkey("depths=1.0").options["depths"] == "1.0"
    assert passkey("depths=07").id == "passkey@depths=7"
    assert passkey("depths=0.50/1").options["depths"] == "0.5/1.0"


@pytest.mark.parametrize(
    "options",
    ["depths=0", "depths=1.5", "depths=-0.1/0.5", "depths=x", "depths=0.5/0.5", "depths=nan/1", "lengths=0",
     "lengths=-1", "lengths=5/5", "lengths=a", "lengths=/", "repeats=0", "digits=0", "digits=1001", "max_new_tokens=0"],
)  # fmt: skip
def test_wrong_options(options: str) -> None:
    with pytest.raises(BadValue, match="passkey"):
        passkey(options)
