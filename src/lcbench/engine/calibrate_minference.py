"""The head patterns of MInference (arXiv:2407.02490, section 3.2): which one keeps most of a head's attention.

Texts are read with the unmodified model. For every query head each candidate (a pattern with its sizes, about equally
costly) hides what it does not look at, and what it keeps of the attention of the later half of the queries is its
score, averaged over the texts; the best one wins. The authors' candidates are for long texts: they are scaled down for
texts below `FULL_LENGTH` tokens (our choice).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lcbench.engine.calibrate import Made, Progress, Request, Say
from lcbench.engine.calibrate_aqua import cut, sample_text
from lcbench.errors import BadValue, CorruptFile, ModelError
from lcbench.kv.cache import KVCache
from lcbench.kv.weights import weight_blocks
from lcbench.methods.calibration import save_json
from lcbench.methods.memory.minference import NAME, Kind, Looks, MInference, Pattern
from lcbench.models import adapter
from lcbench.models.info import LoadedModel, ModelInfo
from lcbench.models.load import describe, load
from lcbench.models.rule import AttentionRule
from lcbench.store.provenance import software

SAMPLES, LENGTH = 2, 1024
FULL_LENGTH = 8192  # tokens from which the authors' sizes hold
CANDIDATES: tuple[tuple[Kind, int, int], ...] = (
    ("a-shape", 100, 800),
    ("vertical-slash", 30, 800),
    ("vertical-slash", 100, 750),
    ("vertical-slash", 500, 700),
    ("vertical-slash", 3500, 100),
    ("block-sparse", 8, 0),
)
_THEIR_KINDS: dict[str, Kind] = {
    "stream_llm": "a-shape",
    "vertical_and_slash": "vertical-slash",
    "block_sparse": "block-sparse",
}
_THEIR_BLOCKS = 100  # what the authors' kernel looks at, whatever the file says


def calibrate_minference(request: Request, *, say: Say, progress: Progress) -> list[Made]:
    """Find and store the head patterns, or take over a published file of them.

    ``request.samples`` texts of ``request.lengths[0]`` tokens are read.

    Raises:
        BadValue: a file that cannot be read, or options that do not fit. CorruptFile: it holds no patterns.
        ModelError: too little text, other heads than the model's, or a model that cannot be loaded.
    """
    if request.source is not None:
        if request.text is not None:
            raise BadValue("Published patterns are taken over without reading a text.", "Leave --text or --from out.")
        info, _ = describe(request.model, request.home, say=say, with_tokenizer=False)
        return [_take_over(info, request.home, request.source)]
    if request.lengths is not None and len(request.lengths) > 1:
        raise BadValue("minference reads texts of one length.", "Give one, e.g. --lengths 1024.")
    name, text = sample_text(request.text)
    loaded = load(request.model, request.home, say=say)
    count = request.samples or SAMPLES
    sequences = cut(loaded, text, count=count, length=(request.lengths or (LENGTH,))[0], seed=request.seed)[:count]
    candidates = scaled(len(sequences[0]))
    recall = torch.zeros(loaded.info.layers, loaded.info.heads, len(candidates))
    for number, ids in enumerate(sequences):
        recall += measure(loaded, ids, candidates) / len(sequences)
        progress("texts", number + 1, len(sequences))
    score, best = recall.max(dim=-1)
    patterns = [
        [[*candidates[which], round(kept, 4)] for which, kept in zip(*row, strict=True)]
        for row in zip(best.tolist(), score.tolist(), strict=True)
    ]
    provenance = {
        "text": name,
        "text_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "sequences": len(sequences),
        "tokens_each": len(sequences[0]),
        "candidates": [list(candidate) for candidate in candidates],
        "seed": request.seed,
        "dtype": loaded.info.dtype,
        "device": loaded.info.device,
        "software": software(),
    }
    path = save_json(NAME, loaded.info, request.home, {"patterns": patterns}, provenance)
    return [Made(NAME, path, _summary(patterns))]


def _summary(patterns: list[list[list[Any]]]) -> str:
    heads = [head for layer in patterns for head in layer]
    kinds = Counter(head[0] for head in heads)
    kept = sum(head[3] for head in heads) / len(heads)
    return f"{', '.join(f'{n} {kind}' for kind, n in kinds.most_common())} heads; they keep {kept:.1%} of the attention"


def scaled(tokens: int) -> list[Pattern]:
    """The candidates for texts of so many tokens; sizes are at least 1."""
    share = min(1.0, tokens / FULL_LENGTH)
    found = [
        Pattern(kind, max(1, round(first * share)), max(1, round(second * share)) if second else 0)
        for kind, first, second in CANDIDATES
    ]
    return list(dict.fromkeys(found))


def measure(loaded: LoadedModel, ids: list[int], candidates: list[Pattern]) -> Tensor:
    """Share of each head's attention that each candidate keeps in one text: ``[N, H, candidates]`` on the CPU."""
    shape = loaded.shape()
    watcher = _Recall(shape.layers, candidates)
    tokens = torch.tensor([ids], device=shape.device)
    positions = torch.arange(len(ids), device=shape.device)[None]
    cache = KVCache.dense(shape.layers, expected=len(ids))
    adapter.forward(loaded.model, tokens, positions, [cache], [[watcher]])
    return torch.stack(watcher.results)


class _Recall:
    """Watches one text being read and scores the candidates on each layer."""

    def __init__(self, layers: int, candidates: list[Pattern]) -> None:
        self.candidates = candidates
        self.results: list[Tensor] = [torch.empty(0)] * layers

    def observe(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, start: int, store: Any, rule: AttentionRule
    ) -> None:
        heads, total = query.shape[:2]
        # The authors' search puts 30 diagonals first, their kernel 100; scaled like the sizes.
        rules = MInference(recent=max(1, round(30 * min(1.0, total / FULL_LENGTH))))
        looks = [Looks(rules, [candidate] * heads, query, key, rule) for candidate in self.candidates]
        half = total // 2
        kept = torch.zeros(heads, len(looks), device=query.device)
        whole = torch.zeros(heads, 1, device=query.device)
        for block in weight_blocks(query[:, half:], key, rule):
            first, last = half + block.rows.start, half + block.rows.stop
            whole[block.heads, 0] += block.weights.sum(dim=(1, 2))
            for number, look in enumerate(looks):
                seen = look.rows(first, last)[block.heads, :, block.cols]
                kept[block.heads, number] += (block.weights * seen).sum(dim=(1, 2))
        self.results[layer] = (kept / whole).cpu()


def _take_over(info: ModelInfo, home: Path, source: Path) -> Made:
    patterns, digest = read_patterns(source, info.layers, info.heads)
    provenance = {"published_file": source.name, "published_sha256": digest, "software": software()}
    path = save_json(NAME, info, home, {"patterns": patterns}, provenance)
    return Made(NAME, path, f"taken over from {source.name}, {info.layers} layers of {info.heads} heads")


def read_patterns(path: Path, layers: int, heads: int) -> tuple[list[list[list[Any]]], str]:
    """Patterns ``[N][H]`` of (kind, first size, second size, score) from a published file, and the file's sha256.

    The file is a list of layers, each a mapping of ``"head"`` to ``["vertical_and_slash", 1000, 6096, 0.9]``
    (microsoft/MInference minference/configs).

    Raises:
        CorruptFile: another form. ModelError: not the model's layers and heads.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise BadValue(f"Cannot read {path}: {error.strerror}.", "Give --from a file of head patterns.") from None
    try:
        found = [{int(head): _their_pattern(*entry) for head, entry in layer.items()} for layer in json.loads(raw)]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise CorruptFile(
            f"{path} is not a table of head patterns.",
            'Use JSON like [{"0": ["vertical_and_slash", 1000, 6096, 0.9], …}, …], one object a layer.',
        ) from None
    if len(found) != layers or any(sorted(layer) != list(range(heads)) for layer in found):
        raise ModelError(
            f"{path} does not have one pattern for each of the model's {layers} layers of {heads} heads.",
            "Use the file that was published for this model.",
        )
    return [[layer[head] for head in range(heads)] for layer in found], hashlib.sha256(raw).hexdigest()


def _their_pattern(kind: str, first: int, second: int, score: float = 0.0) -> list[Any]:
    ours, first, second = _THEIR_KINDS[kind], int(first), int(second)
    if first < 0 or second < 1:
        raise ValueError(first)
    return [ours, _THEIR_BLOCKS, 0, score] if ours == "block-sparse" else [ours, first, second, score]
