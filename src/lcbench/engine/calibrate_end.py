"""The prober of END: trained on passkey and key-value texts, on hidden states of the model's early layers.

All of it is our choice (the paper's abstract is what is public, see `methods.prompt.end`). The texts are made here: the
passkey task's own rows with keys of six digits, and pairs of a key and a value as 100-LongBench words them, put between
sentences of the same background. A chunk is wanted when the answer stands in it. No row of a benchmark's test set is
read.
"""

from __future__ import annotations

import hashlib
import random
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lcbench.engine.calibrate import Made, Request
from lcbench.errors import BadValue
from lcbench.methods import passages
from lcbench.methods.calibration import save_tensors
from lcbench.methods.probing import CHUNK_WORDS, auroc, fit, probability, probe_text, states_at_end
from lcbench.models.info import LoadedModel
from lcbench.models.load import load
from lcbench.store.provenance import software
from lcbench.tasks.hundred.context import texts as pair_texts
from lcbench.tasks.passkey import Passkey

KINDS = ("passkey", "key-value")  # of the texts, in turn
SAMPLES = 40
LENGTHS = (500, 700, 900)  # words of background
LONGEST = 10_000  # words
DIGITS = 6  # the task's rows have 7: other keys
RECALL = 0.98
NEAR = 0.01  # an earlier layer is taken when its AUROC is that near to the best

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Example:
    """A chunk with its question, and whether the answer stands in it. ``source``: number of its text."""

    text: str
    wanted: bool
    source: int

    @property
    def kind(self) -> str:
        return KINDS[self.source % 2]

    @property
    def held_out(self) -> bool:
        """A fourth of the texts of either kind, which the prober is judged by."""
        return self.source // 2 % 4 == 3


def calibrate_end(request: Request, *, say: Callable[[str], None], progress: Progress) -> list[Made]:
    """Train the prober and store it as ``end.safetensors``.

    Raises:
        BadValue: an option that it cannot use; known before the model is loaded.
    """
    if request.text is not None or request.source is not None:
        raise BadValue("end makes texts of its own and reads no file.", "Leave --text and --from out.")
    samples, lengths = request.samples or SAMPLES, request.lengths or LENGTHS
    if samples < 8:
        raise BadValue(f"--samples {samples} is too few texts to train and validate on.", "Use 8 or more.")
    if max(lengths) > LONGEST:
        raise BadValue(f"--lengths {max(lengths)} is more than {LONGEST} words.", "Use shorter texts.")
    found = examples(request.home, samples, lengths, request.seed)
    labels = torch.tensor([one.wanted for one in found])
    held_out = torch.tensor([one.held_out for one in found])
    require_both(labels, held_out)
    loaded = load(request.model, request.home, say=say)
    layers = sweep(loaded.info.layers)
    states = _states(loaded, found, layers, progress)
    result = choose(layers, states, labels, held_out)
    recalls = {
        kind: result.recall_of(torch.tensor([one.kind == kind for one in found]) & held_out & labels) for kind in KINDS
    }
    tensors = {**result.prober, "layer": torch.tensor(result.layer), "threshold": torch.tensor(result.threshold)}
    provenance = {
        "samples": samples,
        "lengths": list(lengths),
        "seed": request.seed,
        "chunks": len(found),
        "wanted": int(labels.sum()),
        "texts_sha256": hashlib.sha256("\n".join(one.text for one in found).encode()).hexdigest(),
        "auroc": {str(layer): round(value, 4) for layer, value in result.scores.items()},
        "recall": round(result.recall, 4),
        "recall_by_kind": {kind: round(share, 4) for kind, share in recalls.items()},
        "dropped": round(result.dropped, 4),
        "dtype": loaded.info.dtype,
        "device": loaded.info.device,
        "software": software(),
    }
    path = save_tensors("end", loaded.info, request.home, tensors, provenance)
    return [
        Made(
            "end",
            path,
            f"layer {result.layer} of {loaded.info.layers}, AUROC {result.scores[result.layer]:.3f} on held-out texts; "
            f"threshold {result.threshold:.3g} finds {result.recall:.0%} of the wanted chunks ("
            + ", ".join(f"{kind} {share:.0%}" for kind, share in recalls.items())
            + f") and drops {result.dropped:.0%} of the others",
        )
    ]


@dataclass(frozen=True)
class Result:
    """The prober of the chosen layer and how it does on held-out texts: AUROC by layer, recall, noise dropped.

    ``values``: p ``[n]`` of all chunks.
    """

    layer: int
    prober: dict[str, Tensor]
    threshold: float
    scores: dict[int, float]
    recall: float
    dropped: float
    values: Tensor

    def recall_of(self, chosen: Tensor) -> float:
        """Share of some chunks, bool ``[n]``, that the threshold lets stay."""
        return float((self.values[chosen] >= self.threshold).double().mean())


def require_both(labels: Tensor, held_out: Tensor) -> None:
    """Raises BadValue where the texts to train on, or those held out, have not both wanted chunks and others."""
    for part in (labels[held_out], labels[~held_out]):
        if not part.any() or part.all():
            raise BadValue(
                f"The texts are too short: a chunk has about {CHUNK_WORDS} words, and only chunks with an answer were "
                "found, or only such without.",
                f"Use --lengths of {3 * CHUNK_WORDS} words or so (the default is {','.join(map(str, LENGTHS))}), or "
                "more --samples.",
            )


def choose(layers: Sequence[int], states: Sequence[Tensor], labels: Tensor, held_out: Tensor) -> Result:
    """The earliest layer whose prober is about as good as the best on held-out rows.

    Args:
        states: ``[n, hidden]`` of each layer. labels, held_out: bool ``[n]``.
    """
    probers = [fit(one[~held_out], labels[~held_out]) for one in states]
    values = [probability(one, prober) for one, prober in zip(states, probers, strict=True)]
    scores = {layer: auroc(v[held_out], labels[held_out]) for layer, v in zip(layers, values, strict=True)}
    best = max(scores.values())
    at = next(i for i, layer in enumerate(layers) if scores[layer] >= best - NEAR)
    seen, wanted = values[at][held_out], labels[held_out]
    ranked = torch.sort(seen[wanted], descending=True).values
    needed = -(-int(RECALL * 1000) * len(ranked) // 1000)
    threshold = float(ranked[min(len(ranked), max(1, needed)) - 1])
    return Result(
        layers[at],
        probers[at],
        threshold,
        scores,
        float((seen[wanted] >= threshold).double().mean()),
        float((seen[~wanted] < threshold).double().mean()),
        values[at],
    )


def sweep(count: int) -> list[int]:
    """The numbers of layers that are tried, of so many."""
    tried = {2, round(count / 8), round(count / 4), round(3 * count / 8), round(count / 2)}
    return sorted({min(count, max(1, one)) for one in tried})


def examples(home: Path, samples: int, lengths: Sequence[int], seed: int) -> list[Example]:
    """Chunks of passkey and key-value texts in turn; the same seed gives the same."""
    draw = random.Random(f"end|{seed}")
    repeats = -(-samples // (2 * 4 * len(lengths)))
    task = Passkey(lengths=tuple(lengths), depths="0.1/0.35/0.6/0.85", repeats=repeats, digits=DIGITS)
    rows = list(task.load(home).rows)
    draw.shuffle(rows)
    (source,) = Passkey(lengths=(2 * LONGEST,), depths="0.5", repeats=1).load(home).rows
    background = str(source.fields["background"]).split(" ")
    found: list[Example] = []
    for i in range(samples):
        if i % 2 == 0:
            prompt = task.prompt(rows[i // 2], home)
            assert prompt.context is not None
            context, question, answer = prompt.text[slice(*prompt.context)], prompt.question, rows[i // 2].answers[0]
        else:
            context, question, answer = _pairs(draw, background, lengths[i % len(lengths)])
        for chunk in passages.split(context, CHUNK_WORDS):
            found.append(Example(probe_text(chunk, question), answer in chunk, i))
    return found


def _pairs(draw: random.Random, background: Sequence[str], words: int) -> tuple[str, str, str]:
    """A text with three pairs, the question for one of them and its value."""
    start = draw.randrange(len(background) - words)
    pieces = list(background[start : start + words])
    pairs = [(_uuid(draw), _uuid(draw)) for _ in range(3)]
    for key, value in pairs:
        line = pair_texts()["pair"].replace("{key}", key).replace("{value}", value)
        pieces.insert(draw.randrange(len(pieces)), f"\n{line}\n")
    key, value = pairs[0]
    return " ".join(pieces), f'What is the value of the key "{key}"?', value


def _uuid(draw: random.Random) -> str:
    return str(uuid.UUID(int=draw.getrandbits(128), version=4))


def _states(loaded: LoadedModel, found: Sequence[Example], layers: Sequence[int], progress: Progress) -> list[Tensor]:
    """Hidden states ``[n, hidden]`` of each layer."""
    rows = []
    with torch.inference_mode():
        for i, one in enumerate(found):
            rows.append(states_at_end(loaded, one.text, layers))
            progress("chunks read", i + 1, len(found))
    return [torch.stack([row[j] for row in rows]).clone() for j in range(len(layers))]
