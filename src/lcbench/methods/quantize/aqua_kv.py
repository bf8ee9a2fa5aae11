"""AQUA-KV: each layer is predicted from the one below, and only the rest is quantized."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch

from lcbench.config.options import param
from lcbench.errors import BadValue, ModelError
from lcbench.kv.cache import CacheShape, KVCache
from lcbench.kv.codecs import Codec
from lcbench.kv.higgs import Higgs
from lcbench.kv.observe import Observation
from lcbench.kv.predicted import Ladder, PredictedCache, PredictedLayer, Predictor
from lcbench.kv.record import PrefillRecord
from lcbench.kv.rotation import Rotation
from lcbench.methods.base import Method, Traits
from lcbench.methods.calibration import Calibration, bound, load_tensors, missing
from lcbench.methods.registry import method

if TYPE_CHECKING:
    from lcbench.models.info import ModelInfo

BITS = (2, 3, 4)
FIRST_BITS = 4  # of the lowest layer, which nothing predicts


@method(
    "aqua-kv",
    paper="arXiv:2501.19392",
    traits=Traits(family="quantize", calibrate="aqua-kv"),
)
@dataclass(frozen=True)
class AquaKV(Method):
    """Quantizes what the layer below does not tell (arXiv:2501.19392; rules as in goodevening13/aquakv
    aquakv/cache_utils.py and quantizers.py).

    K_l and V_l are a token's keys before RoPE and its values, all heads of layer l in one vector of D = Hk d numbers,
    P are affine maps fitted once for a model, and Q rounds by HIGGS (see below)::

        layer 0:  K'_0 = Q4(K_0),                        V'_0 = Q4(V_0)
        layer l:  K'_l = P_k(K'_l-1) + Q(K_l - P_k(K'_l-1))
                  V'_l = P_v(K'_l, V'_l-1) + Q(V_l - P_v(K'_l, V'_l-1))

    The prompt is read with exact attention. The first `sink` tokens always stay exact. Others wait exactly until there
    are `buffer` of them, then all that wait are quantized, in all layers, at the end of that step: a prompt longer
    than sink + buffer leaves no exact recent token. While decoding, the layers are restored one after the other, keys
    are rotated to their positions, and nothing is quantized twice.

    Q multiplies by a Hadamard matrix, divides by the norm and rounds pairs of channels to a grid of ``4^bits`` points.
    The authors' grids are files of their repository; ours come from Lloyd's algorithm on the normal density
    (`kv.higgs`). Norms are fp32 for every G channels, G the largest power of two that divides D, at most 1024 (the
    authors fill D up to a multiple of 1024).

    `lcbench calibrate aqua-kv` fits the predictors for 2 bits; those for other bits are aqua-kv-3bit and aqua-kv-4bit.
    Without them the method refuses to run.

    One layer holds ``2 D (bits/8 + 4/G)`` bytes a quantized token (bits = 4 in layer 0), ``2 D e`` an exact one, and
    once the predictors, ``2 (3 D^2 + 2 D)`` bytes in every layer but the lowest, and ``4 r/2`` of frequencies for r
    rotated channels. The bytes in a record include both; they weigh on short prompts.
    """

    turns: ClassVar[bool] = True
    proof: ClassVar[str] = (
        "Teacher-forced logits of tiny Llama, Mistral (sliding window) and Qwen2 models over 64 tokens, across "
        "flushes, against a second computation with numpy: Hadamard matrix, brute-force rounding, predictors and "
        "rotation written apart; an identity quantizer equals the full cache, predictors of zero equal HIGGS alone; "
        "fitted predictors lower the error on held-out text; unrotating and rotating again in fp16; grids come within "
        "three percent of the least error known; bytes equal the formula, in elements and in memory."
    )

    bits: int = param(2, "bits of a quantized channel, above the lowest layer", choices=BITS)
    sink: int = param(4, "first tokens that always stay exact", minimum=0)
    buffer: int = param(128, "exact tokens that are quantized together once there are so many", minimum=1)

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise BadValue(f"aqua-kv@bits={self.bits} is not one of 2, 3, 4.", "Choose 2, 3 or 4.")
        if self.sink < 0 or self.buffer < 1:
            raise BadValue(
                f"aqua-kv@sink={self.sink},buffer={self.buffer}: a sink is 0 or more, a buffer 1 or more.",
                "Use the defaults, sink=4,buffer=128.",
            )

    @property
    def calibration(self) -> str:
        return "" if self._stored is None else self._stored.sha256

    @property
    def _stored(self) -> Calibration | None:
        return getattr(self, "_predictors", None)

    def bind(self, info: ModelInfo, home: Path) -> Method:
        stored = load_tensors(calibration_name(self.bits), info, home)
        device = torch.device(info.device)
        placed = {name: tensor.to(device) for name, tensor in stored.tensors.items()}
        return bound(self, _predictors=Calibration(stored.path, stored.sha256, {}, placed, stored.provenance))

    def check(self, shape: CacheShape) -> None:
        width = shape.kv_heads * shape.head_dim
        if width % 8:
            raise ModelError(
                f"aqua-kv needs a multiple of 8 key channels in a layer; this model has {width}.",
                "Choose another model or another quantizer, e.g. kivi.",
            )
        for layer in range(1, shape.layers):
            predictor = self.predictor(layer)
            if predictor.key.shape != (width + 1, width) or predictor.value.shape != (2 * width + 1, width):
                raise self._unfit(shape)
        if self._stored is not None and f"key.{shape.layers}" in self._stored.tensors:
            raise self._unfit(shape)

    def _unfit(self, shape: CacheShape) -> ModelError:
        return ModelError(
            f"The aqua-kv predictors were not made for a model of {shape.layers} layers with "
            f"{shape.kv_heads} x {shape.head_dim} key channels.",
            f"Make them again: lcbench calibrate {calibration_name(self.bits)} --model MODEL",
        )

    def predictor(self, layer: int) -> Predictor:
        """The maps into a layer >= 1. Raises ModelError where there are none."""
        if self._stored is None:
            raise missing(calibration_name(self.bits))
        try:
            return Predictor(self._stored.tensors[f"key.{layer}"], self._stored.tensors[f"value.{layer}"])
        except KeyError:
            raise missing(calibration_name(self.bits)) from None

    def codec(self, layer: int) -> Codec:
        """Q of a layer."""
        return Higgs(self.bits if layer else FIRST_BITS)

    def observes(self) -> frozenset[Observation]:
        return frozenset({Rotation()})

    def compress(self, record: PrefillRecord) -> KVCache:
        ladder, top = Ladder(), record.shape.layers - 1
        layers = []
        for i in range(record.shape.layers):
            layer = record.layer(i)
            layers.append(
                PredictedLayer(
                    layer.key,
                    layer.value,
                    index=i,
                    top=i == top,
                    codec=self.codec(i),
                    predictor=self.predictor(i) if i else None,
                    rope=layer.observed[Rotation()],
                    sink=self.sink,
                    chunk=self.buffer,
                    ladder=ladder,
                )
            )
        return PredictedCache(layers)


def calibration_name(bits: int) -> str:
    """Under which name the predictors for so many bits are stored."""
    return "aqua-kv" if bits == 2 else f"aqua-kv-{bits}bit"
