"""Prompts as token ids: rendered, cut or refused, wrapped in the chat format. Once per model and task."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lcbench.config.spec import RunSpec
from lcbench.engine.plan import PreparedPrompt, PromptSet, group_methods
from lcbench.engine.rewriting import Rewriters
from lcbench.errors import BadValue, SampleError
from lcbench.methods.base import Method, PromptTransform, WiderWindow
from lcbench.methods.registry import resolve as resolve_method
from lcbench.methods.rewriting import PromptText
from lcbench.models.chat import Encoded, encode_prompt, format_chat
from lcbench.models.info import LoadedModel, ModelInfo
from lcbench.models.official_chat import cut_without_special_tokens, official_template
from lcbench.tasks.base import Loaded, Prompt, Row, Task
from lcbench.tasks.truncation import Fitted, fit, fit_exact, require_fit

FULL = "full"
_BY_LENGTH = "longbench-e"
_SHOWN = 200  # characters of each end of a prompt that are kept for people
_NO_BORDER = "Where the question begins cannot be told: the cut ran into it, or the chat template changed the text."


def prepare(
    spec: RunSpec,
    info: ModelInfo,
    tokenizer: Any,
    methods: Sequence[Method],
    tasks: Sequence[tuple[Task, Loaded]],
    home: Path,
    *,
    on_prompt: Callable[[str, int, int], None] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> list[PromptSet]:
    """All prompts of a plan: one set for the methods that share a prefill, one for each that does not.

    A prompt that several sets read alike is tokenized once.

    Args:
        tasks: each with its rows.
        on_prompt: told (task id, prompts done, prompts in all) as it goes.
        say: told sentences about what takes long: shortening prompts with a model.

    Raises:
        BadValue: ``--question hidden`` with a task or a method that it cannot be asked of.
        ModelError: what shortens prompts needs a model that is not here.
    """
    refuse_hidden_question(spec, methods)
    rewriters = Rewriters(spec.model, home, say)
    try:
        return _prepare(spec, info, tokenizer, methods, tasks, home, rewriters, on_prompt)
    finally:
        rewriters.close()


def _prepare(
    spec: RunSpec,
    info: ModelInfo,
    tokenizer: Any,
    methods: Sequence[Method],
    tasks: Sequence[tuple[Task, Loaded]],
    home: Path,
    rewriters: Rewriters,
    on_prompt: Callable[[str, int, int], None] | None,
) -> list[PromptSet]:
    sets = []
    for task, loaded in tasks:
        texts = _Texts(task, home, bare=spec.context == "none")
        for shared, group in group_methods(askers(task, methods)):
            maker = _PromptMaker(spec, info, tokenizer, texts, group[0].window_of(info.window), rewriters)
            prompts = []
            for i, row in enumerate(loaded.rows):
                prompt = maker.make(row, group[0] if not shared else None)
                if prompt is not None:
                    prompts.append(prompt)
                if on_prompt is not None:
                    on_prompt(task.id, i + 1, len(loaded.rows))
            whose = "" if shared and not group[0].reading else ", ".join(method.id for method in group) + ": "
            own = [whose + note for note in maker.notes(len(loaded.rows)) if note]
            notes = [loaded.note, *own] if loaded.note else own
            if maker.window != info.window:
                notes.append(_other_window(group, maker.window, info))
            elif maker.too_long and isinstance(group[0], WiderWindow):
                notes.append(f"{group[0].id}: its sizes, or a preset, keep it to the model's window; reach=N reads on")
            sets.append(
                PromptSet(
                    task=task,
                    methods=group,
                    shared=shared,
                    prompts=tuple(prompts),
                    max_new_tokens=maker.answer_tokens,
                    sha256=texts.digest(prompts),
                    sample=maker.sample,
                    notes=tuple(notes),
                    counts=maker.counts,
                    skipped_lengths=maker.skipped_lengths,
                    question=spec.question,
                    reading=(group[0].reading or "") if shared else "",
                )
            )
    return sets


def _other_window(group: Sequence[Method], window: int | None, info: ModelInfo) -> str:
    names = ", ".join(method.id for method in group)
    size = "no window" if window is None else f"a window of {window:,}"
    return f"{names}: {size} where the model has {info.window:,}"


def prompt_text(prompt: Prompt) -> PromptText:
    """A task's prompt as methods that shorten text see it; without a context of its own all of it is context."""
    return PromptText(prompt.text, prompt.context or (0, len(prompt.text)), prompt.question)


def length_within(task: Task, row: Row) -> str | None:
    """Length of a row of a task that holds several lengths: words of passkey, the short length that a row of a base set
    was made for, the published length in LongBench-E; None where all rows are of one length."""
    length = row.meta.get("length_words", row.meta.get("base_length"))
    if length is None and task.benchmark == _BY_LENGTH:
        length = row.length
    return None if length is None else f"{length:g}"


def askers(task: Task, methods: Sequence[Method]) -> Sequence[Method]:
    """The methods that answer a task: all of them, or ``full`` alone where it asks about the model only."""
    if not task.once:
        return methods
    return [m for m in methods if m.name == FULL] or [resolve_method(FULL)]


def refuse_hidden_question(spec: RunSpec, methods: Sequence[Method]) -> None:
    """Raises BadValue where compressing before the question is read means nothing."""
    if spec.question == "visible":
        return
    if spec.context == "none":
        raise BadValue(
            "Without its context a prompt is all question, and --question hidden leaves nothing to compress.",
            "Use --question visible with --context none.",
        )
    for method in methods:
        if method.reading is None:
            raise BadValue(
                f"{method.id} reads the prompt in its own way, context and question together, so --question hidden "
                "is not defined for it.",
                "Leave it out, or run it with --question visible.",
            )


def prompts_digest(prompts: Sequence[PreparedPrompt]) -> str:
    """sha256 over ids and tokens of all prompts, so that a changed tokenizer, template or row shows."""
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(prompt.row.id.encode() + b"\0")
        digest.update(array("q", prompt.ids).tobytes() + b"\1")
        if prompt.lesson:
            digest.update(array("q", prompt.lesson).tobytes() + b"\2")
    return digest.hexdigest()


class _Texts:
    """What all sets of a task have in common: its prompts as text, and what has become of them.

    Attributes:
        made: prompts by row, text and whether they may be cut, then by window; with each whether greater windows have
            the same.
    """

    def __init__(self, task: Task, home: Path, *, bare: bool) -> None:
        self.task, self._home, self._bare = task, home, bare
        self.answer_tokens = task.answer_tokens(home)
        self.made: dict[tuple[str, str, bool], dict[int | None, tuple[PreparedPrompt | None, bool]]] = {}
        self._of: dict[str, tuple[Row, Prompt]] = {}
        self._digests: dict[tuple[int, ...], str] = {}

    def of(self, row: Row) -> tuple[Row, Prompt]:
        """The row as it is asked, and its prompt."""
        if row.id not in self._of:
            asked = self.task.without_context(row) if self._bare else row
            self._of[row.id] = asked, self.task.prompt(asked, self._home)
        return self._of[row.id]

    def digest(self, prompts: Sequence[PreparedPrompt]) -> str:
        """As `prompts_digest`; most sets have the very prompts of another."""
        same = tuple(map(id, prompts))
        if same not in self._digests:
            self._digests[same] = prompts_digest(prompts)
        return self._digests[same]


def length_notes(counts: Mapping[str, int], rows: int) -> list[str]:
    """What became of prompts that were too long, of so many rows, in words."""
    words = {
        "cut": "are cut in the middle to fit the window",
        "too_long": "are longer than the window and will be errors",
        "skipped": "are longer than the window and are skipped",
    }
    return [f"{counts[name]} of {rows} prompts {text}" for name, text in words.items() if counts[name]]


class _PromptMaker:
    """Makes the prompts of one task for one model."""

    def __init__(
        self,
        spec: RunSpec,
        info: ModelInfo,
        tokenizer: Any,
        texts: _Texts,
        window: int | None,
        rewriters: Rewriters,
    ) -> None:
        self.spec, self.info, self.tokenizer = spec, info, tokenizer
        self.task, self.answer_tokens, self._texts = texts.task, texts.answer_tokens, texts
        self.window = window
        self._rewriters = rewriters
        self._special = not (spec.model.chat == "official" and cut_without_special_tokens(info.name))
        self.sample = ("", "")
        self.double_bos = 0
        self.cut = 0
        self.skipped = 0
        self.skipped_lengths: dict[str, int] = {}
        self.too_long = 0
        self._overhead = max(0, len(self._finish("")) - len(self._encode("")))
        self.double_bos = 0

    def make(self, row: Row, method: Method | None) -> PreparedPrompt | None:
        """One prompt; None when it does not fit and the user chose to skip such prompts."""
        row, prompt = self._texts.of(row)
        rewriter = None if method is None else method.rewriter
        learns = method is not None and method.learns
        made = self._prepared_once(row, prompt, learns) if rewriter is None else self._rewritten(row, prompt, rewriter)
        self.skipped += made is None
        length = length_within(self.task, row) if made is None else None
        if length is not None:
            self.skipped_lengths[length] = self.skipped_lengths.get(length, 0) + 1
        self.too_long += made is not None and made.error is not None
        self.cut += made is not None and made.truncated_from is not None
        if made is not None and learns:
            lesson = prompt.text if prompt.question_start is None else prompt.text[: prompt.question_start]
            return replace(made, lesson=array("q", self._encode(lesson)))
        return made

    def _prepared_once(self, row: Row, prompt: Prompt, learns: bool = False) -> PreparedPrompt | None:
        """A prompt as it is read.

        Args:
            learns: its text is learned before it is read, so that it may be cut (`Method.learns`).
        """
        cuts = self.task.truncate != "error" or self.spec.over_length == "truncate" or learns
        known = self._texts.made.setdefault((row.id, prompt.text, cuts), {})
        if self.window not in known:
            question = self._question_of(prompt.question_start)
            known[self.window] = self._fits_less(known) or self._prepared(row, prompt.text, question, cuts)
        return known[self.window][0]

    def _fits_less(
        self, known: Mapping[int | None, tuple[PreparedPrompt | None, bool]]
    ) -> tuple[PreparedPrompt | None, bool] | None:
        """The prompt as a smaller window has it that cuts nothing of it."""
        for window, (made, free) in known.items():
            if free and window is not None and (self.window is None or window < self.window):
                return made, True
        return None

    def _rewritten(self, row: Row, prompt: Prompt, rewriter: PromptTransform) -> PreparedPrompt | None:
        """A prompt as a method shortens it; then cut, should it still be too long. What it is compared with is the
        prompt as other methods read it, which may be cut as well: what a window cuts no method has saved."""
        if rewriter.idle:
            return self._prepared_once(row, prompt)
        try:
            new = self._rewriters.rewrite(rewriter, prompt_text(prompt))
        except SampleError as error:
            return PreparedPrompt(row, (), len(self._finish(prompt.text)), error=error.message)
        made = self._prepared_once(row, replace(prompt, text=new.text))
        if made is None:
            return None
        plain = self._prepared_once(row, prompt)
        fits = plain is not None and plain.error is None
        before = plain.tokens if plain is not None and fits else len(self._finish(prompt.text))
        return replace(made, tokens_before=before, rewrite_seconds=new.seconds)

    def _question_of(self, start: int | None) -> int | None:
        """Where the question begins, when it is to be hidden."""
        if self.spec.question == "visible":
            return None
        if start is None:
            raise BadValue(
                f"The prompts of {self.task.id} have no question apart from their context, so --question hidden cannot "
                "be asked of it.",
                "Leave this task out, or use --question visible.",
            )
        return start

    def _prepared(self, row: Row, text: str, question: int | None, cuts: bool) -> tuple[PreparedPrompt | None, bool]:
        """The prompt, and whether it would be the same with a greater window."""
        try:
            fitted = self._fit(text, question) if cuts else self._whole(text)
            self._keep_sample(text if fitted.text is None else fitted.text)
        except SampleError as error:
            self._keep_sample(text)
            if self.spec.over_length == "skip":
                return None, False
            return PreparedPrompt(row, (), len(self._finish(text)), error=error.message), False
        ids, free = array("q", fitted.ids), self._is_free(fitted)
        if question is None:
            return PreparedPrompt(row, ids, len(ids), fitted.truncated_from), free
        asked = self._question_tokens(text, question, fitted)
        if not 0 < asked < len(ids):
            return PreparedPrompt(row, (), len(ids), fitted.truncated_from, _NO_BORDER), free
        return PreparedPrompt(row, ids, len(ids), fitted.truncated_from, question_tokens=asked), free

    def _is_free(self, fitted: Fitted) -> bool:
        """Whether the window had no part in a prompt: all of it is there, or the user's limit alone cut it."""
        if not fitted.cut or self.window is None:
            return not fitted.cut
        by_user = self.spec.max_input_tokens is not None and not fitted.shrunk
        return by_user and (fitted.max_length or self.window) < self.window - self.answer_tokens

    def _keep_sample(self, text: str) -> None:
        """The ends of the first prompt, as it is fed: cut (its ends are left by cutting ids) and in its chat format."""
        if not self.sample[0]:
            rendered = self._render(text)
            self.sample = (rendered[:_SHOWN], rendered[-_SHOWN:])

    def _question_tokens(self, text: str, question: int, fitted: Fitted) -> int:
        """Last tokens of a prompt that are its question; 0 when the cut ran into it."""
        if fitted.text is not None:
            start = fitted.question_start if fitted.cut else question
            return 0 if start is None else self._chat(fitted.text, start).question_tokens
        whole = self._chat(text, question)  # ids were cut out of its middle
        asked = whole.question_tokens
        return asked if asked and list(fitted.ids[-asked:]) == whole.ids[-asked:] else 0

    def _fit(self, text: str, question: int | None) -> Fitted:
        if self.spec.truncation == "exact-ids":
            return fit_exact(
                text,
                window=self.window,
                answer_tokens=self.answer_tokens,
                encode=self._encode,
                finish=self._finish,
                max_input_tokens=self.spec.max_input_tokens,
            )
        return fit(
            text,
            window=self.window,
            answer_tokens=self.answer_tokens,
            encode=self._encode,
            decode=self._decode,
            finish=self._finish,
            question_start=question,
            chat_overhead=self._overhead,
            max_input_tokens=self.spec.max_input_tokens,
        )

    def _whole(self, text: str) -> Fitted:
        ids = self._finish(text)
        require_fit(
            len(ids),
            window=self.window,
            answer_tokens=self.answer_tokens,
            max_input_tokens=self.spec.max_input_tokens,
        )
        return Fitted(ids, text, len(ids), None, cut=False)

    @property
    def counts(self) -> dict[str, int]:
        """Prompts that were cut, refused and skipped so far, for run.json."""
        return {"cut": self.cut, "too_long": self.too_long, "skipped": self.skipped}

    def notes(self, rows: int) -> list[str]:
        """What the user should know about these prompts."""
        found = length_notes(self.counts, rows)
        if self.double_bos:
            found.append("the chat template writes the BOS itself; a second one was left out")
        if self.task.chat and self.spec.model.chat == "official" and official_template(self.info.name) is None:
            found.append("LongBench has no chat format for this model; its prompts are left bare, as its script does")
        return found

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=self._special, verbose=False)["input_ids"])

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def _finish(self, text: str) -> Sequence[int]:
        encoded = self._chat(text)
        self.double_bos += encoded.double_bos_avoided
        return encoded.ids

    def _render(self, text: str) -> str:
        chat = self.spec.model.chat if self.task.chat else "none"
        rendered = format_chat(self.tokenizer, text, chat, self.info.name)
        return text if rendered is None else rendered

    def _chat(self, text: str, question: int | None = None) -> Encoded:
        reader = LoadedModel(None, self.tokenizer, self.info)
        return encode_prompt(
            reader, text, chat=self.task.chat, chat_option=self.spec.model.chat, question_start=question
        )
