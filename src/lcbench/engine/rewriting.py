"""Prompts that a method shortens as text: rewritten once, kept below LCBENCH_HOME, shared by all models.

What a method makes of a passage is kept in ``compressed/<method>/<2 digits>/<sha256>.json``. The name is the hash of
everything that decides it (method, parameters, identity of the helper's weights, the passage and, where the method
asks for it, the question), so entries never have to be looked through and never go stale. They are written at once or
not at all; two processes that make the same one write the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lcbench.config.spec import ModelSpec
from lcbench.engine.memory import release
from lcbench.errors import LcbenchError, ModelError, SampleError
from lcbench.measure.clock import Stopwatch
from lcbench.methods.base import PromptTransform
from lcbench.methods.rewriting import Helper, PromptText
from lcbench.models.classifier import FoundClassifier, find_classifier, load_classifier
from lcbench.models.load import describe, load
from lcbench.models.place import place
from lcbench.store.files import make_folder, write_json

FOLDER = "compressed"
SCHEMA = 1
EXTRA_TOKENS = [
    f"[NEW{i}]" for i in range(100)
]  # as LLMLingua-2 adds them, for texts that tokenizers have no token for

_SAY_EVERY = 25  # prompts

Say = Callable[[str], None]


@dataclass(frozen=True)
class Rewritten:
    """A prompt as a method wants it read.

    Attributes:
        text: all of it. seconds: that the method took for it, when it was computed. kept: whether it was computed
            before and only read now.
    """

    text: str
    seconds: float
    kept: bool


class Rewriters:
    """Rewrites the prompts of a run. A helper is loaded when the first text needs it and serves all methods that want
    the same; `close` lets go of them, before the model under test is loaded.

    Args:
        model: of the run: where helpers are put, and the one to load for methods that ask the model under test.
    """

    def __init__(self, model: ModelSpec, home: Path, say: Say = lambda text: None) -> None:
        self._model, self._home, self._say = model, home, say
        self._loaded: dict[Helper, Any] = {}
        self._made: Counter[str] = Counter()
        self._identities: dict[Helper, tuple[str, FoundClassifier | None]] = {}

    def rewrite(self, method: PromptTransform, prompt: PromptText) -> Rewritten:
        """A prompt through a method: read from the data folder, or computed and put there.

        Raises:
            ModelError: a helper that is not here or cannot serve. CannotWrite: no room in the data folder.
            SampleError: this text cannot be rewritten.
        """
        if method.idle:
            return Rewritten(prompt.text, 0.0, True)
        part = prompt.whole() if method.whole_prompt else prompt
        if method.helper is None:  # cheap, and perhaps a method that somebody is still writing
            made = self._computed(method, part)
            return Rewritten(part.replaced(made["text"]), made["seconds"], False)
        key = self.key(method, part)
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        path = self._home / FOLDER / method.name / digest[:2] / f"{digest}.json"
        entry = _read(path)
        kept = entry is not None
        if entry is None:
            entry = self._computed(method, part)
            make_folder(path.parent)
            self._made[method.name] += 1
            if self._made[method.name] % _SAY_EVERY == 0:
                self._say(f"{method.name}: {self._made[method.name]} prompts shortened so far.")
            described = {name: value for name, value in key.items() if name not in ("passage", "asked")}
            write_json(path, {**entry, "made_by": described})
        return Rewritten(part.replaced(entry["text"]), float(entry["seconds"]), kept)

    def key(self, method: PromptTransform, part: PromptText) -> dict[str, Any]:
        """Everything that decides what becomes of a passage."""
        helper = method.helper
        return {
            "schema": SCHEMA,
            "method": method.name,
            "revision": method.revision,
            "parameters": method.depends_on,
            "helper": "" if helper is None else self._identity(method, helper)[0],
            "passage": part.passage,
            "asked": [part.question, part.frame] if method.asks else [],
        }

    def close(self) -> None:
        """Let go of the helpers and of their memory."""
        if self._loaded:
            self._loaded.clear()
            release(place(self._model).device)

    def _computed(self, method: PromptTransform, part: PromptText) -> dict[str, Any]:
        helper = self._helper(method)
        device = place(self._model).device
        try:
            with torch.inference_mode(), Stopwatch(device) as taken:
                text = method.rewrite(part, helper)
        except (torch.OutOfMemoryError, MemoryError):
            release(device)
            raise SampleError(f"{method.name} ran out of memory while it shortened the prompt.") from None
        return {"text": text, "seconds": round(taken.seconds, 4)}

    def _identity(self, method: PromptTransform, helper: Helper) -> tuple[str, FoundClassifier | None]:
        if helper not in self._identities:
            spec = self._spec(helper)
            dtype = str(place(spec).dtype).removeprefix("torch.")
            if helper.kind == "classifier":
                option = f"{method.name}@{helper.parameter}=FOLDER"
                found = find_classifier(helper.name, option, self._home, self._say)
                self._identities[helper] = f"{found.identity} {dtype}", found
            else:
                with _named(method, helper):
                    info, _ = describe(spec, self._home, say=self._say)
                self._identities[helper] = f"{info.identity} {dtype}", None
        return self._identities[helper]

    def _helper(self, method: PromptTransform) -> Any:
        helper = method.helper
        if helper is None:
            return None
        if helper not in self._loaded:
            spec = self._spec(helper)
            self._say(f"{method.name} reads the prompts with {spec.name}: once, what it makes of them is kept.")
            if helper.kind == "classifier":
                found = self._identity(method, helper)[1]
                assert found is not None
                self._loaded[helper] = load_classifier(spec, found, EXTRA_TOKENS)
            else:
                with _named(method, helper):
                    self._loaded[helper] = load(spec, self._home, say=self._say)
                    if self._loaded[helper].info.state is not None:
                        raise ModelError(
                            f"{spec.name} runs on a cache of its own kind, and texts are read through plain keys and "
                            "values here.",
                            "Choose a model whose layers are all plain attention.",
                        )
            method.check_helper(self._loaded[helper])
        return self._loaded[helper]

    def _spec(self, helper: Helper) -> ModelSpec:
        if not helper.name:
            return replace(self._model, chat="none")
        return ModelSpec(name=helper.name, device=self._model.device, chat="none")


@contextlib.contextmanager
def _named(method: PromptTransform, helper: Helper) -> Iterator[None]:
    """Errors about a helper say whose it is."""
    try:
        yield
    except LcbenchError as error:
        if not helper.name:
            raise
        raise ModelError(f"{method.name}@{helper.parameter}={helper.name}: {error.message}", error.next_step) from None


def _read(path: Path) -> dict[str, Any] | None:
    """An entry, or None where there is none that can be used; a damaged one is made again."""
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    good = isinstance(entry, dict) and isinstance(entry.get("text"), str) and isinstance(entry.get("seconds"), float)
    return entry if good else None
