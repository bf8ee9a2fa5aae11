"""FlexGen's compressed cache: 4 bits, groups of channels, everything but the current token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lcbench.config.options import param
from lcbench.errors import BadValue
from lcbench.kv.cache import CacheShape
from lcbench.kv.codecs import InverseScaled
from lcbench.kv.layer import LayerKV
from lcbench.kv.record import LayerRecord
from lcbench.kv.token_store import TokenCodes
from lcbench.methods.base import CacheTransform, Traits
from lcbench.methods.registry import method


@method("flexgen", paper="arXiv:2303.06865", traits=Traits(family="quantize"))
@dataclass(frozen=True)
class FlexGen(CacheTransform):
    """4-bit group-wise quantization of keys and values alike (arXiv:2303.06865, section 5; rules as in
    FMInference/FlexLLMGen flexllmgen/compression.py).

    The prompt is read with exact attention and stored compressed afterwards. `group_size` consecutive channels of one
    token and head share a minimum m and the inverse of a scale, ``15 / (M - m)``, both in fp16; two codes share a
    byte. While decoding, the whole cache is decompressed at each step; the current token is seen exactly in its own
    step and compressed when it is stored. There is no window of exact recent tokens. Where G does not divide the head
    dimension the last group is filled up with zeros, as in the authors' code.

    One layer holds ``2 Hk ceil(d/G) (G/2 + 4)`` bytes a token: 4.5 bits an element at G = 64, 3.56 times less than
    fp16. Codes are computed in fp32 against the stored fp16 numbers; the authors' fp16 arithmetic can differ by one
    code where a value lies between two.

    `flexgen-longctx` is the variant of a published comparison, which reads the prompt through the quantizer.
    """

    follows_distances: ClassVar[bool] = True
    proof: ClassVar[str] = (
        "Teacher-forced logits of tiny Llama, Mistral (sliding window) and Qwen2 models over 64 tokens against a "
        "reference written from the formulas with Python loops; the same reference without the exact current token is "
        "told apart. Stored bytes against the slow quantizer, nibble by nibble, in fp32, fp16 and bf16; error bound, "
        "constant and extreme groups by property tests; a second pass through the quantizer changes nothing beyond an "
        "fp16 ulp; bytes equal the formula, in elements and in memory."
    )

    takes_subset: ClassVar[bool] = True

    group_size: int = param(64, "channels of a token and head that share a scale and a minimum (G); even", minimum=2)

    def __post_init__(self) -> None:
        if self.group_size < 2 or self.group_size % 2:
            raise BadValue(
                f"flexgen@group_size={self.group_size} cannot be stored with two codes a byte.", "Use an even number."
            )

    def layer(self, record: LayerRecord, shape: CacheShape) -> LayerKV:
        codec = InverseScaled(self.group_size)
        return TokenCodes.of_prompt(record.key, record.value, codec, own_exact=True, kept=record.kept, seen=record.seen)
