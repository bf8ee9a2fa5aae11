"""The predictors of AQUA-KV (arXiv:2501.19392), fitted on a text sample.

A text is cut into sequences and read with the unmodified model. Layer by layer, ridge regression predicts a layer's
keys (before RoPE) from the keys of the layer below as they will be *restored*, quantized and predicted in their turn,
and its values from its own restored keys and the restored values below (rules as in goodevening13/aquakv
train_predictors.py; sinks and buffers play no part). Some sequences are held out to measure what the predictors do.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from lcbench.engine.calibrate import Made, Progress, Request, Say
from lcbench.engine.generate import prefill
from lcbench.errors import BadValue, ModelError
from lcbench.kv.higgs import Higgs
from lcbench.kv.predicted import affine
from lcbench.kv.rotation import Rotation
from lcbench.methods.calibration import save_tensors
from lcbench.methods.quantize.aqua_kv import FIRST_BITS, calibration_name
from lcbench.models.info import LoadedModel
from lcbench.models.load import describe, load
from lcbench.store.provenance import software

SEQUENCES, LENGTH = 16, 1024  # the authors: 256 of 8192
RIDGE = 1e-3  # of the mean diagonal
NAMES = {calibration_name(bits): bits for bits in (2, 3, 4)}


@dataclass(frozen=True)
class Fitted:
    """Predictors and what they do on held-out sequences.

    Attributes:
        tensors: "key.1", "value.1", … fp16; see `kv.predicted.Predictor`.
        unexplained: share of the squared keys and values of each layer >= 1 that the predictors leave, before
            quantization; -log4 of it is the bits they save.
        error: share that quantization with predictors leaves, in each layer >= 1; plain: without predictors.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    unexplained: dict[str, list[float]] = field(default_factory=lambda: {"keys": [], "values": []})
    error: dict[str, list[float]] = field(default_factory=lambda: {"keys": [], "values": []})
    plain: dict[str, list[float]] = field(default_factory=lambda: {"keys": [], "values": []})


def calibrate_aqua(request: Request, *, say: Say, progress: Progress) -> list[Made]:
    """Fit and store the predictors of ``aqua-kv``, ``aqua-kv-3bit`` or ``aqua-kv-4bit``.

    The text is the file ``request.text`` or, without one, the language reference that every Python carries;
    ``request.samples`` sequences of ``request.lengths[0]`` tokens are read, an eighth of them held out.

    Raises:
        BadValue: a file that cannot be read, or options that do not fit. ModelError: too little text, or a model that
            cannot be loaded or served.
    """
    if request.source is not None:
        raise BadValue(f"{request.name} reads no published predictors.", "Leave --from out; --text gives it a text.")
    if request.lengths is not None and len(request.lengths) > 1:
        raise BadValue(f"{request.name} reads texts of one length.", "Give one, e.g. --lengths 1024.")
    bits = NAMES[request.name]
    name, text = sample_text(request.text)
    describe(request.model, request.home, say=say, turned_by=[request.name])  # refused before the weights are read
    loaded = load(request.model, request.home, say=say)
    sequences = cut(
        loaded, text, count=request.samples or SEQUENCES, length=(request.lengths or (LENGTH,))[0], seed=request.seed
    )
    held_out = max(1, len(sequences) // 8)
    fitted = fit(loaded, sequences, bits=bits, held_out=held_out, progress=progress)
    provenance = {
        "bits": bits,
        "first_bits": FIRST_BITS,
        "ridge": RIDGE,
        "text": name,
        "text_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "sequences": len(sequences),
        "held_out": held_out,
        "tokens_each": len(sequences[0]),
        "seed": request.seed,
        "unexplained": fitted.unexplained,
        "error": fitted.error,
        "error_without_predictors": fitted.plain,
        "dtype": loaded.info.dtype,
        "device": loaded.info.device,
        "software": software(),
    }
    path = save_tensors(request.name, loaded.info, request.home, fitted.tensors, provenance)
    return [Made(request.name, path, _summary(fitted, name, sequences, held_out))]


def _summary(fitted: Fitted, text: str, sequences: Sequence[Sequence[int]], held_out: int) -> str:
    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    parts = []
    for what in ("keys", "values"):
        saved = -math.log(max(mean(fitted.unexplained[what]), 1e-12), 4)
        error, plain = mean(fitted.error[what]), mean(fitted.plain[what])
        parts.append(f"{what}: {saved:.2f} bits saved, error {error:.4f} instead of {plain:.4f}")
    return (
        f"fitted on {len(sequences) - held_out} sequences of {len(sequences[0])} tokens of {text}, measured on "
        f"{held_out} other{'s' if held_out > 1 else ''}; {'; '.join(parts)}"
    )


def sample_text(source: Path | None) -> tuple[str, str]:
    """Name and content of the text to fit on; raises BadValue for a file that cannot be read as UTF-8."""
    if source is None:
        from pydoc_data.topics import topics

        return "the Python language reference", "\n\n".join(topics[name] for name in sorted(topics))
    try:
        return source.name, source.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise BadValue(f"Cannot read {source}: {why}.", "Give a plain text file.") from None


def cut(loaded: LoadedModel, text: str, *, count: int, length: int, seed: int) -> list[list[int]]:
    """``count`` sequences of ``length`` tokens, not overlapping, in an order drawn from the seed.

    A length beyond the model's window becomes the window. Each begins with the BOS token of a model that has one.

    Raises:
        ModelError: the text is too short for them.
    """
    length = min(length, loaded.info.window)
    bos = [] if loaded.info.bos_id is None else [loaded.info.bos_id]
    step = length - len(bos)
    ids = [int(i) for i in loaded.tokenizer.encode(text, add_special_tokens=False)] if step > 0 else []
    starts = list(range(0, len(ids) - step + 1, step)) if step > 0 else []
    if len(starts) < max(count, 2):
        raise ModelError(
            f"The text has {len(ids)} tokens, {max(count, 2)} sequences of {length} need more.",
            "Give a longer text (--text), fewer sequences (--samples, 2 or more) or shorter ones (--lengths).",
        )
    random.Random(seed).shuffle(starts)
    return [bos + ids[start : start + step] for start in starts[:count]]


def fit(
    loaded: LoadedModel,
    sequences: Sequence[Sequence[int]],
    *,
    bits: int,
    held_out: int,
    progress: Progress = lambda what, done, total: None,
) -> Fitted:
    """Fit all predictors.

    Args:
        sequences: token ids; the last ``held_out`` of them only measure.
        bits: of the quantizer above the lowest layer.
        progress: told (what, done, in all).

    Raises:
        ModelError: the model rotates its keys in a way that is not understood, or has a single layer.
    """
    shape = loaded.shape()
    if shape.layers < 2:
        raise ModelError("A model of one layer has nothing to predict.", "Choose another method.")
    texts = []
    for i, ids in enumerate(sequences):
        texts.append(_keys_and_values(loaded, ids))
        progress("sequences", i + 1, len(sequences))
    device, trained, codec = shape.device, len(sequences) - held_out, Higgs(bits)
    result = Fitted()
    keys, values = ([_rounded(text[0][which], Higgs(FIRST_BITS), device) for text in texts] for which in (0, 1))
    for layer in range(1, shape.layers):
        exact = [[text[layer][which] for text in texts] for which in (0, 1)]
        result.tensors[f"key.{layer}"], keys = _fit_one(keys, exact[0], trained, codec, device, "keys", result)
        inputs = [torch.cat([k, v], dim=-1) for k, v in zip(keys, values, strict=True)]
        result.tensors[f"value.{layer}"], values = _fit_one(inputs, exact[1], trained, codec, device, "values", result)
        progress("layers", layer, shape.layers - 1)
    return result


def _keys_and_values(loaded: LoadedModel, ids: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """Keys before RoPE and values of each layer, ``[n, D]`` in the model's dtype, on the CPU."""
    record = prefill(loaded, ids, observe=[Rotation()])
    positions = torch.arange(record.length, device=record.shape.device)
    found = []
    for i in range(record.shape.layers):
        layer = record.layer(i)
        rope = layer.observed[Rotation()]
        key = layer.key if rope is None else rope.undo(layer.key, positions).to(layer.key.dtype)
        key, value = (x.transpose(0, 1).flatten(1).cpu() for x in (key, layer.value))
        found.append((key, value))
    return found


def _rounded(exact: Tensor, codec: Higgs, device: torch.device) -> Tensor:
    """What quantization leaves of vectors ``[n, D]``: fp32, on the CPU."""
    return codec.decode(codec.encode(exact.to(device)), exact.shape[-1], torch.float32).cpu()


def _fit_one(
    inputs: Sequence[Tensor],
    targets: Sequence[Tensor],
    trained: int,
    codec: Higgs,
    device: torch.device,
    what: str,
    result: Fitted,
) -> tuple[Tensor, list[Tensor]]:
    """One map ``[k + 1, D]`` in fp16, and the targets as they are restored with it; measures go to ``result``."""
    weights = ridge(inputs[:trained], targets[:trained], device).half()
    restored, sums = [], torch.zeros(4, dtype=torch.float64)
    for i, (x, y) in enumerate(zip(inputs, targets, strict=True)):
        y = y.to(device).float()
        predicted = affine(x.to(device), weights.to(device))
        kept = predicted + codec.decode(codec.encode(y - predicted), y.shape[-1], torch.float32)
        restored.append(kept.cpu())
        if i >= trained:
            plain = codec.decode(codec.encode(y), y.shape[-1], torch.float32)
            parts = (y - predicted, y - kept, y - plain, y)
            sums += torch.tensor([float(part.double().square().sum()) for part in parts], dtype=torch.float64)
    shares = (sums[:3] / sums[3].clamp_min(torch.finfo(torch.float64).tiny)).tolist()
    for measure, share in zip((result.unexplained, result.error, result.plain), shares, strict=True):
        measure[what].append(share)
    return weights, restored


def ridge(inputs: Sequence[Tensor], targets: Sequence[Tensor], device: torch.device) -> Tensor:
    """Ridge regression of vectors ``[n, D]`` on vectors ``[n, k]``: fp32 ``[k + 1, D]``, the last row the bias.

    ``W = (X^T X + lambda I)^-1 X^T Y`` with a column of ones in X and lambda = `RIDGE` times the mean of the diagonal;
    the normal equations are summed up and solved in fp64.
    """
    width = inputs[0].shape[-1] + 1
    square = torch.zeros(width, width, dtype=torch.float64)
    cross = torch.zeros(width, targets[0].shape[-1], dtype=torch.float64)
    for x, y in zip(inputs, targets, strict=True):
        ones = torch.nn.functional.pad(x.to(device).float(), (0, 1), value=1.0)
        square += (ones.t() @ ones).double().cpu()
        cross += (ones.t() @ y.to(device).float()).double().cpu()
    square.diagonal().add_(RIDGE * float(square.diagonal().mean()))
    solution: Tensor = torch.linalg.solve(square, cross)
    return solution.float()
