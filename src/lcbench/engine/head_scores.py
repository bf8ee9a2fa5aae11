"""How much each attention head matters for finding things in a text: the tables of HeadKV (arXiv:2410.19258).

A *retrieval* probe hides a code in filler text and lets the model complete it: while it copies, a head scores
1 / |needle| for each generated token whose most attended position is that very token inside the code. A *reasoning*
probe hides a sentence about two boxes and asks which one to open for some purpose: at each step of the answer, of the
n = |needle| positions a head attends to most, each one inside the sentence adds its weight / n (FYYFU/HeadKV
Important_Head/retrieval_head_detection.py and …_r2.py). Scores are means over the probes that the model answered.

Our choice, where paper and code leave it open: the texts (`probes/head_scores.json`), completion prompts without a
chat template, depths drawn evenly, and that a probe counts as answered when the F1 of its words exceeds one half, for
both kinds.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import torch
from torch import Tensor

from lcbench.engine.generate import prefill
from lcbench.errors import ModelError
from lcbench.kv import attention
from lcbench.kv.layer import DenseLayer, outside_window
from lcbench.models import adapter
from lcbench.models.info import LoadedModel
from lcbench.models.rule import AttentionRule
from lcbench.models.stores import LayerStore

Kind = Literal["retrieval", "reasoning"]
SAMPLES = 30
LENGTHS = (150, 300, 600)  # words of filler


@dataclass(frozen=True)
class Probe:
    """One question.

    Attributes:
        ids: the prompt. needle: positions of the hidden tokens in it. answer: what the model should write next.
        steps: tokens of the answer.
    """

    ids: Sequence[int]
    needle: frozenset[int]
    answer: str
    steps: int


@dataclass(frozen=True)
class HeadScores:
    """Scores of all heads.

    Attributes:
        scores: ``[N][H]``, means over the answered probes. asked, answered: how many probes.
    """

    scores: list[list[float]]
    asked: int
    answered: int


@cache
def _texts() -> Any:
    return json.loads((files("lcbench.engine") / "probes" / "head_scores.json").read_text(encoding="utf-8"))


def texts_sha256() -> str:
    """Hex digest of the probes' texts, for provenance."""
    return hashlib.sha256(json.dumps(_texts(), sort_keys=True).encode()).hexdigest()


def measure(
    loaded: LoadedModel,
    kind: Kind,
    *,
    samples: int = SAMPLES,
    lengths: Sequence[int] = LENGTHS,
    seed: int = 42,
    on_probe: Callable[[int, int], None] | None = None,
) -> HeadScores:
    """Score every head of a model.

    Args:
        samples: probes asked. lengths: words of filler, one after the other. seed: of all that is drawn.
        on_probe: told (probes done, probes in all).

    Raises:
        ModelError: a probe does not fit the window, or the model answered none.
    """
    shape = loaded.shape()
    total = torch.zeros(shape.layers, shape.heads, dtype=torch.float64)
    answered = 0
    for i, probe in enumerate(probes(loaded, kind, samples=samples, lengths=lengths, seed=seed)):
        scores, answer = _ask(loaded, kind, probe)
        if word_f1(answer, probe.answer) > 0.5:
            total += scores
            answered += 1
        if on_probe is not None:
            on_probe(i + 1, samples)
    if not answered:
        raise ModelError(
            f"{loaded.info.name} answered none of {samples} {kind} probes, so its heads cannot be scored.",
            "Use shorter texts (--lengths), more probes (--samples) or another model.",
        )
    return HeadScores((total / answered).tolist(), samples, answered)


def probes(loaded: LoadedModel, kind: Kind, *, samples: int, lengths: Sequence[int], seed: int) -> Iterator[Probe]:
    """The probes of a kind; the same seed gives the same texts."""
    draw = random.Random(f"{kind}|{seed}")
    for i in range(samples):
        words = lengths[i % len(lengths)]
        make = _retrieval_text if kind == "retrieval" else _reasoning_text
        text, needle, answer = make(draw, words)
        yield _tokenized(loaded, text, needle, answer)


def _retrieval_text(draw: random.Random, words: int) -> tuple[str, slice, str]:
    """A prompt, the characters of the code in it, and the code."""
    texts = _texts()["retrieval"]
    place, code = draw.choice(texts["places"]), "".join(draw.choice("0123456789") for _ in range(texts["digits"]))
    needle = texts["needle"].format(place=place, code=code)
    text, start = _hidden(draw, words, needle)
    start += needle.index(code)
    return text + texts["question"].format(place=place), slice(start, start + len(code)), f" {code}"


def _reasoning_text(draw: random.Random, words: int) -> tuple[str, slice, str]:
    """A prompt, the characters of the sentence about the boxes, and the colour to be named."""
    texts = _texts()["reasoning"]
    colours, items = draw.sample(texts["colours"], 2), draw.sample(sorted(texts["uses"]), 2)
    wanted = draw.randrange(2)
    filled = {
        "name": draw.choice(texts["names"]),
        "first": items[0],
        "second": items[1],
        "colour_one": colours[0],
        "colour_two": colours[1],
        "use": texts["uses"][items[wanted]],
    }
    needle = texts["needle"].format(**filled)
    text, start = _hidden(draw, words, needle)
    return text + texts["question"].format(**filled), slice(start, start + len(needle)), f" {colours[wanted]}"


def _hidden(draw: random.Random, words: int, needle: str) -> tuple[str, int]:
    """Filler of about ``words`` words with the needle somewhere between its sentences, and where it begins."""
    sentences: list[str] = []
    count = 0
    while count < words:
        for sentence in draw.sample(_texts()["filler"], len(_texts()["filler"])):
            sentences.append(sentence)
            count += len(sentence.split())
            if count >= words:
                break
    at = draw.randint(1, max(1, len(sentences) - 1))
    before, after = " ".join(sentences[:at]), " ".join(sentences[at:])
    return f"{before} {needle} {after}".rstrip(), len(before) + 1


def _tokenized(loaded: LoadedModel, text: str, needle: slice, answer: str) -> Probe:
    tokenizer = loaded.tokenizer
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"The tokenizer of {loaded.info.name} cannot say which characters a token stands for.",
            "Use a model with a fast tokenizer.",
        )
    encoded = tokenizer(text, return_offsets_mapping=True, verbose=False)
    ids: list[int] = list(encoded["input_ids"])
    inside = frozenset(
        i for i, (start, stop) in enumerate(encoded["offset_mapping"]) if start < needle.stop and stop > needle.start
    )
    whole: list[int] = list(tokenizer(text + answer, verbose=False)["input_ids"])
    steps = max(1, len(whole) - len(ids))
    if len(ids) + steps > loaded.info.window:
        raise ModelError(
            f"A probe of {len(ids)} tokens does not fit the window of {loaded.info.name}, {loaded.info.window} tokens.",
            "Use shorter texts, e.g. --lengths 100,200.",
        )
    return Probe(ids, inside, answer.strip(), steps)


class _Watcher:
    """The positions each head attends to most in one forward of a single token.

    Attributes:
        positions: ``[N, H, n]``, most attended first. weights: theirs.
    """

    def __init__(self, layers: int, count: int) -> None:
        self.count = count
        self._top: list[tuple[Tensor, Tensor]] = [(torch.empty(0), torch.empty(0))] * layers

    def observe(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        start: int,
        store: LayerStore,
        rule: AttentionRule,
    ) -> None:
        assert isinstance(store, DenseLayer)
        keys, values = store.parts()
        hidden = outside_window(store.positions, store.seen, 1, rule.window)
        _, weights = attention.over_parts(query, keys, values, rule, hidden=hidden, return_weights=True)
        assert weights is not None
        best = torch.sort(weights[:, 0], dim=-1, descending=True, stable=True)
        self._top[layer] = best.indices[:, : self.count].cpu(), best.values[:, : self.count].double().cpu()

    @property
    def positions(self) -> Tensor:
        return torch.stack([positions for positions, _ in self._top])

    @property
    def weights(self) -> Tensor:
        return torch.stack([weights for _, weights in self._top])


def _ask(loaded: LoadedModel, kind: Kind, probe: Probe) -> tuple[Tensor, str]:
    """Scores ``[N, H]`` of one probe, and the model's answer, of as many tokens as the right one."""
    shape = loaded.shape()
    device = shape.device
    cache = prefill(loaded, probe.ids[:-1]).cache
    inside = torch.zeros(len(probe.ids) + probe.steps, dtype=torch.bool)
    inside[sorted(probe.needle)] = True
    prompt = torch.tensor([*probe.ids, *[-1] * probe.steps])
    size = len(probe.needle)
    scores = torch.zeros(shape.layers, shape.heads, dtype=torch.float64)
    token, answer = probe.ids[-1], list[int]()
    for step in range(probe.steps):
        watcher = _Watcher(shape.layers, 1 if kind == "retrieval" else size)
        position = torch.tensor([[len(probe.ids) - 1 + step]], device=device)
        ids = torch.tensor([[token]], device=device)
        token = int(adapter.forward(loaded.model, ids, position, [cache], [[watcher]])[0, -1].argmax())
        answer.append(token)
        if kind == "retrieval":
            first = watcher.positions[..., 0]
            scores += (inside[first] & (prompt[first] == token)).double() / size
        else:
            scores += (watcher.weights * inside[watcher.positions]).sum(dim=-1) / size
    return scores, str(loaded.tokenizer.decode(answer, skip_special_tokens=True))


def word_f1(prediction: str, answer: str) -> float:
    """F1 of the words of two texts, lower case, punctuation at their ends left out."""
    said, right = (
        Counter(w for word in text.lower().split() if (w := word.strip(".,;:!?\"'"))) for text in (prediction, answer)
    )
    same = sum((said & right).values())
    return 2 * same / (sum(said.values()) + sum(right.values())) if same else 0.0
