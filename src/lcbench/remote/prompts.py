"""Prompts for a server: the text (or the ids) that is sent, counted and cut where a tokenizer is named."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from lcbench.config.spec import SERVED, Api, RunSpec
from lcbench.engine.plan import PreparedPrompt, PromptSet, group_methods
from lcbench.engine.prepare import askers, length_notes, length_within, prompt_text, prompts_digest
from lcbench.engine.rewriting import Rewriters
from lcbench.errors import SampleError, UsageError
from lcbench.methods.base import Method, PromptTransform
from lcbench.models.chat import encode_prompt, own_template
from lcbench.models.info import LoadedModel
from lcbench.models.official_chat import cut_without_special_tokens
from lcbench.tasks.base import Loaded, Prompt, Row, Task
from lcbench.tasks.truncation import Fitted, fit, fit_exact, require_fit

_SHOWN = 200  # characters of each end of a prompt that are kept for people


@dataclass(frozen=True)
class ServedPrompt(PreparedPrompt):
    """A prompt as it is sent: ``text``, or the token ids for the api "token-ids". ``ids`` are those that the server
    makes of the text, where a tokenizer tells and the server adds no template; ``tokens`` is 0 where nobody has counted
    them."""

    text: str = ""


@dataclass(frozen=True)
class Reader:
    """What is known about how the model reads.

    Attributes:
        tokenizer: named by the user, or None. window: tokens of prompt and answer together, None where not known.
        apis: by task id, where its prompts go.
    """

    tokenizer: Any
    window: int | None
    apis: Mapping[str, Api]


def prepare(
    spec: RunSpec,
    reader: Reader,
    methods: Sequence[Method],
    tasks: Sequence[tuple[Task, Loaded]],
    home: Path,
    say: Callable[[str], None] = lambda text: None,
) -> list[PromptSet]:
    """All prompts of a plan: a set for each task and each method that reads it in its own way.

    Args:
        say: told sentences about what takes long: shortening prompts with a model.
    """
    rewriters = Rewriters(spec.model, home, say)
    try:
        return _prepare(spec, reader, methods, tasks, home, rewriters)
    finally:
        rewriters.close()


def _prepare(
    spec: RunSpec,
    reader: Reader,
    methods: Sequence[Method],
    tasks: Sequence[tuple[Task, Loaded]],
    home: Path,
    rewriters: Rewriters,
) -> list[PromptSet]:
    sets = []
    for task, loaded in tasks:
        for shared, group in group_methods(askers(task, methods)):
            maker = _Maker(spec, reader, task, home, rewriters, group[0].rewriter)
            made = [maker.make(row) for row in loaded.rows]
            prompts = tuple(prompt for prompt in made if prompt is not None)
            skipped = [length_within(task, row) for row, one in zip(loaded.rows, made, strict=True) if one is None]
            sets.append(
                PromptSet(
                    task=task,
                    methods=group,
                    shared=shared,
                    prompts=prompts,
                    max_new_tokens=maker.answer_tokens,
                    sha256=prompts_digest(prompts) if maker.exact else _digest(prompts),
                    sample=maker.sample,
                    notes=tuple(note for note in (loaded.note, *maker.notes(made)) if note),
                    counts=maker.counts(made),
                    skipped_lengths=Counter(length for length in skipped if length is not None),
                )
            )
    return sets


def said_about(api: Api, task: Task, spec: RunSpec, tokenizer: Any) -> str:
    """How the prompts of a task are asked, in words."""
    if api == "chat":
        return "chat completions; the server applies its own chat template"
    how = "completions with token ids" if api == "token-ids" else "completions with the exact prompt"
    if not task.chat or spec.model.chat == "none":
        return f"{how}, no chat template"
    if tokenizer is None:
        return f"{how}, no chat template (name the --tokenizer for one)"
    return f"{how}, in the chat template of {spec.model.tokenizer}"


def _digest(prompts: Sequence[ServedPrompt]) -> str:
    """sha256 over what is sent of all prompts, where nobody knows the ids that the model reads."""
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(prompt.row.id.encode() + b"\0" + prompt.text.encode("utf-8", "surrogatepass") + b"\1")
    return digest.hexdigest()


class _Maker:
    """Makes the prompts of one task as one method wants them read."""

    def __init__(
        self,
        spec: RunSpec,
        reader: Reader,
        task: Task,
        home: Path,
        rewriters: Rewriters,
        rewriter: PromptTransform | None,
    ) -> None:
        self.spec, self.task, self.home, self._rewriters, self._rewriter = spec, task, home, rewriters, rewriter
        self.tokenizer, self.window, self.api = reader.tokenizer, reader.window, reader.apis[task.id]
        self.answer_tokens = task.answer_tokens(home)
        self.sample = ("", "")
        info = SimpleNamespace(name=spec.model.tokenizer or spec.model.name.removeprefix(SERVED))
        self._loaded = LoadedModel(None, self.tokenizer, cast(Any, info))
        self._special = not (spec.model.chat == "official" and cut_without_special_tokens(info.name))
        self.exact = self.tokenizer is not None and self.api != "chat"  # the ids that the model reads are known
        # With the server's template: its length is that of the tokenizer's own, where it carries one.
        self._chat = task.chat or self.api == "chat"
        if spec.model.chat == "auto" and self.api == "chat" and own_template(self.tokenizer) is None:
            self._chat = False

    def make(self, row: Row) -> ServedPrompt | None:
        """One prompt; None when it does not fit and the user chose to skip such prompts."""
        if self.spec.context == "none":
            row = self.task.without_context(row)
        asked = self.task.prompt(row, self.home)
        prompt = self._made(row, asked.text) if self._rewriter is None else self._rewritten(row, asked, self._rewriter)
        if prompt is not None and not self.sample[0]:
            shown = prompt.text or str(self.tokenizer.decode(list(prompt.ids)))
            self.sample = (shown[:_SHOWN], shown[-_SHOWN:])
        return prompt

    def _rewritten(self, row: Row, asked: Prompt, rewriter: PromptTransform) -> ServedPrompt | None:
        """A prompt as a method shortens it; then cut, should it still be too long."""
        if rewriter.idle:
            return self._made(row, asked.text)
        before = 0 if self.tokenizer is None else len(self._finish(asked.text))
        try:
            new = self._rewriters.rewrite(rewriter, prompt_text(asked))
        except SampleError as error:
            return ServedPrompt(row, (), before, error=error.message)
        prompt = self._made(row, new.text)
        if prompt is None:
            return None
        plain = self._made(row, asked.text)  # as other methods read it: what a window cuts no method has saved
        before = plain.tokens if plain is not None and plain.error is None and plain.tokens else before
        return replace(prompt, tokens_before=before or None, rewrite_seconds=new.seconds)

    def _made(self, row: Row, text: str) -> ServedPrompt | None:
        if self.tokenizer is None:
            return ServedPrompt(row, (), 0, text=text)
        try:
            return self._fitted(row, text)
        except SampleError as error:
            if self.spec.over_length == "skip":
                return None
            return ServedPrompt(row, (), len(self._finish(text)), error=error.message, text=text)

    def _fitted(self, row: Row, text: str) -> ServedPrompt:
        if self.task.truncate == "error" and self.spec.over_length != "truncate":
            ids = self._finish(text)
            self._require(len(ids))
            found = Fitted(ids, text, len(ids), None, cut=False)
        else:
            found = self._fit(text)
        ids = array("q", found.ids) if self.exact else ()
        prompt = ServedPrompt(row, ids, len(found.ids), found.truncated_from)
        if self.api == "token-ids":
            return prompt
        assert found.text is not None, "ids are cut for token-ids alone"
        return replace(prompt, text=found.text if self.api == "chat" else self._sent(found.text))

    def _require(self, tokens: int) -> None:
        require_fit(
            tokens,
            window=self.window,
            answer_tokens=self.answer_tokens,
            max_input_tokens=self.spec.max_input_tokens,
        )

    def _fit(self, text: str) -> Fitted:
        limits: dict[str, Any] = {
            "window": self.window,
            "answer_tokens": self.answer_tokens,
            "encode": self._encode,
            "finish": self._finish,
            "max_input_tokens": self.spec.max_input_tokens,
        }
        if self.spec.truncation == "exact-ids":
            return fit_exact(text, **limits)
        return fit(text, decode=self._decode, **limits)

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=self._special, verbose=False)["input_ids"])

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def _finish(self, text: str) -> Sequence[int]:
        return encode_prompt(self._loaded, text, chat=self._chat, chat_option=self.spec.model.chat).ids

    def _sent(self, text: str) -> str:
        """The text whose tokens, as the server makes them, are those of `_finish`: a beginning-of-text token that the
        template has written is left to the server's tokenizer, which writes it too."""
        encoded = encode_prompt(self._loaded, text, chat=self._chat, chat_option=self.spec.model.chat)
        bos = self.tokenizer.bos_token
        return encoded.text.removeprefix(bos) if encoded.double_bos_avoided else encoded.text

    def counts(self, made: Sequence[ServedPrompt | None]) -> dict[str, int]:
        """Prompts that were cut, refused and skipped, for run.json."""
        return {
            "cut": sum(p is not None and p.truncated_from is not None for p in made),
            "too_long": sum(p is not None and p.error is not None for p in made),
            "skipped": sum(p is None for p in made),
        }

    def notes(self, made: Sequence[ServedPrompt | None]) -> list[str]:
        """What the user should know about these prompts."""
        found = length_notes(self.counts(made), len(made))
        return [*found, said_about(self.api, self.task, self.spec, self.tokenizer)]


def refuse_options(spec: RunSpec) -> None:
    """What means nothing for a model behind an address, or wants a tokenizer. Raises UsageError."""
    model = spec.model
    here = {
        "--dtype": model.dtype != "auto", "--device": model.device != "auto", "--attn": model.attn != "auto",
        "--load-in": model.load_in, "--revision": model.revision, "--prefill-chunk": spec.prefill_chunk,
        "--exact": spec.exact,
    }  # fmt: skip
    for option, given in here.items():
        if given:
            raise UsageError(
                f"{option} is about weights on this machine, and {model.name} is behind an address.",
                f"Leave {option} out.",
            )
    if spec.question == "hidden":
        raise UsageError(
            "--question hidden is about a cache, and that of a server cannot be reached.", "Leave --question out."
        )
    if spec.truncation == "exact-ids" and model.api != "token-ids":
        raise UsageError(
            "--truncation exact-ids cuts token ids, and texts are sent.", "Add --api token-ids, or leave it out."
        )
    if model.tokenizer is None:
        wants = {
            "--api token-ids": model.api == "token-ids", "--max-input-tokens": spec.max_input_tokens,
            "--window": model.window, "--over-length": spec.over_length != "error",
            f"--chat {model.chat}": model.chat not in ("auto", "none"),
        }  # fmt: skip
        for option, given in wants.items():
            if given:
                raise UsageError(f"{option} wants tokens to be counted.", "Name the model's own with --tokenizer.")
    if model.api == "chat" and model.chat != "auto":
        raise UsageError(
            f"With chat completions the server applies its own chat template, so --chat {model.chat} cannot be kept.",
            "Leave --chat out, or use --api completions.",
        )
