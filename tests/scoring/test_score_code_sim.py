"""code_sim: two definitions, both our own, whatever is installed beside us."""

from __future__ import annotations

import subprocess
import sys
import types

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from score_oracle import indel_distance, matching_characters

from lcbench.scoring.metrics import score
from lcbench.scoring.metrics.code_sim import code_sim, difflib_similarity, first_code_line, indel_similarity

LINE = st.text(alphabet="abc ()=.", max_size=30)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("\n\nreturn x\nmore", "return x"),
        ("# comment\n```python\n// no\nx = 1", "x = 1"),
        ("url = 'https://a.b'\ny = 2", "y = 2"),
        ("   \nx", "   "),
        ("x = 1\r\ny", "x = 1\r"),
        ("# only", ""),
        ("", ""),
    ],
)
def test_first_code_line(text: str, line: str) -> None:
    assert first_code_line(text) == line


@given(LINE, LINE)
@settings(max_examples=300, deadline=None)
def test_difflib_definition_equals_the_slow_one(a: str, b: str) -> None:
    if a and b:
        assert difflib_similarity(a, b) == 2.0 * matching_characters(a, b) / (len(a) + len(b))


@given(st.integers(190, 215), st.randoms(use_true_random=False), st.integers(0, 60))
@settings(max_examples=25, deadline=None)
def test_long_answers_use_the_rule_for_popular_characters(length: int, rng: types.ModuleType, edits: int) -> None:
    answer = [rng.choice("abcdefghijklmnopqrstuvwxyzABCDEFGH") for _ in range(length)]
    line = list(answer)
    for _ in range(edits):
        line[rng.randrange(length)] = rng.choice("abcxyz_")
    a, b = "".join(line), "".join(answer)
    assert difflib_similarity(a, b) == 2.0 * matching_characters(a, b) / (2 * length)


def test_from_200_characters_on_popular_ones_start_no_match() -> None:
    shorter, longer = "ab" * 99, "ab" * 100
    assert code_sim("b" + shorter[1:], shorter) > 0.9
    assert code_sim("b" + longer[1:], longer) == 0.0


def test_the_order_of_the_two_matters() -> None:
    a, b = "tide", "diet"
    assert code_sim(a, b) == 0.25
    assert code_sim(b, a) == 0.5


@given(LINE, LINE)
@settings(max_examples=300, deadline=None)
def test_levenshtein_definition_equals_the_textbook_table(a: str, b: str) -> None:
    if a and b:
        length = len(a) + len(b)
        assert indel_similarity(a, b) == 1.0 - indel_distance(a, b) / length


@given(LINE, LINE)
@settings(max_examples=300, deadline=None)
def test_levenshtein_definition_equals_the_package_where_it_is_installed(a: str, b: str) -> None:
    package = pytest.importorskip("Levenshtein")
    if a and b:
        assert indel_similarity(a, b) == package.ratio(a, b)


@pytest.mark.parametrize("definition", ["difflib", "levenshtein"])
def test_equal_and_empty_lines(definition: str) -> None:
    assert score("code_sim", "", [""], code_sim=definition) == 1.0
    assert score("code_sim", "# x", [""], code_sim=definition) == 1.0
    assert score("code_sim", "x", [""], code_sim=definition) == 0.0
    assert score("code_sim", "", ["x"], code_sim=definition) == 0.0
    assert score("code_sim", "x = 1", ["x = 1"], code_sim=definition) == 1.0


def test_percents_are_rounded_half_to_even() -> None:
    # 2 x 1 / 16 = 12.5 %
    assert code_sim("a" + "x" * 7, "a" + "y" * 7) == 0.12


PAIRS = [("for i in range(10):", "for index in range(n):"), ("x", "return self.value"), ("abcd", "dabc")]


@pytest.mark.parametrize("definition", ["difflib", "levenshtein"])
def test_nothing_installed_beside_us_moves_a_score(definition: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = [score("code_sim", p, [a], code_sim=definition) for p, a in PAIRS]
    lying = types.ModuleType("Levenshtein")
    lying.ratio = lambda a, b: 0.123  # type: ignore[attr-defined]
    for stand_in in (None, lying):
        for name in ("Levenshtein", "rapidfuzz", "fuzzywuzzy", "thefuzz"):
            monkeypatch.setitem(sys.modules, name, stand_in)
        assert [score("code_sim", p, [a], code_sim=definition) for p, a in PAIRS] == before


def test_the_packages_are_not_even_imported() -> None:
    code = (
        "import sys\n"
        "from lcbench.scoring.metrics import score\n"
        "for d in ('difflib', 'levenshtein'): score('code_sim', 'abc', ['abd'], code_sim=d)\n"
        "bad = {'Levenshtein', 'rapidfuzz', 'fuzzywuzzy', 'thefuzz'} & set(sys.modules)\n"
        "assert not bad, bad\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_difflib_definition_is_that_of_fuzzywuzzy_without_levenshtein() -> None:
    """The reference itself, in a process where python-Levenshtein cannot be imported."""
    pytest.importorskip("fuzzywuzzy")
    code = (
        "import sys, random, warnings\n"
        "sys.modules['Levenshtein'] = None\n"
        "warnings.simplefilter('ignore')\n"
        "from fuzzywuzzy import fuzz\n"
        "from lcbench.scoring.metrics.code_sim import code_sim\n"
        "rng = random.Random(4)\n"
        "for _ in range(400):\n"
        "    a, b = (''.join(rng.choice('abc (=)') for _ in range(rng.choice([0, 3, 40, 230]))) for _ in 'ab')\n"
        "    assert code_sim(a, b) == fuzz.ratio(a, b) / 100, (a, b)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
