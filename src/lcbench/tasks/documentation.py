"""``docs/tasks.md``, written from the registry: ``python -m lcbench.tasks.documentation docs/tasks.md``."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from lcbench.config.options import format_value
from lcbench.tasks.base import Task
from lcbench.tasks.facts import facts_of
from lcbench.tasks.registry import all_groups, all_tasks

_HEAD = """\
# Tasks

*This page is generated from the task registry (`make docs`).*

`lcbench run --task NAME` takes task names, groups (benchmarks and categories) and comma-separated lists of both.
Options follow the name: `passkey@digits=64,repeats=1`. A benchmark may stand before the name: `longbench/qasper` is
`qasper`, `longbench-e/qasper` is `qasper_e`, `longbench-e/few-shot` are the few-shot tasks of LongBench-E.
The tasks of 100-LongBench exist at lengths (`100-longbench/kv_retrieval@16k`, `100-longbench@8k,16k`) and are built
first ([100-longbench.md](100-longbench.md)).
`lcbench list tasks` shows the same table with what is downloaded. `--limit N` takes the first N rows of every task.
"""

_COLUMNS = """\
* **rows**: of the whole data set (passkey: with default options).
* **chat**: whether the prompt is wrapped in the model's chat template.
* **too long**: what happens to a prompt longer than the window: its middle is cut out, or the row is an error.
* **first line**: only the first line of the answer is scored (leading line breaks stripped first).
* **stops**: what ends an answer beside the model's own end tokens and the most tokens allowed: a line break (never as
  the first token), or early, as soon as the scorer reads no further. Early stopping cannot change a score.
* **version**: raised whenever a change moves a score; it is in every record.
"""

_PROTOCOL = """\
## LongBench prompts and lengths

Prompts and answer lengths are the official configuration files (`dataset2prompt.json`, `dataset2maxlen.json`), which
`lcbench download` fetches and verifies; each template is checked against its SHA-256 before it is used. A prompt with
more tokens than its limit keeps the first and the last half of the limit, decoded, joined and tokenized again, as the
official script does it. The limit is the model's window less the answer and the chat format, or exactly
`--max-input-tokens N`; give the official table value (3500, 7500, 15500, 31500) to repeat a published run. Where the
finished prompt and the answer would not fit the model's window, the limit is lowered until they do.
`--truncation exact-ids` cuts token ids instead and tokenizes nothing twice.
"""


def render() -> str:
    """The whole page, Markdown."""
    parts = [_HEAD, _table(), _COLUMNS, _groups(), _PROTOCOL, _options(), _changelog()]
    return "\n".join(part.rstrip() + "\n" for part in parts)


def write(path: Path) -> None:
    """Write the page to ``path``."""
    path.write_text(render(), encoding="utf-8")


def _table() -> str:
    lines = [
        "| task | benchmark | category | language | metric | rows | chat | too long | first line | stops | version |",
        "|---|---|---|---|---|---:|---|---|---|---|---:|",
    ]
    for name, cls in all_tasks().items():
        cells = [
            f"`{name}`",
            cls.benchmark,
            cls.category,
            cls.language,
            cls.metric,
            str(cls.rows or ""),
            "yes" if cls.chat else "no",
            "cut in the middle" if cls.truncate == "middle" else "error",
            "yes" if _cut(name) else "no",
            _stops(cls),
            str(cls.version),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _stops(cls: type[Task]) -> str:
    if cls.stop == "newline":
        return "at a line break"
    if not cls.early_stop:
        return ""
    return "after the first line" if _cut(cls.name) else "after the first code line"


def _cut(name: str) -> bool:
    facts = facts_of(name)
    return facts is not None and facts.cut_first_line


def _groups() -> str:
    lines = ["## Groups", "", "| name | what | tasks |", "|---|---|---|"]
    for group in all_groups().values():
        members = ", ".join(f"`{name}`" for name in group.members)
        lines.append(f"| `{group.name}` | {group.doc} | {members} |")
    return "\n".join(lines)


def _options() -> str:
    lines = ["## Options", ""]
    together: dict[str, list[str]] = {}
    for name, cls in all_tasks().items():
        rows = [
            f"| `{field.name}` | `{format_value(field.default)}` | {field.metadata.get('doc', '')} |"
            for field in dataclasses.fields(cls)
        ]
        if rows:
            together.setdefault("\n".join(rows), []).append(name)
    for table, names in together.items():
        heading = ", ".join(f"`{name}`" for name in names)
        lines += [f"### {heading}", "", "| option | default | meaning |", "|---|---|---|", table, ""]
    return "\n".join(lines)


def _changelog() -> str:
    lines = ["## Changelog", ""]
    by_text: dict[tuple[int, str], list[str]] = {}
    for name, cls in all_tasks().items():
        for version, text in sorted(cls.changelog.items()):
            by_text.setdefault((version, text), []).append(name)
    for (version, text), names in sorted(by_text.items()):
        who = "all tasks" if len(names) == len(all_tasks()) else ", ".join(f"`{name}`" for name in names)
        lines.append(f"* version {version} ({who}): {text}")
    return "\n".join(lines)


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/tasks.md"))
