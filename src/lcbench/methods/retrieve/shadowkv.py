"""ShadowKV: keys as a low-rank product, values on the host, chunks of both rebuilt when a query asks for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from lcbench.config.options import param
from lcbench.errors import BadValue
from lcbench.kv import attention
from lcbench.kv.cache import CacheShape, KVCache
from lcbench.kv.layer import LayerKV, Tail
from lcbench.kv.lowrank import LowRank, low_rank
from lcbench.kv.observe import Observation
from lcbench.kv.record import LayerRecord, PrefillRecord
from lcbench.kv.rope import LayerRope, rotated, unrotated
from lcbench.kv.witness import tell_fetched
from lcbench.methods.base import Method, Traits, top_positions
from lcbench.methods.registry import method
from lcbench.models.rope import observed_rope
from lcbench.models.rule import AttentionRule


@method("shadowkv", paper="arXiv:2410.21465", traits=Traits(family="retrieve"))
@dataclass(frozen=True)
class ShadowKV(Method):
    """Low-rank keys and offloaded values (arXiv:2410.21465, algorithms 1 and 2; rules as in bytedance/ShadowKV
    models/kv_cache.py, the accuracy class).

    The prompt is read with dense attention. Then, in each layer, the keys of all KV heads before RoPE, ``[L, Hk d]``,
    become ``U S V`` of rank `rank`, held as U and S V; all values go to the host's memory, where there is a GPU. The
    prompt is cut into chunks of `chunk_size` tokens; the last `local_chunks` of them and the rest stay as they are.
    The others are known by their landmark, the mean of their keys after RoPE. Of each KV head the `outliers` chunks
    whose least cosine between landmark and key is lowest stay exact and lose their landmark.

    A generated token takes ``softmax(q . landmark / sqrt(d))`` per query head and the maximum over the heads of a KV
    head, and attends to the ``budget / chunk_size`` best chunks: their keys are rebuilt from U and S V and rotated to
    their positions, their values fetched; besides to the local tokens, the outliers and everything generated, all
    exact. Ties keep the older chunk. A chunk beyond a layer's own sliding window is never chosen.

    Prompts of at most `min_prompt` tokens are left as they are: the authors' code has no path for them. So are those
    with no more than `budget` tokens or too few chunks to choose from; `applies` tells.

    With n chunks one layer holds ``e (L rank + Hk rank d) + Hk (n - outliers) (d e + 4) + 2 e Hk d (local + outliers
    chunk_size)`` bytes, ``2 e Hk d`` a new token, and on the host ``e Hk d L``. Resident is all but the last, and the
    chosen chunks, ``2 e Hk d budget``.
    """

    turns: ClassVar[bool] = True
    proof: ClassVar[str] = (
        "Teacher-forced logits of tiny Llama, Mistral (sliding window) and Qwen2 models over 64 tokens against the "
        "plain model with its attention written out in fp64, chunks chosen and keys rebuilt by a second computation "
        "from torch's own SVD. At full rank with a budget for all chunks the full cache; the "
        "error of the rebuilt keys is the energy of the singular values left out, and clearly larger after RoPE; "
        "chosen, outlying and local tokens are disjoint and together the prompt; bytes equal the formula. On a GPU: "
        "values in pinned host memory, the same logits."
    )

    budget: int = param(2048, "tokens whose keys are rebuilt in a step", minimum=1)
    rank: int = param(160, "rank of the keys of all KV heads together", minimum=1)
    chunk_size: int = param(8, "tokens of a chunk", minimum=1)
    outliers: int = param(48, "chunks of each KV head that stay exact", minimum=0)
    local_chunks: int = param(4, "last chunks of the prompt, which stay exact", minimum=0)
    min_prompt: int = param(4096, "prompts of at most this many tokens are left as they are", minimum=0)

    def __post_init__(self) -> None:
        if self.budget % self.chunk_size:
            raise BadValue(
                f"shadowkv@budget={self.budget} is not a multiple of chunk_size={self.chunk_size}.",
                f"Use {self.budget // self.chunk_size * self.chunk_size or self.chunk_size}.",
            )

    def chunks(self, prompt_tokens: int) -> int:
        """Chunks of a prompt, the local ones left out."""
        return prompt_tokens // self.chunk_size - self.local_chunks

    def applies(self, prompt_tokens: int) -> bool:
        """Whether a prompt of this length is compressed, or left to the full cache."""
        choosable = self.chunks(prompt_tokens) - self.outliers
        return prompt_tokens > max(self.min_prompt, self.budget) and choosable >= self.budget // self.chunk_size

    def observes(self) -> frozenset[Observation]:
        return frozenset({LayerRope()})

    def compress(self, record: PrefillRecord) -> KVCache:
        if not self.applies(record.length):
            return record.cache.fork()
        return KVCache([self.layer(record.layer(i), record.shape) for i in range(record.shape.layers)])

    def layer(self, record: LayerRecord, shape: CacheShape) -> LayerKV:
        """The store of one layer of a prompt that `applies`."""
        positions = torch.arange(record.length, device=record.key.device)
        plain = unrotated(record.observed[LayerRope()], record.key, positions)
        joined = plain.transpose(0, 1).flatten(1)
        return ShadowLayer(record.key, record.value, low_rank(joined, self.rank, record.key.dtype), self)


class ShadowLayer(LayerKV):
    """What is left of a prompt, and the tokens after it.

    Args:
        key, value: ``[Hk, L, d]`` of the prompt, after RoPE; copied.
        shadow: its keys before RoPE, ``[L, Hk d]``.
        rules: the method.
    """

    def __init__(self, key: Tensor, value: Tensor, shadow: LowRank, rules: ShadowKV) -> None:
        self.seen = self.prompt = key.shape[1]
        self.rules, self.shadow = rules, shadow
        size, count = rules.chunk_size, rules.chunks(self.prompt)
        self.local_start = count * size
        self._local = key[:, self.local_start :].clone(), value[:, self.local_start :].clone()
        landmarks, outlying = _landmarks(key[:, : self.local_start], size, rules.outliers)
        rest = torch.ones(landmarks.shape[:2], dtype=torch.bool, device=key.device).scatter_(1, outlying, False)
        self.ids = rest.nonzero()[:, 1].view(key.shape[0], -1).int()  # chunk of each landmark
        self.landmarks = landmarks[rest].view(key.shape[0], -1, key.shape[2])
        self.outlying = self.tokens(outlying)
        self._outliers = _gather(key, self.outlying), _gather(value, self.outlying)
        self.values = _on_host(value)
        self.tail = Tail.like(key, value)

    def tokens(self, chunks: Tensor) -> Tensor:
        """Positions ``[Hk, n]`` of the tokens of chunks ``[Hk, m]``."""
        size = self.rules.chunk_size
        return (chunks.long()[:, :, None] * size + torch.arange(size, device=chunks.device)).flatten(1)

    def append(self, key: Tensor, value: Tensor) -> None:
        self.tail.append(key, value)
        self.seen += key.shape[1]

    def attend(self, query: Tensor, rule: AttentionRule) -> Tensor:
        q = query.shape[1]
        outputs = []
        for i in range(q):  # one by one: each chooses chunks of its own
            outputs.append(self._one(query[:, i : i + 1], self.seen - q + i + 1, rule))
        return outputs[0] if q == 1 else torch.cat(outputs, dim=1)

    def _one(self, query: Tensor, seen: int, rule: AttentionRule) -> Tensor:
        """Attention of the query at position ``seen - 1``."""
        places = self.tokens(self.chosen(query[:, 0], rule, seen))
        tell_fetched(self, lambda: list(places))
        new = slice(0, seen - self.prompt)
        keys = [self._local[0], self._outliers[0], self.rebuilt(places), self.tail.key[:, new]]
        values = [self._local[1], self._outliers[1], self._fetched(places), self.tail.value[:, new]]
        hidden = None
        if rule.window is not None and seen > rule.window:
            hidden = self._places(places, seen)[:, None] < seen - rule.window
        return attention.over_parts(query, keys, values, rule, hidden=hidden)[0]

    def chosen(self, query: Tensor, rule: AttentionRule, seen: int) -> Tensor:
        """Chunks ``[Hk, budget / chunk_size]`` whose landmarks suit queries ``[H, d]`` best, ascending."""
        kv_heads, _, d = self.landmarks.shape
        rows = query.float().view(kv_heads, -1, d)
        logits = rule.capped(rows @ self.landmarks.float().transpose(1, 2) * rule.scaling)
        if rule.window is not None:
            last = self.ids.long() * self.rules.chunk_size + self.rules.chunk_size - 1
            logits.masked_fill_((last < seen - rule.window)[:, None], torch.finfo(torch.float32).min)
        likely = torch.softmax(logits, dim=-1).amax(dim=1)
        best = top_positions(likely, self.rules.budget // self.rules.chunk_size)
        return self.ids.long().gather(1, best)

    def rebuilt(self, places: Tensor) -> Tensor:
        """Keys ``[Hk, n, d]`` at the positions ``places [Hk, n]``, from the low-rank product, after RoPE."""
        kv_heads = places.shape[0]
        right = self.shadow.right.view(-1, kv_heads, self.landmarks.shape[2]).transpose(0, 1)
        plain = torch.matmul(self.shadow.left[places].float(), right.float())
        return rotated(observed_rope(), plain, places).to(self.landmarks.dtype)

    def _fetched(self, places: Tensor) -> Tensor:
        """Values ``[Hk, n, d]`` from where they lie."""
        rows = _gather(self.values, places.to(self.values.device))
        return rows.to(places.device, non_blocking=True)

    def _places(self, chosen: Tensor, seen: int) -> Tensor:
        """Positions of everything a query sees, in the order of the pieces: ``[Hk, n]``."""
        local, new = (
            torch.arange(a, b, device=chosen.device).expand(chosen.shape[0], -1)
            for a, b in ((self.local_start, self.prompt), (self.prompt, seen))
        )
        return torch.cat([local, self.outlying, chosen, new], dim=1)

    def positions(self) -> Tensor:
        return torch.arange(self.seen, device=self.landmarks.device)

    def _kept(self) -> Iterator[Tensor]:
        """What lies on the accelerator between steps."""
        yield from (self.shadow.left, self.shadow.right, self.landmarks, self.ids)
        yield from (*self._local, *self._outliers, self.tail.key, self.tail.value)

    @property
    def resident_nbytes(self) -> int:
        """Bytes on the accelerator in a step, the rebuilt keys and fetched values included."""
        kv_heads, _, d = self.landmarks.shape
        chosen = 2 * kv_heads * d * self.landmarks.element_size() * self.rules.budget
        return sum(t.numel() * t.element_size() for t in self._kept()) + chosen

    def tensors(self) -> Iterator[Tensor]:
        yield from self._kept()
        yield self.values

    def fork(self) -> ShadowLayer:
        new = ShadowLayer.__new__(ShadowLayer)
        new.__dict__.update(self.__dict__)
        new.tail = self.tail.fork()
        return new


def _landmarks(key: Tensor, size: int, outliers: int) -> tuple[Tensor, Tensor]:
    """Mean of each chunk of keys ``[Hk, n size, d]``: ``[Hk, n, d]``, and the ``[Hk, outliers]`` chunks, ascending,
    with a key least like it."""
    chunked = key.reshape(key.shape[0], key.shape[1] // size, size, key.shape[2]).float()
    means = chunked.mean(dim=2)
    likeness = F.cosine_similarity(means[:, :, None], chunked, dim=-1).amin(dim=-1)
    return means.to(key.dtype), top_positions(-likeness, outliers)


def _gather(rows: Tensor, places: Tensor) -> Tensor:
    return rows.gather(1, places[:, :, None].expand(-1, -1, rows.shape[2]))


def _on_host(value: Tensor) -> Tensor:
    """A copy in the host's memory; pinned, so that the accelerator fetches rows without another copy."""
    if value.device.type == "cpu":
        return value.clone(memory_format=torch.contiguous_format)
    host = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
    host.copy_(value)
    return host
