"""What `lcbench calibrate` does: measure something on a model once and keep it below LCBENCH_HOME.

A calibration is made by one function, named in `CALIBRATORS`; `methods.calibration` stores it and methods read it when
they are bound to the model.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lcbench.config.spec import ModelSpec
from lcbench.engine import head_scores
from lcbench.errors import BadValue, CorruptFile, ModelError, UnknownName
from lcbench.methods.calibration import save_json
from lcbench.models.info import LoadedModel, ModelInfo
from lcbench.models.load import describe, load
from lcbench.store.provenance import software

Say = Callable[[str], None]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Request:
    """What the user asked for.

    Attributes:
        name: of the calibration. home: LCBENCH_HOME.
        samples: how many probes or texts; None for the calibration's own default.
        lengths: their lengths, in words of probes or tokens of texts; likewise.
        seed: of everything drawn.
        source: a published file to take over instead of measuring.
        text: a text file to fit on, for calibrations that read text.
    """

    name: str
    model: ModelSpec
    home: Path
    samples: int | None = None
    lengths: tuple[int, ...] | None = None
    seed: int = 42
    source: Path | None = None
    text: Path | None = None


@dataclass(frozen=True)
class Made:
    """A calibration that was stored: its name, its file and a sentence about it."""

    name: str
    path: Path
    summary: str


def calibrate(request: Request, *, say: Say, progress: Progress) -> list[Made]:
    """Make a calibration.

    Args:
        say: told sentences about things that take long. progress: told (what, done, in all).

    Raises:
        UnknownName: no calibration of that name. BadValue: an option it cannot use.
        ModelError, CannotWrite, CorruptFile: as loading models, `head_scores.measure` and `read_scores`.
    """
    if request.name not in CALIBRATORS:
        raise UnknownName("calibration", request.name, CALIBRATORS)
    if request.samples is not None and request.samples < 1:
        raise BadValue(f"samples={request.samples} is below the least value 1.", "Use 1 or more.")
    if request.lengths is not None and min(request.lengths, default=0) < 1:
        raise BadValue("Lengths must be whole numbers, 1 or more.", "Use e.g. 150,300,600.")
    module, _, function = CALIBRATORS[request.name].partition(":")
    made: list[Made] = getattr(importlib.import_module(module), function)(request, say=say, progress=progress)
    return made


# Name to "module:function"; the function takes (request, say=, progress=) and returns what it stored.
CALIBRATORS: Mapping[str, str] = {
    "headkv": "lcbench.engine.calibrate:calibrate_heads",
    "positional-hidden": "lcbench.engine.calibrate_positional:calibrate_positional",
    "headkv-r2": "lcbench.engine.calibrate:calibrate_heads",
    "aqua-kv": "lcbench.engine.calibrate_aqua:calibrate_aqua",
    "aqua-kv-3bit": "lcbench.engine.calibrate_aqua:calibrate_aqua",
    "aqua-kv-4bit": "lcbench.engine.calibrate_aqua:calibrate_aqua",
    "end": "lcbench.engine.calibrate_end:calibrate_end",
    "minference": "lcbench.engine.calibrate_minference:calibrate_minference",
}
_KINDS: Mapping[str, head_scores.Kind] = {"headkv": "retrieval", "headkv-r2": "reasoning"}


def calibrate_heads(request: Request, *, say: Say, progress: Progress) -> list[Made]:
    """Head scores: ``headkv`` measures both tables, ``headkv-r2`` the second alone; a published file fills one."""
    if request.text is not None:
        raise BadValue(f"{request.name} asks probes of its own and reads no text file.", "Leave --text out.")
    if request.source is not None:
        info, _ = describe(request.model, request.home, say=say, with_tokenizer=False)
        return [_take_over(request.name, info, request.home, request.source)]
    loaded = load(request.model, request.home, say=say)
    made = [_measured(request, request.name, loaded, progress)]
    if request.name == "headkv":
        try:
            made.append(_measured(request, "headkv-r2", loaded, progress))
        except ModelError as error:
            say(f"No headkv-r2 scores: {error.message} {error.next_step}")
    return made


def _measured(request: Request, name: str, loaded: LoadedModel, progress: Progress) -> Made:
    kind = _KINDS[name]
    options: dict[str, Any] = {
        "samples": request.samples or head_scores.SAMPLES,
        "lengths": request.lengths or head_scores.LENGTHS,
        "seed": request.seed,
    }
    result = head_scores.measure(
        loaded, kind, **options, on_probe=lambda done, total: progress(f"{kind} probes", done, total)
    )
    provenance = {
        **options,
        "lengths": list(options["lengths"]),
        "kind": kind,
        "answered": result.answered,
        "texts_sha256": head_scores.texts_sha256(),
        "dtype": loaded.info.dtype,
        "device": loaded.info.device,
        "software": software(),
    }
    path = save_json(name, loaded.info, request.home, {"scores": result.scores}, provenance)
    heads = [(score, layer, head) for layer, row in enumerate(result.scores) for head, score in enumerate(row)]
    top = ", ".join(f"{layer}-{head} ({score:.3f})" for score, layer, head in sorted(heads, reverse=True)[:5])
    return Made(
        name, path, f"{result.answered} of {result.asked} {kind} probes answered; highest layer-head scores: {top}"
    )


def _take_over(name: str, info: ModelInfo, home: Path, source: Path) -> Made:
    scores, digest = read_scores(source, info.layers, info.heads)
    provenance = {"published_file": source.name, "published_sha256": digest, "software": software()}
    path = save_json(name, info, home, {"scores": scores}, provenance)
    return Made(name, path, f"taken over from {source.name}, {info.layers} layers of {info.heads} heads")


def read_scores(path: Path, layers: int, heads: int) -> tuple[list[list[float]], str]:
    """Head scores ``[N][H]`` from a published file, and the file's sha256.

    Two forms are read: a mapping of ``"layer-head"`` to a score or a list of scores, whose mean counts (the tables of
    FYYFU/HeadKV), and a plain list of N lists of H scores.

    Raises:
        CorruptFile: neither form, or scores that are no finite numbers >= 0, or all 0.
        ModelError: not the model's layers and heads.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise BadValue(f"Cannot read {path}: {error.strerror}.", "Give --from a file of head scores.") from None
    try:
        data = json.loads(raw)
        table = _from_mapping(data) if isinstance(data, dict) else [[_score(x) for x in row] for row in data]
    except (ValueError, TypeError, RecursionError):
        raise CorruptFile(
            f"{path} is not a table of head scores.",
            'Use JSON like {"0-0": [0.1], "0-1": [0.2], …} or [[0.1, 0.2], …].',
        ) from None
    if len(table) != layers or any(len(row) != heads for row in table):
        raise ModelError(
            f"{path} does not have one score for each of the model's {layers} layers of {heads} heads.",
            "Use the file that was published for this model.",
        )
    if not any(score > 0 for row in table for score in row):
        raise CorruptFile(f"All head scores in {path} are 0.", "Use another file.")
    return table, hashlib.sha256(raw).hexdigest()


def _from_mapping(data: Mapping[str, Any]) -> list[list[float]]:
    found: dict[tuple[int, int], float] = {}
    for key, value in data.items():
        match = re.fullmatch(r"(\d{1,4})-(\d{1,4})", key)
        if match is None:
            raise ValueError(key)
        values = value if isinstance(value, list) else [value]
        if not values:
            raise ValueError(key)
        found[int(match[1]), int(match[2])] = sum(map(_score, values)) / len(values)
    layers, heads = max(layer for layer, _ in found) + 1, max(head for _, head in found) + 1
    if len(found) != layers * heads:  # a head is absent: leave its row short, which no model fits
        return [[found[key] for key in sorted(found) if key[0] == layer] for layer in range(layers)]
    return [[found[layer, head] for head in range(heads)] for layer in range(layers)]


def _score(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ValueError(value)
    return float(value)
