"""Spec strings to dataclasses and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcbench.config.budget import Budget
from lcbench.config.options import Item, apply_settings, build, identifier, options_of, param, parse_item, split_items
from lcbench.errors import BadValue, UnknownName, UsageError
from lcbench.tasks.passkey import Passkey


@dataclass(frozen=True)
class Thing:
    bits: int = param(2, "bits", choices=(2, 4, 8))
    rate: float = param(0.5, "a rate", minimum=0.0, maximum=1.0)
    budget: Budget = param(Budget(ratio=0.25), "tokens kept")
    roll: bool = param(True, "roll")
    mode: Literal["a", "b"] = param("a", "mode")
    sizes: tuple[int, ...] = param((1, 2), "sizes", minimum=1)
    cap: int | None = param(None, "cap", minimum=1)


def make(text: str) -> Thing:
    return build(Thing, parse_item(text, "method"), "method")


def test_text_becomes_typed_values() -> None:
    thing = make("thing@bits=4,rate=1,budget=512,roll=no,mode=b,sizes=3/5,cap=7")
    assert thing == Thing(4, 1.0, Budget(tokens=512), False, "b", (3, 5), 7)
    assert make("thing:bits=8") == Thing(bits=8)
    assert make("thing@cap=none") == Thing()


def test_identifier_names_what_differs_and_reads_back() -> None:
    assert identifier("thing", Thing()) == "thing"
    thing = Thing(bits=4, budget=Budget(ratio=1.0), roll=False, sizes=(9,))
    assert identifier("thing", thing) == "thing@bits=4,budget=1.0,roll=false,sizes=9"
    assert make(identifier("thing", thing)) == thing
    assert identifier("thing", make("thing@rate=0.50,bits=2")) == "thing@bits=2,rate=0.5"  # as written, canonical
    assert make("thing@bits=2") == Thing()


@given(
    st.builds(
        Thing,
        bits=st.sampled_from([2, 4, 8]),
        rate=st.floats(0, 1).map(lambda x: float(f"{x:.12g}")),
        budget=st.one_of(
            st.integers(1, 10**6).map(lambda n: Budget(tokens=n)),
            st.floats(1e-6, 1).map(lambda x: Budget(ratio=float(f"{x:.12g}"))),
        ),
        roll=st.booleans(),
        mode=st.sampled_from(["a", "b"]),
        sizes=st.lists(st.integers(1, 99), min_size=1, max_size=4).map(tuple),
        cap=st.none() | st.integers(1, 99),
    )
)
def test_every_value_survives_its_identifier(thing: Thing) -> None:
    assert make(identifier("thing", thing)) == thing
    assert make(str(Item("thing", tuple(options_of(thing).items())))) == thing


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("thing@bit=4", UnknownName, "Did you mean 'bits'"),
        ("thing@bits=3", BadValue, "2, 4, 8"),
        ("thing@bits=two", BadValue, "whole number"),
        ("thing@rate=1.5", BadValue, "greatest value 1"),
        ("thing@rate=nan", BadValue, "number"),
        ("thing@rate=-0.1", BadValue, "least value 0"),
        ("thing@budget=0", BadValue, "budget"),
        ("thing@budget=1.5", BadValue, "budget"),
        ("thing@roll=maybe", BadValue, "true"),
        ("thing@mode=c", UnknownName, "mode"),
        ("thing@sizes=0/3", BadValue, "least"),
        ("thing@bits", UsageError, "key=value"),
        ("thing@bits=2,bits=4", UsageError, "twice"),
        ("@bits=2", UsageError, "name"),
    ],
)
def test_bad_options_are_told_in_one_sentence(text: str, error: type[UsageError], said: str) -> None:
    with pytest.raises(error) as caught:
        make(text)
    assert said in f"{caught.value.message} {caught.value.next_step}"


def test_commas_between_items_and_options() -> None:
    assert split_items("full, kivi@bits=2,residual_length=64,streamingllm,") == [
        "full", "kivi@bits=2,residual_length=64", "streamingllm",
    ]  # fmt: skip
    assert split_items("a:b=1,c=2,d") == ["a:b=1,c=2", "d"]


def test_settings_go_to_every_item_that_has_them_and_does_not_set_them() -> None:
    items = [Item("a"), Item("b", (("x", "1"),)), Item("c")]
    fields = {"a": {"x"}, "b": {"x", "y"}, "c": set()}
    assert apply_settings(items, {"x": "5"}, fields) == [Item("a", (("x", "5"),)), Item("b", (("x", "1"),)), Item("c")]
    with pytest.raises(UnknownName):
        apply_settings(items, {"z": "5"}, fields)


@pytest.mark.parametrize(
    ("text", "length", "kept"),
    [("0.25", 100, 25), ("25%", 101, 25), ("512", 100, 100), ("512", 1000, 512), ("0.5", 1, 1), ("1.0", 77, 77)],
)
def test_budget(text: str, length: int, kept: int) -> None:
    assert Budget.parse(text).resolve(length) == kept


def test_budget_floor() -> None:
    assert Budget.parse("0.01").resolve(100, at_least=5) == 5
    assert Budget.parse("0.01").resolve(3, at_least=5) == 3


@dataclass(frozen=True)
class Ruler:
    length: str = param("base", "length", bare=True)
    seed: int = param(0, "seed")


def test_a_length_is_written_without_its_name() -> None:
    for text in ("ruler@16k", "ruler@16K", "ruler@length=16k"):
        assert build(Ruler, parse_item(text, "task"), "task").length == "16k"
    ruler = build(Ruler, parse_item("ruler@seed=3,16k", "task"), "task")
    assert identifier("ruler", ruler) == "ruler@16k,seed=3"
    assert build(Ruler, parse_item("ruler@16k,seed=3", "task"), "task") == ruler
    assert identifier("ruler", build(Ruler, parse_item("ruler@base", "task"), "task")) == "ruler@base"
    assert parse_item("ruler@8k,16k,seed=3", "task") == Item("ruler", (("", "8k/16k"), ("seed", "3")))
    assert str(parse_item("ruler@8k,16k,seed=3", "task")) == "ruler@8k,16k,seed=3"


def test_commas_between_lengths_are_not_commas_between_items() -> None:
    assert split_items("ruler@8k,16k,base,qasper,ruler@1000,2wikimqa") == [
        "ruler@8k,16k,base", "qasper", "ruler@1000", "2wikimqa",
    ]  # fmt: skip
    assert split_items("ruler,8k") == ["ruler", "8k"]  # nothing to continue
    with pytest.raises(UsageError, match="Option '8k' of method 'thing' is not key=value"):
        make("thing@8k")


def test_how_several_values_are_written_is_said() -> None:
    joined = "Several values of one option are joined by /: lengths=384/1152."
    with pytest.raises(UsageError, match="Option '1152' of task 'passkey' is not key=value") as stray:
        build(Passkey, parse_item("passkey@lengths=384,1152", "task"), "task")
    assert joined in str(stray.value.next_step)
    with pytest.raises(UsageError) as word:
        parse_item("passkey@depths=0.1,x", "task")
    assert "joined by /: depths=0.1/x." in str(word.value.next_step)
    for text in ("384;1152", "many"):
        with pytest.raises(BadValue, match="is not a whole number") as value:
            build(Passkey, parse_item(f"passkey@lengths={text}", "task"), "task")
        assert "Several are joined by /, e.g. lengths=384/1152." in str(value.value.next_step)
    assert build(Passkey, parse_item("passkey@lengths=384/1152", "task"), "task").lengths == (384, 1152)


@pytest.mark.parametrize("text", ["llmlingua2@3x", "llmlingua2@scope=prompt,3x", "llmlingua2@2.5x"])
def test_a_preset_that_does_not_exist_is_told_which_do(text: str) -> None:
    with pytest.raises(UsageError, match=r"There is no preset '[\d.]+x' of method 'llmlingua2'") as caught:
        parse_item(text, "method")
    assert caught.value.next_step == "Presets are 2x, 4x, 6x, 8x."


def test_a_preset_of_a_method_without_presets_is_told_as_it_was_written() -> None:
    with pytest.raises(UsageError, match="The method 'thing' has no presets such as 2x") as caught:
        build(Thing, parse_item("thing@2x", "method"), "method")
    assert "preset=" not in str(caught.value) + str(caught.value.next_step)
    assert caught.value.next_step is not None
    assert caught.value.next_step.startswith("Its parameters: ")
