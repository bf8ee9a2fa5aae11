"""The decorator, look-up by name, and methods that other packages bring."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lcbench.cli import app
from lcbench.errors import BadValue, UnknownName, UsageError
from lcbench.methods import registry
from lcbench.methods.base import Method, Traits
from lcbench.methods.full import Full
from lcbench.methods.registry import all_methods, method, resolve


@pytest.fixture
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    all_methods()
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    monkeypatch.setattr(registry, "_broken", {})
    yield
    registry._import_all.cache_clear()


def test_ours_are_found() -> None:
    assert {"full", "kivi", "streamingllm"} <= set(all_methods())
    assert list(all_methods()) == sorted(all_methods())
    for name, cls in all_methods().items():
        assert cls.name == name
        assert cls.__doc__
        assert isinstance(cls.traits, Traits)


def test_resolve() -> None:
    assert resolve("full") == Full()
    assert resolve("kivi:bits=4,group_size=16").parameters == {
        "bits": "4",
        "group_size": "16",
        "residual_length": "128",
    }
    with pytest.raises(FrozenInstanceError):
        resolve("full").name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "title", "step"),
    [
        ("rwkv-5", "RWKV-5", "lcbench convert rwkv5"),
        ("mha2mla", "MHA2MLA", "lcbench convert mha2mla"),
        ("mamba", "Mamba", "--model MODEL --method full"),
        ("qwen3-next", "Qwen3-Next", "--model MODEL --method full"),
    ],
)
def test_an_architecture_is_told_from_a_method(name: str, title: str, step: str) -> None:
    with pytest.raises(UsageError, match=f"{title} is an architecture and no method") as caught:
        resolve(name)
    assert step in caught.value.next_step


def test_unknown_names_offer_the_nearest() -> None:
    with pytest.raises(UnknownName, match="Unknown method 'kivvi'") as caught:
        resolve("kivvi")
    assert "'kivi'" in caught.value.next_step
    with pytest.raises(UnknownName, match="Unknown parameter 'bit' of method 'kivi'") as caught:
        resolve("kivi@bit=2")
    assert "'bits'" in caught.value.next_step
    with pytest.raises(BadValue, match="bits"):
        resolve("kivi@bits=two")


@pytest.mark.usefixtures("_own_registry")
def test_two_methods_cannot_share_a_name() -> None:
    with pytest.raises(UsageError, match=r"Two methods are named 'full'.*Full.*Impostor"):

        @method("full", paper="", traits=Traits(family="baseline"))
        @dataclass(frozen=True)
        class Impostor(Method):
            """Another."""


@pytest.mark.usefixtures("_own_registry")
def test_the_same_class_may_be_registered_again() -> None:
    def register() -> type[Method]:
        @method("mine", paper="", traits=Traits(family="evict", stackable=False))
        @dataclass(frozen=True)
        class Mine(Method):
            """Reloaded, as in a notebook."""

        return Mine

    register()
    newest = register()
    assert all_methods()["mine"] is newest
    assert resolve("mine").traits == Traits(family="evict", stackable=False)


def _plugin(folder: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    """A package ``my_methods`` with the entry point ``theirs``, as pip would have installed it."""
    (folder / "my_methods.py").write_text(source)
    info = folder / "my_methods-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-methods\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[lcbench.methods]\ntheirs = my_methods:Theirs\n")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "my_methods", raising=False)
    registry._import_all.cache_clear()


@pytest.mark.usefixtures("_own_registry")
def test_methods_of_other_packages_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = (
        "from dataclasses import dataclass\n"
        "from lcbench.config.options import param\n"
        "from lcbench.methods.base import Method, Traits\n"
        "from lcbench.methods.registry import method\n"
        "@method('theirs', paper='', traits=Traits(family='evict'))\n"
        "@dataclass(frozen=True)\n"
        "class Theirs(Method):\n"
        "    size: int = param(3, 'a size')\n"
    )
    _plugin(tmp_path, monkeypatch, source)
    assert resolve("theirs@size=7").parameters == {"size": "7"}


@pytest.mark.usefixtures("_own_registry")
def test_a_broken_package_is_named_and_stops_no_other_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _plugin(tmp_path, monkeypatch, "import nothing_of_that_name\n")
    assert "theirs" not in all_methods()
    assert resolve("kivi@bits=4").name == "kivi"
    words = r"plug-in 'theirs' \(my_methods:Theirs\) cannot be imported.*nothing_of_that"
    for spec in ("theirs", "theirs@size=3", "snapkv+theirs"):
        with pytest.raises(UsageError, match=words) as e:
            resolve(spec)
        assert e.value.next_step
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == 0
    found = {check["name"]: check for check in json.loads(result.stdout)["checks"]}
    assert found["theirs"]["ok"] is False
    assert "nothing_of_that_name" in found["theirs"]["value"]


@pytest.mark.parametrize(
    ("spec", "same"),
    [
        ("snapkv@8x", "snapkv@budget=0.125"),
        ("snapkv@6x,window=8", "snapkv@budget=0.17,window=8"),
        ("streamingllm@budget=2x", "streamingllm@budget=0.5"),
        ("infllm@4x", "infllm@preset=4x"),
        ("h2o-longctx@6x", "h2o-longctx@preset=6x"),
    ],
)
def test_presets_for_short(spec: str, same: str) -> None:
    assert resolve(spec).id == resolve(same).id == same


def test_presets_that_mean_nothing_are_refused() -> None:
    with pytest.raises(UsageError, match="has no presets such as 2x"):
        resolve("kivi@2x")
    with pytest.raises(BadValue, match="budget twice"):
        resolve("snapkv@2x,budget=3")
    with pytest.raises(UsageError, match="no preset"):
        resolve("snapkv@3x")
