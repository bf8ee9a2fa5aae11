"""What to inspect: the prompt as token ids, from a text, a row of a task or a list of ids, and the tokens forced."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lcbench.config.spec import RunSpec
from lcbench.engine.answer import FULL
from lcbench.engine.inspection.text import pieces_of
from lcbench.engine.prepare import prepare, prompt_text
from lcbench.engine.reading import sample_seed
from lcbench.engine.rewriting import Rewriters
from lcbench.errors import BadValue, SampleError, UsageError
from lcbench.inspected import Piece
from lcbench.methods.base import Method
from lcbench.models.chat import encode_prompt
from lcbench.models.info import LoadedModel, ModelInfo
from lcbench.tasks.base import Loaded, Prompt, Row, Task
from lcbench.tasks.registry import resolve

_LIST = "Write a JSON list of whole numbers, e.g. [1, 4093, 278]."


@dataclass(frozen=True)
class Source:
    """Where the prompt comes from; exactly one of the first three is set.

    Attributes:
        prompt: a text file. token_ids: a JSON list. task: as in a run; ``index`` counts its rows from 0.
    """

    prompt: Path | None = None
    token_ids: Path | None = None
    task: str | None = None
    index: int = 0


@dataclass(frozen=True)
class Read:
    """A prompt, ready to be fed.

    Attributes:
        ids: at least one. pieces: what the method made of the text, where it rewrote it. seed: of everything drawn.
        before: tokens of the prompt before a method shortened it; 0 where none did.
    """

    ids: Sequence[int]
    pieces: Sequence[Piece] = ()
    seed: int = 42
    before: int = 0


def read_id_list(path: Path, option: str) -> list[int]:
    """A JSON list of token ids. Raises BadValue naming the option, the file and what is wrong with it."""
    text = read_text(path, option)
    try:
        data = json.loads(text)
    except ValueError as error:
        what = "a number in it has thousands of digits"  # which Python refuses to read
        if isinstance(error, json.JSONDecodeError):
            what = f"line {error.lineno}: {error.msg}"
        raise BadValue(f"{option} {path} is not JSON ({what}).", _LIST) from None
    except RecursionError:
        raise BadValue(f"{option} {path} is nested too deep to be a list of token ids.", _LIST) from None
    if not isinstance(data, list):
        raise BadValue(f"{option} {path} does not hold a list.", _LIST)
    if not data:
        raise BadValue(f"{option} {path} holds an empty list.", _LIST)
    for place, one in enumerate(data):
        if not isinstance(one, int) or isinstance(one, bool):
            raise BadValue(f"Entry {place} of {option} {path} is not a whole number: {json.dumps(one)[:60]}.", _LIST)
    return data


def check_ids(ids: Sequence[int], vocab: int, option: str, path: Path) -> None:
    """Raises BadValue for an id that the model does not have."""
    for place, one in enumerate(ids):
        if not 0 <= one < vocab:
            raise BadValue(
                f"Entry {place} of {option} {path} is {str(one)[:30]}, and the model's token ids are 0 to {vocab - 1}.",
                "Use ids of this model's own tokenizer.",
            )


def row_of(source: Source, home: Path) -> tuple[Task, Row]:
    """The row of a task that is asked for.

    Raises:
        UsageError: several tasks, or no such row. UnknownName, BadValue, DataMissing: as in a run.
    """
    assert source.task is not None
    tasks = resolve(source.task, home)
    if len(tasks) != 1:
        names = ", ".join(task.id for task in tasks[:3]) + (", …" if len(tasks) > 3 else "")
        raise UsageError(f"--task {source.task} names {len(tasks)} tasks ({names}).", "Name one of them.")
    rows = tasks[0].load(home, source.index + 1).rows
    if source.index >= len(rows):
        raise UsageError(
            f"--index {source.index} is beyond the rows of {tasks[0].id}: there are {len(rows)}, counted from 0.",
            f"Use 0 to {len(rows) - 1}.",
        )
    return tasks[0], rows[source.index]


def read_prompt(
    source: Source,
    ids: Sequence[int] | None,
    row: tuple[Task, Row] | None,
    text: str | None,
    spec: RunSpec,
    method: Method,
    info: ModelInfo,
    tokenizer: Any,
    home: Path,
) -> Read:
    """The prompt as token ids, as the method wants it read.

    Args:
        ids: of ``source.token_ids``. row: of ``source.task``. text: of ``source.prompt``. spec: chat format and
            limits, as for a run.

    Raises:
        BadValue, UsageError, ModelError: it cannot be fed to this model, or not with this method.
    """
    if ids is not None:
        assert source.token_ids is not None
        if method.rewriter is not None:
            raise UsageError(
                f"{method.id} rewrites the text of a prompt, and --token-ids gives no text.", "Use --prompt or --task."
            )
        check_ids(ids, info.vocab, "--token-ids", source.token_ids)
        return Read(ids, seed=spec.seed)
    if row is not None:
        return _of_row(*row, spec, method, info, tokenizer, home)
    assert text is not None
    before = text
    text = _rewritten(Prompt(before), spec, method, home)
    reader = LoadedModel(None, tokenizer, info)
    encoded = encode_prompt(reader, text, chat=spec.model.chat != "none", chat_option=spec.model.chat)
    if not encoded.ids:
        raise BadValue(f"--prompt {source.prompt} has no tokens.", "Put some text into it.")
    if method.rewriter is None:
        return Read(encoded.ids, seed=spec.seed)
    whole = encode_prompt(reader, before, chat=spec.model.chat != "none", chat_option=spec.model.chat)
    return Read(encoded.ids, pieces_of(before, text) if text != before else (), spec.seed, len(whole.ids))


def _of_row(task: Task, row: Row, spec: RunSpec, method: Method, info: ModelInfo, tokenizer: Any, home: Path) -> Read:
    if task.once and method.name != FULL:
        raise UsageError(
            f"{task.id} asks about the model without its context; every method answers alike.", "Use --method full."
        )
    alone = replace(spec, tasks=(task.id,), methods=(method.id,))
    (prompts,) = prepare(alone, info, tokenizer, [method], [(task, Loaded([row]))], home)
    (prompt,) = prompts.prompts
    if prompt.error is not None:
        raise BadValue(
            f"Row {row.id} of {task.id} cannot be fed: {prompt.error}", "Choose another row or a shorter task."
        )
    asked = task.prompt(row, home)
    text = _rewritten(asked, spec, method, home)
    pieces = pieces_of(asked.text, text) if text != asked.text else ()
    return Read(prompt.ids, pieces, sample_seed(spec.seed, task.id, row.id), prompt.tokens_before or 0)


def _rewritten(prompt: Prompt, spec: RunSpec, method: Method, home: Path) -> str:
    """The text of a prompt as a method wants it read."""
    if method.rewriter is None:
        return prompt.text
    rewriters = Rewriters(spec.model, home)
    try:
        return rewriters.rewrite(method.rewriter, prompt_text(prompt)).text
    except SampleError as error:
        raise BadValue(error.message, "Choose another prompt, or other parameters.") from None
    finally:
        rewriters.close()


def check_length(count: int, steps: int, info: ModelInfo, method: Method) -> None:
    """Raises BadValue for more tokens than the model was made for, or the method makes it serve."""
    window = method.window_of(info.window)
    if window is not None and count + steps > window:
        more = f" and {steps} steps" if steps else ""
        made = "was made for" if window == info.window else f"with {method.id} serves"
        raise BadValue(
            f"The prompt has {count:,} tokens{more}, and {info.name} {made} {window:,}.",
            "Shorten the prompt, or take fewer steps.",
        )


def read_text(path: Path, option: str) -> str:
    try:
        return path.expanduser().read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise BadValue(f"{option} {path} is not UTF-8 text.", "Save it as UTF-8.") from None
    except OSError as error:
        raise BadValue(f"{option} {path} cannot be read: {error.strerror or error}.", "Check the path.") from None
