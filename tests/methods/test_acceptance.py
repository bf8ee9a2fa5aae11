"""T1 to T8 for every registered method on tiny Llama, Mistral (sliding window) and Qwen2 models."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import harness
import pytest
from cases import CASES
from harness import Case

from lcbench.methods.registry import all_methods


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with harness.one_thread():
        yield


def test_every_method_of_ours_has_a_case() -> None:
    ours = {name for name, cls in all_methods().items() if cls.__module__.startswith("lcbench.")}
    assert ours == set(CASES)
    assert all(case.spec.split("@")[0] == name for name, cases in CASES.items() for case in cases)


PAIRS = [(test, family) for test in harness.TESTS for family in harness.FAMILIES]


@pytest.mark.parametrize("case", [c for cases in CASES.values() for c in cases], ids=lambda case: case.spec)
@pytest.mark.parametrize(
    ("test", "family"),
    [pair for pair in PAIRS if harness.ON_ONE_FAMILY.get(*pair) == pair[1]],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_accepted(test: Callable[[Case, str], None], case: Case, family: str) -> None:
    harness.accept(test, case, family)
