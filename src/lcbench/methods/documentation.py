"""``docs/methods.md``, written from the registry: ``python -m lcbench.methods.documentation docs/methods.md``."""

from __future__ import annotations

import dataclasses
import inspect
import sys
import typing
from pathlib import Path
from typing import Any

from lcbench.config.budget import Budget
from lcbench.config.options import format_value
from lcbench.methods.base import Method
from lcbench.methods.registry import all_methods

_HEAD = """\
# Methods

*This page is generated from the method registry (`make docs`).*

`lcbench run --method NAME` takes one method or several: `--method full,kivi@bits=4,streamingllm`. Parameters follow
the name (`kivi@bits=4,group_size=64`) or are set for all methods that have them (`--set bits=4`). `lcbench list
methods` shows the same table in the terminal. Your own method takes about 20 lines: [add-a-method.md](add-a-method.md).
"""

_COLUMNS = """\
* **prefill**: shared means that the method compresses the result of the unmodified dense pass over the prompt, so that
  one pass serves all such methods of a run; own means that it reads the prompt in its own way.
* **memory**: real means that dropped bytes are freed and the bytes in a record are those of the tensors held; simulated
  means that they only count as dropped.
* **needs**: what must be trained or calibrated before.
"""

_PROOF = """\
Every method passes the acceptance harness (`tests/methods/harness.py`) on tiny random Llama, Mistral (with a sliding
window) and Qwen2 models in fp32: settings that change nothing equal the full cache; teacher-forced logits equal a
second, independent computation; kept sets, bytes, forks, short prompts, several tokens at once; the shared prefill
stays bit-identical; the same run twice gives the same bits. What was proven beyond that stands with each method.
"""


def render() -> str:
    """The page: a table of our methods, then each with its description, parameters and proof. Markdown."""
    methods = {name: cls for name, cls in all_methods().items() if cls.__module__.startswith("lcbench.")}
    sections = [section(name, cls) for name, cls in sorted(methods.items(), key=lambda item: _order(item[1]))]
    return "\n".join([_HEAD, table(methods), "", _COLUMNS, _PROOF, *sections]).rstrip() + "\n"


def table(methods: dict[str, type[Method]]) -> str:
    """One row a method: name, family, paper, traits."""
    lines = ["| method | family | paper | prefill | memory | needs |", "|---|---|---|---|---|---|"]
    for name, cls in sorted(methods.items(), key=lambda item: _order(item[1])):
        traits = cls.traits
        cells = [
            f"[`{name}`](#{name})",
            traits.family,
            _paper(cls.paper),
            traits.prefill,
            traits.memory,
            _cell(traits.training),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def section(name: str, cls: type[Method]) -> str:
    """Description, parameters and proof of one method."""
    lines = [f"## {name}", "", inspect.cleandoc(cls.__doc__ or "").replace("``", "`"), ""]
    fields = dataclasses.fields(cls)
    if fields:
        lines += ["| parameter | default | values | meaning |", "|---|---|---|---|"]
        hints = typing.get_type_hints(cls)
        for field in fields:
            cells = [
                f"`{field.name}`",
                f"`{format_value(field.default)}`",
                _cell(_values(hints[field.name], field.metadata)),
                _cell(str(field.metadata.get("doc", ""))),
            ]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    if cls.proof:
        lines += [f"**Proven.** {cls.proof}", ""]
    return "\n".join(lines)


def _order(cls: type[Method]) -> tuple[int, str]:
    families = ["baseline", "quantize", "evict", "merge", "retrieve", "prompt", "extend", "architecture"]
    return families.index(cls.traits.family), cls.name


def _values(hint: Any, metadata: Any) -> str:
    """What a parameter accepts, in words."""
    arms = [arm for arm in typing.get_args(hint) if arm is not type(None)]
    if type(None) in typing.get_args(hint):
        return f"{_values(arms[0], metadata)}, or none"
    choices = metadata.get("choices") or (arms if typing.get_origin(hint) is typing.Literal else None)
    if choices:
        return ", ".join(format_value(choice) for choice in choices)
    if typing.get_origin(hint) is tuple:
        return f"{_values(arms[0], metadata)}; several joined by /"
    kinds = {int: "whole number", float: "number", bool: "true, false", str: "text", Budget: "ratio or number"}
    kind = kinds[hint]
    low, high = metadata.get("minimum"), metadata.get("maximum")
    bounds = [f"{low:g} or more"] if low is not None else []
    bounds += [f"{high:g} or less"] if high is not None else []
    return ", ".join([kind, *bounds])


def _paper(paper: str) -> str:
    if paper.startswith("arXiv:"):
        number = paper.removeprefix("arXiv:")
        return f"[{paper}](https://arxiv.org/abs/{number})"
    return _cell(paper)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def write(path: Path) -> None:
    """Write the page to ``path``."""
    path.write_text(render(), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/methods.md"))
