"""FlexGen's quantization as a published benchmark ran it: the prompt is read through the quantizer, too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lcbench.config.options import param
from lcbench.errors import BadValue, ModelError
from lcbench.kv.cache import CacheShape, KVCache
from lcbench.kv.codecs import Grouped
from lcbench.kv.packing import BITS, WORD, group_that_fits
from lcbench.kv.record import PrefillRecord
from lcbench.kv.token_store import TokenCodes
from lcbench.methods.base import AttentionMethod, Traits
from lcbench.methods.registry import method


@method("flexgen-longctx", paper="arXiv:2303.06865", traits=Traits(family="quantize", prefill="own"))
@dataclass(frozen=True)
class FlexGenLongctx(AttentionMethod):
    """FlexGen (arXiv:2303.06865) the way "KV Cache Compression, But What Must We Give in Return?" measured it
    (arXiv:2407.01527; rules as in henryzhongsc/longctx_bench pipeline/flexgen/models/utils_quant.py and
    llama_simquant.py). To reproduce that paper's rows; `flexgen` is the method as its authors have it.

    Keys and values of every token are quantized before any attention sees them: `group_size` consecutive channels of
    a token and head share a scale and a minimum, and prompt and new tokens alike, the current one included, attend to
    the restored values. The first generated token therefore differs from the full cache already, and deeper layers
    store what perturbed hidden states give; the prefill cannot be shared.

    That code keeps the fp16 cache and quantizes the whole of it again at each forward pass. A token's codes depend on
    nothing but that token, so storing the codes gives the same attention; here they are what is stored, and the
    memory is really freed.

    One layer holds ``2 Hk d (bits/8 + 4/G)`` bytes a token: 5 bits an element in the paper's setting (4 bits, G = 32),
    3.2 times less than fp16. Codes are computed in fp32 against scales and minima in fp16.
    """

    proof: ClassVar[str] = (
        "Logits of the last prompt token and of 64 forced ones of tiny Llama, Mistral (sliding window) and Qwen2 "
        "models against a reference that quantizes all keys and values with Python loops before attention; prompts in "
        "chunks give the same; quantizing the exact cache again at every step, as the original does, gives the same "
        "restored values bit for bit; bytes equal the formula, in elements and in memory."
    )

    bits: int = param(4, "bits of a key or value", choices=BITS)
    group_size: int = param(32, "channels of a token and head that share a scale and a minimum (G)", minimum=4)

    def __post_init__(self) -> None:
        bits, group = self.bits, self.group_size
        if bits not in BITS:
            raise BadValue(f"flexgen-longctx@bits={bits} is not one of 2, 4, 8.", "Choose 2, 4 or 8.")
        if group < 1 or group * bits % WORD:
            raise BadValue(
                f"flexgen-longctx@group_size={group} does not fill whole 32-bit words with {bits}-bit codes.",
                f"Use a multiple of {WORD // bits}.",
            )

    def check(self, shape: CacheShape) -> None:
        if shape.head_dim % self.group_size:
            fits = group_that_fits(shape.head_dim, self.bits, self.group_size)
            raise ModelError(
                f"flexgen-longctx@group_size={self.group_size} does not divide this model's head dimension "
                f"{shape.head_dim}.",
                f"Use flexgen-longctx@bits={fits[0]},group_size={fits[1]}."
                if fits
                else "Use a method that quantizes no groups of channels: lcbench list methods.",
            )

    def prefill_cache(self, shape: CacheShape, prompt_tokens: int) -> KVCache:
        codec = Grouped(self.bits, self.group_size)
        return KVCache([TokenCodes(codec, own_exact=False) for _ in range(shape.layers)])

    def compress(self, record: PrefillRecord) -> KVCache:
        stores = [store for store in record.cache.layers if isinstance(store, TokenCodes)]
        return KVCache([store.compact() for store in stores])
