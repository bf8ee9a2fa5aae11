"""jieba: only for Chinese, silent, the same words as the package gives, and a cache that can break nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import jieba
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lcbench.scoring.files import read_file
from lcbench.scoring.metrics import dictionary, segment

TEXTS = [
    "小明硕士毕业于中国科学院计算所，后在日本京都大学深造。",
    "ABC 3.14 北京 test\n第二行\u3000全角空格，don't",
    "",
    "plain English only",
]


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Path:
    """No dictionary loaded; returns the folder of its cache."""
    _forget()
    from lcbench.config.home import home

    yield home() / "cache"  # type: ignore[misc]
    _forget()


def _forget() -> None:
    dictionary._load.cache_clear()
    segment.words.cache_clear()
    segment._unknown.cache_clear()


@pytest.fixture(autouse=True)
def quiet_jieba() -> None:
    jieba.setLogLevel(30)


def test_words_are_those_of_jieba() -> None:
    for text in TEXTS:
        assert list(segment.words(text)) == jieba.lcut(text)
        assert "".join(segment.words(text)) == text


# Characters that make words, names and numbers together, rare ones, and what jieba treats apart.
HAN = "中国人民大学北京清华的了在是小明王李硕士计算所网易杭研厦㐀龥龦々"
OTHERS = ["３", "A", "b1", "3.14", "50%", "C++", "#", "_", "-", "&", " ", "，", "。", "·", "é", "α", "😀"]
BREAKS = ["\r\n", "\r", "\n", "\u3000"]
PIECES = st.sampled_from([*HAN, *OTHERS, *BREAKS, "T恤", "卡拉OK"])


@given(st.lists(PIECES, max_size=30).map("".join))
@settings(max_examples=400, deadline=None)
def test_words_of_any_text_are_those_of_jieba(text: str) -> None:
    assert list(segment.words(text)) == jieba.lcut(text)


@pytest.mark.parametrize("task", ["vcsum", "dureader", "multifieldqa_zh"])
def test_words_of_published_answers_are_those_of_jieba(shared_data: Path, task: str) -> None:
    folder = shared_data / "predictions" / "longbench-forks" / "llama3-8b-instruct"
    samples = read_file(next(folder.glob(f"{task}.jsonl*"))).samples
    texts = [text for sample in samples for text in (sample.prediction, *sample.answers)]
    assert len(texts) >= 400
    assert [text for text in texts if list(segment.words(text)) != jieba.lcut(text)] == []


def test_words_that_others_add_to_jieba_do_not_reach_us() -> None:
    code = (
        "import jieba\n"
        "from lcbench.scoring.metrics.segment import words\n"
        "jieba.setLogLevel(30)\n"
        "text = '他来到了网易杭研大厦'\n"
        "before = jieba.lcut(text)\n"
        "jieba.add_word('网易杭研大厦')\n"
        "assert jieba.lcut(text) != before\n"
        "assert list(words(text)) == before\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_cache_is_used_and_a_damaged_one_is_made_anew(fresh: Path) -> None:
    expected = segment.words(TEXTS[0])
    (file,) = fresh.glob("jieba-*.bin")
    good = file.read_bytes()
    for content in (b"", good[:-1] + b"x"):
        file.write_bytes(content)
        _forget()
        assert segment.words(TEXTS[0]) == expected
        assert file.read_bytes() == good
    assert [p.name for p in fresh.iterdir()] == [file.name]


def test_a_cache_that_cannot_be_written_is_no_error(fresh: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fresh.parent.mkdir(parents=True)
    fresh.write_text("a file where the folder should be")
    assert segment.words(TEXTS[0])[0] == "小明"
    assert capfd.readouterr() == ("", "")


def test_english_tasks_load_no_jieba_and_chinese_ones_say_nothing(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from lcbench.scoring import score_row\n"
        "for task in ('qasper', 'gov_report', 'lcc', 'passage_count', 'trec'):\n"
        "    score_row(task, 'a b', ['a b'], ['a b'])\n"
        "assert not {'jieba', 'numpy', 'torch', 'transformers', 'datasets'} & set(sys.modules)\n"
        "score_row('vcsum', '你好世界', ['你好'])\n"
        "assert 'jieba' in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-W", "always", "-c", code], check=True, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_processes_may_load_at_once(tmp_path: Path) -> None:
    code = "from lcbench.scoring.metrics.segment import words; print(len(words('小明硕士毕业于中国科学院')))"
    running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(3)]
    assert {p.communicate()[0].strip() for p in running} == {b"5"}
    assert {p.returncode for p in running} == {0}
