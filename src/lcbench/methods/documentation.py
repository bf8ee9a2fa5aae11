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
from lcbench.methods.base import CacheTransform, Method, Traits
from lcbench.methods.extension import Extension
from lcbench.methods.registry import all_methods
from lcbench.methods.taxonomy import CATEGORIES, by_category

_HEAD = """\
# Methods

*This page is generated from the method registry (`make docs`).*

`lcbench run --method NAME` takes one method or several: `--method full,kivi@bits=4,streamingllm`. Parameters follow
the name (`kivi@bits=4,group_size=64`) or are set for all methods that have them (`--set bits=4`). `lcbench list
methods` shows the same table in the terminal. Your own method takes about 20 lines: [add-a-method.md](add-a-method.md).

**Budgets.** `budget` is a share of the prompt (`0.25`, `25%`) or a number of tokens (`512`), per layer and stored head,
recent window included. `2x`, `4x`, `6x` and `8x` stand for 0.5, 0.25, 0.17 and 0.125, the settings of "KV Cache
Compression, But What Must We Give in Return?" (arXiv:2407.01527): `snapkv@4x` is `snapkv@budget=0.25`, and for
`h2o-longctx`, `streamingllm-longctx` and `infllm` it is that paper's configuration to the token. KV heads choose and
store by default; with `granularity=query` every query head has entries of its own and is charged for them.

**Two together.** `snapkv@budget=0.25+kivi@bits=2` drops tokens and quantizes what is left: the quantizer is given the
kept tokens of each head in the order of the text, as if they were the prompt, and their positions stay those of the
text. Bytes are those of the codes, scales and exact residual of so many tokens; heads with budgets of their own (adakv,
headkv) are quantized one by one. The column *together* says which methods come first and which second. Compared with
the quantizer run by hand on the kept tokens of each head, on the three families below, and with the dropper alone
where nothing is quantized yet. A method that shortens the prompt comes before any cache method:
`llmlingua2@rate=0.5+kivi@bits=4`, `gemfilter+snapkv+kivi` ([prompt-compression.md](prompt-compression.md)).
"""

_COLUMNS = """\
* **prefill**: shared means that the method compresses the result of the unmodified dense pass over the prompt, so that
  one pass serves all such methods of a run; own means that it reads the prompt in its own way. Methods on one context
  extension share the pass of the extended model.
* **memory**: real means that dropped bytes are freed and the bytes in a record are those of the tensors held; simulated
  means that they only count as dropped.
* **needs**: what must be there before: a calibration of the model, which the command shown makes, or weights that
  somebody trained. Empty: nothing.
* **together**: first or second in a composition `first+second`, or before either or both of them: a context extension
  ([extension.md](extension.md)).

Methods of the category *retrieval* keep every token: their bytes are those of a full cache and more. What a decoding
step reads of them is `resident_bytes` in each record, and a note below each table.
"""

_PROOF = """\
Every method passes the acceptance harness (`tests/methods/harness.py`) on tiny random Llama, Mistral (with a sliding
window) and Qwen2 models in fp32: settings that change nothing equal the full cache; teacher-forced logits equal a
second, independent computation; kept sets, bytes, forks, short prompts, several tokens at once; the shared prefill
stays bit-identical; the same run twice gives the same bits. What was proven beyond that stands with each method, and
where it differs from its paper or the authors' code, its text says so.

Every method also runs on tiny Qwen3, Phi-3, Gemma-2 (soft caps), Gemma-3 (sliding and full layers with angles of their
own), SmolLM3 (layers without angles), OLMo-2, GPT-OSS (sinks) and Falcon models (`tests/methods/test_families.py`):
settings that change nothing equal transformers' eager attention, what drops tokens equals it with those keys masked,
all methods in one batch. A hundred random combinations of methods, parameters, families, prompt lengths and batches
(`tests/methods/test_fuzz.py`; more with `LCBENCH_FUZZ=2000`) end without a crash or not-a-number, and a sample's
logits are those it has alone. Families that lcbench does not serve (ALiBi, layers without a cache, keys and values of
different width, …) are refused in a sentence before weights are read; so are, for methods that turn queries or keys to
other positions (aqua-kv, expected-attention, infllm, longcache, shadowkv, streamingllm-longctx), models whose rotary
embedding is not understood (`tests/methods/test_turns.py`).

**Ties.** Selections compare fp32 numbers, and equal ones keep the lower position (the older page, block or key; of
heads or layers that share a budget, the lower one): the sort is stable, on every device. Only equal numbers tie.
Tokens that are repeated in a text have the same key before it is turned in the first layer, but turning rounds, so
methods that look at keys alone (knorm, keydiff) choose among them by the last bit, which may differ between devices.
"""


def render() -> str:
    """The page: a table of our methods, then each with its description, parameters and proof. Markdown."""
    methods = {name: cls for name, cls in all_methods().items() if cls.__module__.startswith("lcbench.")}
    sections = [section(name, cls) for name, cls in sorted(methods.items(), key=lambda item: by_category(item[1]))]
    return "\n".join([_HEAD, table(methods), "", _COLUMNS, _PROOF, *sections]).rstrip() + "\n"


def table(methods: dict[str, type[Method]]) -> str:
    """One row a method: name, category, paper, traits."""
    lines = ["| method | category | paper | prefill | memory | needs | together |", "|---|---|---|---|---|---|---|"]
    for name, cls in sorted(methods.items(), key=lambda item: by_category(item[1])):
        traits = cls.traits
        cells = [
            f"[`{name}`](#{name})",
            CATEGORIES[traits.family].partition(":")[0],
            _paper(cls.paper),
            traits.prefill,
            traits.memory,
            _needs(traits),
            _together(cls),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _together(cls: type[Method]) -> str:
    """Which place a method has in a composition."""
    if issubclass(cls, Extension):
        return "before others"
    if cls.traits.family == "prompt" or cls().leaves_subset:
        return "first"
    for field in dataclasses.fields(cls):
        if field.default is True and cls(**{field.name: False}).leaves_subset:
            return f"first, with {field.name}=false"
    return "second" if issubclass(cls, CacheTransform) and cls.takes_subset else ""


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


def _needs(traits: Traits) -> str:
    """What must be there before a run, in words."""
    parts = [f"a calibration: `lcbench calibrate {name}`" for name in traits.calibrate.split(", ") if name]
    return "; ".join([*parts, *([_cell(traits.training)] if traits.training else [])])


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
