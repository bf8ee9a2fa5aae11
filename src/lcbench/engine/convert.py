"""``lcbench convert``: a model turned into another form that lcbench runs, written as a model folder."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lcbench.config.spec import ModelSpec
from lcbench.engine.calibrate_aqua import cut, sample_text
from lcbench.engine.generate import prefill
from lcbench.errors import BadValue, CannotWrite, UnknownName
from lcbench.models.converted import MARKER
from lcbench.models.identity import Say, file_sha256
from lcbench.models.info import LoadedModel
from lcbench.models.load import load
from lcbench.models.mha2mla.conversion import Selection, check, convert, select_pairs
from lcbench.models.quiet import quiet
from lcbench.models.rwkv5 import published
from lcbench.store.provenance import software

_SEQUENCES, _LENGTH = 16, 512  # read for the norms of "2-norm"


@dataclass(frozen=True)
class Request:
    """What to convert.

    Attributes:
        name: of `CONVERSIONS`. out: the folder to be written.
        model: for mha2mla. rope_dims, rank, select, start: see `models.mha2mla.conversion`; the rank is a KV head's.
        text, samples: read for ``select="2-norm"``.
        source, vocabulary: for rwkv5.
    """

    name: str
    model: ModelSpec
    home: Path
    out: Path
    rope_dims: int | None = None
    rank: int | None = None
    select: Selection = "high"
    start: int = 0
    text: Path | None = None
    samples: int = _SEQUENCES
    seed: int = 42
    source: Path | None = None
    vocabulary: Path | None = None


def run(request: Request, *, say: Say) -> str:
    """Convert and write. Returns a sentence about the result.

    Raises:
        UnknownName, BadValue, ModelError, CannotWrite: with the next step.
    """
    if request.name not in CONVERSIONS:
        raise UnknownName("conversion", request.name, CONVERSIONS)
    if request.out.exists():
        raise BadValue(f"{request.out} is there already.", "Give a new folder with --out, or remove it.")
    return CONVERSIONS[request.name](request, say)


def to_latent(request: Request, say: Say) -> str:
    """A Llama model to MHA2MLA."""
    for option, value in (("--rope-dims", request.rope_dims), ("--rank", request.rank)):
        if value is None:
            raise BadValue(f"mha2mla needs {option}.", "Write e.g. --rope-dims 16 --rank 32.")
    assert request.rope_dims is not None
    assert request.rank is not None
    loaded = load(request.model, request.home, say=say)
    config, rank = loaded.model.config, request.rank * loaded.info.kv_heads
    check(config, request.rope_dims, rank)
    norms = pair_norms(loaded, request) if request.select == "2-norm" else None
    pairs = select_pairs(config, request.rope_dims, request.select, start=request.start, norms=norms)
    made = convert(loaded.model, pairs, request.rope_dims, rank)
    facts = {
        "conversion": "mha2mla",
        "of": request.model.name,
        "of_identity": loaded.info.identity,
        "rope_dims": request.rope_dims,
        "rank": rank,
        "select": request.select,
        "start": request.start,
        "fine_tuned": False,
    }
    _write(request.out, made, loaded.tokenizer, facts)
    latent = rank + loaded.info.kv_heads * request.rope_dims
    plain = 2 * loaded.info.kv_heads * loaded.info.head_dim
    return (
        f"{request.out} holds {latent} values a token and layer instead of {plain} ({latent / plain:.1%}). It was "
        "converted only; the authors fine-tune after it, and strong compression is useless without."
    )


def pair_norms(loaded: LoadedModel, request: Request) -> Tensor:
    """Products of mean query and key norms of each pair before rotation, ``[layers, kv_heads, head_dim / 2]``; the
    query heads of a group are summed."""
    _, text = sample_text(request.text)
    sequences = cut(loaded, text, count=request.samples, length=_LENGTH, seed=request.seed)
    shape = loaded.shape()
    half = shape.head_dim // 2
    sums = torch.zeros(2, shape.layers, shape.kv_heads, half, dtype=torch.float64)

    def watch(kind: int, layer: int) -> Callable[[Any, Any, Tensor], None]:
        def hook(module: Any, given: Any, output: Tensor) -> None:
            pairs = output[0].double().view(output.shape[1], shape.kv_heads, -1, 2, half)
            sums[kind, layer] += pairs.norm(dim=3).mean(dim=0).sum(dim=1).cpu()

        return hook

    hooks = [
        getattr(layer.self_attn, name).register_forward_hook(watch(kind, i))
        for i, layer in enumerate(loaded.model.model.layers)
        for kind, name in enumerate(("q_proj", "k_proj"))
    ]
    try:
        for ids in sequences:
            prefill(loaded, ids)
    finally:
        for hook in hooks:
            hook.remove()
    return sums[0] * sums[1] / len(sequences) ** 2


def from_published_rwkv5(request: Request, say: Say) -> str:
    """A published RWKV-5 file to a model folder."""
    for option, value in (("--from", request.source), ("--vocabulary", request.vocabulary)):
        if value is None:
            raise BadValue(
                f"rwkv5 needs {option}.", "Write --from MODEL.pth --vocabulary rwkv_vocab_v20230424.txt --out FOLDER."
            )
    assert request.source is not None
    assert request.vocabulary is not None
    tokenizer = published.tokenizer_of(request.vocabulary)
    say(f"Reading {request.source.name}.")
    model = published.model_of(request.source)
    facts = {
        "conversion": "rwkv5",
        "of": request.source.name,
        "of_sha256": file_sha256(request.source, request.home, say),
    }
    _write(request.out, model, tokenizer, facts)
    return f"{request.out} holds {request.source.name} as a model folder."


CONVERSIONS: dict[str, Callable[[Request, Say], str]] = {"mha2mla": to_latent, "rwkv5": from_published_rwkv5}


def _write(out: Path, model: Any, tokenizer: Any, facts: dict[str, Any]) -> None:
    """Write a model folder, whole or not at all."""
    with _beside(out) as part, quiet():
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        (part / MARKER).write_text(json.dumps({**facts, "software": software()}, indent=1) + "\n", encoding="utf-8")


@contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """A folder that takes the place of ``out`` when all went well."""
    part = out.parent / f"{out.name}.part-{os.getpid()}"
    try:
        part.mkdir(parents=True)
        yield part
        os.replace(part, out)
    except OSError as error:
        raise CannotWrite(
            f"Cannot write {out}: {error.strerror or error}.", "Free space or give another --out."
        ) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
