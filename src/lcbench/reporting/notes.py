"""What a reader of a table must be told: what was left out, cut, unfinished, failed or only simulated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from lcbench.reporting.table import Cell, Line
from lcbench.reporting.words import bytes_text
from lcbench.scoring.remarks import unfinished
from lcbench.store.rundir import RunDirectory
from lcbench.store.schema import PredictionRecord
from lcbench.tasks.notes import said_once

Records = Mapping[tuple[str, str], Sequence[PredictionRecord]]


def notes_of(run: RunDirectory, records: Records) -> list[str]:
    """Notes about one run."""
    counts = {key: len(found) for key, found in records.items()}
    return [
        *_model(run.provenance.get("model")),
        *asked(run.spec),
        *seen_question(run),
        *_data(run),
        *_looked_up(records),
        *_shortened(run, records),
        *unfinished(run, counts),
    ]


def merged_notes(notes: Sequence[tuple[RunDirectory, Sequence[str]]]) -> list[str]:
    """The notes of all runs, each once: those that not all runs say with the runs that do.

    What is said of a task is said once for all tasks it holds for, and needs no run where all runs with the task say
    it.
    """
    said: dict[str, list[tuple[RunDirectory, str]]] = {}
    for run, own in notes:
        for note in dict.fromkeys(own):
            task = next((task for task in run.tasks if note.startswith(f"{task}: ")), "")
            said.setdefault(note.removeprefix(f"{task}: "), []).append((run, task))
    found = []
    for text, places in said.items():
        tasks = [task for task in dict.fromkeys(task for _, task in places) if task]
        holders = [run for run, _ in notes if not tasks or set(tasks) & set(run.tasks)]
        whose = [] if len({run.path for run, _ in places}) == len(holders) else [str(run.path) for run, _ in places]
        about = said_once((task, text) for task in tasks) if tasks else [text]
        found += [f"{', '.join(dict.fromkeys(whose))}: {line}" if whose else line for line in about]
    return found


def overall_notes(lines: Sequence[Line], cells: Iterable[Cell], labels: Mapping[str, str]) -> list[str]:
    """Notes about the table: simulated memory, failures, and what its means are.

    Args:
        labels: name of a mean to what it is, in words.
    """
    cells = list(cells)
    notes = []
    if any(cell.memory == "simulated" for cell in cells):
        notes.append("* simulated memory: these bytes only count as dropped, they were not freed")
    failed = sum(cell.errors for cell in cells)
    if failed:
        were = "sample failed and is" if failed == 1 else "samples failed and are"
        notes.append(f"{failed} {were} not in the scores; the same `lcbench run` command tries again")
    notes += [f"{line.name}: {labels[line.name]}" for line in lines if line.name in labels]
    return notes


def _looked_up(records: Records) -> list[str]:
    """Methods that hold more than a step reads: what they would need on an accelerator."""
    own: dict[str, list[tuple[int, int]]] = {}
    for (method, _), found in records.items():
        # Simulated bytes are none that are held.
        real = (r for r in found if r.ok and r.memory == "real")
        pairs = [(r.resident_bytes or 0, r.kv_bytes or 0) for r in real]
        own.setdefault(method, []).extend((read, held) for read, held in pairs if 0 < read < held)
    return [
        f"{method}: of the bytes it holds a step reads {bytes_text(fmean(read for read, _ in pairs))} "
        f"({fmean(read / held for read, held in pairs):.0%})"
        for method, pairs in own.items()
        if pairs
    ]


def _shortened(run: RunDirectory, records: Records) -> list[str]:
    """Methods that shorten the prompt: to how much, in how long. Seconds are those of when a text was shortened."""
    tokens: dict[str, list[tuple[int, int]]] = {}
    seconds: dict[str, list[float]] = {}
    for (method, task), found in records.items():
        for r in found:
            if r.ok and r.tokens_before and r.prompt_tokens is not None:
                tokens.setdefault(method, []).append((r.tokens_before, r.prompt_tokens))
        if method in tokens:
            seconds.setdefault(method, []).extend(
                t["rewrite"] for t in run.timings(method, task).values() if "rewrite" in t
            )
    notes = []
    for method, pairs in tokens.items():
        before, after = fmean(pair[0] for pair in pairs), fmean(pair[1] for pair in pairs)
        mean = fmean(seconds[method]) if seconds[method] else 0.0
        took = f", in {mean:.0f} s a prompt" if mean >= 10 else f", in {mean:.2g} s a prompt" if mean else ""
        notes.append(
            f"{method}: prompts shortened from {before:,.0f} to {after:,.0f} tokens in the mean "
            f"({after / before:.0%}){took}; bytes are compared with the cache of the whole prompt"
        )
    return notes


def _model(model: Any) -> list[str]:
    """Which weights, and in which dtype the cache was: a ratio against float32 is twice one against 16 bits."""
    if isinstance(model, Mapping) and model.get("source") == "served":
        found = [f"model {model.get('name', '?')} behind {model.get('base_url', '?')}: {model.get('asked', '')}"]
        served = model.get("lcbench")
        if isinstance(served, Mapping):
            found.append(f"that server is lcbench serve: {served.get('model')} with {served.get('method')}")
        return found
    if isinstance(model, Mapping) and model.get("source") == "imported":
        return [f"model {model.get('name', '?')}: predictions imported; tokens and bytes are not known"]
    if not isinstance(model, Mapping) or not model.get("dtype"):
        return []
    name, dtype = model.get("name", "?"), model["dtype"]
    notes = [f"model {name} in {dtype} on {model.get('device', '?')}; ratios are to its uncompressed {dtype} cache"]
    state = model.get("state")
    if isinstance(state, Mapping) and state.get("state_bytes"):
        attending = state.get("attention_layers")
        more = f" and the keys and values of its {attending} attention layers" if attending else ""
        notes.append(
            f"{name}: KV bytes are those of its state ({bytes_text(state['state_bytes'])}, whatever the length){more}"
        )
    return notes


def asked(spec: Mapping[str, Any]) -> list[str]:
    """Options that make results differ from those of a full run."""
    notes = []
    if spec.get("limit") is not None:
        notes.append(f"only the first rows of each task were asked for (--limit {spec['limit']})")
    if spec.get("max_input_tokens") is not None:
        notes.append(
            f"prompts were limited to {spec['max_input_tokens']} tokens, chat format and answer not counted "
            f"(--max-input-tokens {spec['max_input_tokens']})"
        )
    if spec.get("over_length") == "skip":
        notes.append("prompts longer than the window were left out (--over-length skip)")
    if spec.get("over_length") == "truncate":
        notes.append("prompts longer than the window were cut in the middle (--over-length truncate)")
    if spec.get("truncation") not in (None, "middle"):
        notes.append(f"long prompts were not cut as the official script does (--truncation {spec['truncation']})")
    if spec.get("context") not in (None, "full"):
        notes.append(f"questions were asked without their whole context (--context {spec['context']})")
    model = spec.get("model")
    if isinstance(model, Mapping) and model.get("load_in"):
        notes.append(f"the model's weights were loaded in {model['load_in']}")
    if isinstance(model, Mapping) and model.get("chat") not in (None, "auto"):
        notes.append(f"prompts were not wrapped in the tokenizer's chat template (--chat {model['chat']})")
    return notes


_COMPRESSORS = ("quantize", "evict", "merge", "retrieve")


def seen_question(run: RunDirectory) -> list[str]:
    """Whether methods that compress the cache had read the question: scores of the two are not comparable."""
    methods = run.provenance.get("methods")
    facts = methods.values() if isinstance(methods, Mapping) else ()
    if not any(isinstance(one, Mapping) and one.get("family") in _COMPRESSORS for one in facts):
        return []
    if run.spec.get("question") == "hidden":
        return ["methods compressed the context before they had read the question (--question hidden)"]
    return ["methods compressed the whole prompt, question included (--question visible)"]


def simulated(run: RunDirectory) -> list[str]:
    """Methods of a run whose savings are not real."""
    methods = run.provenance.get("methods")
    facts = methods.items() if isinstance(methods, Mapping) else ()
    names = [name for name, one in facts if isinstance(one, Mapping) and one.get("memory") == "simulated"]
    return [f"{', '.join(names)}: simulated memory, what is dropped was not freed"] if names else []


def _data(run: RunDirectory) -> list[str]:
    """What the run noted about its rows and prompts: subsets, cut prompts."""
    tasks = run.provenance.get("tasks")
    notes = []
    for task in run.tasks:
        facts = tasks.get(task) if isinstance(tasks, Mapping) else None
        if not isinstance(facts, Mapping):
            continue
        said = facts.get("notes") or [facts.get("note")]
        notes += [(task, note) for note in (said if isinstance(said, list) else [said]) if isinstance(note, str)]
    return said_once(notes)
