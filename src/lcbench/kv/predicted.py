"""Keys and values stored as what the layer below does not predict (AQUA-KV, arXiv:2501.19392).

A layer can only be restored after the one below it. During a forward pass, which runs the layers in order, each hands
what it restored to the next one through the `Ladder` that all layers of a cache share; between passes it is empty.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from lcbench.kv import attention
from lcbench.kv.buffer import Buffer
from lcbench.kv.cache import KVCache
from lcbench.kv.codecs import Codec
from lcbench.kv.layer import LayerKV, outside_window
from lcbench.models.rope import Rope
from lcbench.models.rule import AttentionRule

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Predictor:
    """Affine maps from the layer below to this one; the last row of each is the bias. D = Hk d.

    Attributes:
        key: ``[D + 1, D]``, from the keys below. value: ``[2 D + 1, D]``, from this layer's keys and the values below.
    """

    key: Tensor
    value: Tensor

    def keys(self, below: Pair) -> Tensor:
        """Predicted keys before RoPE, fp32 ``[n, D]``."""
        return affine(below[0], self.key)

    def values(self, keys: Tensor, below: Pair) -> Tensor:
        """Predicted values, fp32 ``[n, D]``, from the restored keys of this layer."""
        return affine(torch.cat([keys, below[1]], dim=-1), self.value)


def affine(x: Tensor, weights: Tensor) -> Tensor:
    """``x [n, k]`` through a map ``[k + 1, D]`` whose last row is the bias; fp32."""
    weights = weights.float()
    return torch.addmm(weights[-1], x, weights[:-1])


class Ladder:
    """What the layer that ran last restored: keys before RoPE and values, fp32 ``[n, D]`` each."""

    def __init__(self) -> None:
        self.layer = -1
        self.restored: Pair | None = None

    def below(self, layer: int) -> Pair | None:
        """What layer ``layer - 1`` restored; None for the lowest layer."""
        if layer == 0:
            return None
        assert self.layer == layer - 1, "layers run in order"
        return self.restored

    def hand_up(self, layer: int, restored: Pair | None) -> None:
        self.layer, self.restored = layer, restored


class PredictedLayer(LayerKV):
    """First tokens exactly, then codes of the difference from the prediction, then new tokens exactly.

    Once there are `chunk` exact new tokens all of them are encoded together, at the end of the step that brings the
    last one; several tokens that come together are taken one by one.

    Args:
        key, value: ``[Hk, L, d]`` of the prompt, keys after RoPE; not kept.
        index: number of the layer. top: whether it is the highest.
        codec: of vectors ``[n, D]``. predictor: None for no prediction.
        rope: of the layer, None where it does not rotate.
        sink: first tokens of the text that stay exact. chunk: see above.
        ladder: shared by the layers of a cache, which are made from the lowest up.
    """

    def __init__(
        self,
        key: Tensor,
        value: Tensor,
        *,
        index: int,
        top: bool,
        codec: Codec,
        predictor: Predictor | None,
        rope: Rope | None,
        sink: int,
        chunk: int,
        ladder: Ladder,
    ) -> None:
        self.index, self.top, self.codec, self.predictor, self.rope = index, top, codec, predictor, rope
        self.sink, self.chunk, self.ladder = sink, chunk, ladder
        self.seen = key.shape[1]
        self._shape = (key.shape[0], key.shape[2])
        self._first = (Buffer(key[:, :sink].clone()), Buffer(value[:, :sink].clone()))
        self._codes: tuple[list[Buffer], list[Buffer]] = ([], [])
        self._waiting = (Buffer(key[:, sink:].clone()), Buffer(value[:, sink:].clone()))
        self._pending: Pair | None = None
        self._hand_up(self._settled(self._empty()))

    @property
    def encoded(self) -> int:
        """Tokens that are stored as codes."""
        return len(self._codes[0][0]) if self._codes[0] else 0

    def append(self, key: Tensor, value: Tensor) -> None:
        assert self._pending is None, "attend must follow append"
        self._pending = (key, value)
        self.seen += key.shape[1]

    def attend(self, query: Tensor, rule: AttentionRule) -> Tensor:
        assert self._pending is not None, "attend must follow append"
        key, value = self._pending
        self._pending = None
        restored = self._restored()
        seen = self._shown(restored, query.dtype)
        q = query.shape[1]
        outputs = []
        for i in range(q):  # one by one: what a token's step encodes, the next token sees restored
            new = slice(i, i + 1)
            exact = self._first if len(self._first[0]) < self.sink else self._waiting
            for buffer, rows in zip(exact, (key[:, new], value[:, new]), strict=True):
                buffer.append(rows)
            taken = self.seen - q + i + 1
            hidden = outside_window(partial(torch.arange, taken, device=query.device), taken, 1, rule.window)
            keys, values = ([a.used, b, c.used] for a, b, c in zip(self._first, seen, self._waiting, strict=True))
            out, _ = attention.over_parts(query[:, new], keys, values, rule, hidden=hidden)
            outputs.append(out)
            if len(self._waiting[0]) >= self.chunk:
                restored = self._settled(restored)
                seen = self._shown(restored, query.dtype)
        self._hand_up(restored)
        return outputs[0] if q == 1 else torch.cat(outputs, dim=1)

    def _settled(self, restored: Pair) -> Pair:
        """Encode the waiting tokens if there are enough of them; returns what is restored of all encoded ones."""
        count = len(self._waiting[0])
        if count < self.chunk:
            return restored
        start = self.encoded
        rows = slice(start, start + count)
        below = self.ladder.below(self.index)
        if below is not None:
            below = (below[0][rows], below[1][rows])
        key, value = (buffer.drop(count) for buffer in self._waiting)
        if self.rope is not None:
            key = self.rope.undo(key, self._positions_of(rows))
        key, value = self._joined_heads(key), self._joined_heads(value)
        keys = self._encode(0, key, None if self.predictor is None or below is None else self.predictor.keys(below))
        predicted = None if self.predictor is None or below is None else self.predictor.values(keys, below)
        values = self._encode(1, value, predicted)
        self._waiting = (Buffer(self._empty_waiting()), Buffer(self._empty_waiting()))
        return torch.cat([restored[0], keys]), torch.cat([restored[1], values])

    def _encode(self, which: int, exact: Tensor, predicted: Tensor | None) -> Tensor:
        """Store vectors ``[n, D]`` behind those that are there; returns what is left of them."""
        parts = self.codec.encode(exact if predicted is None else exact - predicted)
        buffers = self._codes[which]
        if not buffers:
            buffers.extend(Buffer(part[None]) for part in parts)
        else:
            for buffer, part in zip(buffers, parts, strict=True):
                buffer.append(part[None])
        kept = self.codec.decode(parts, exact.shape[-1], torch.float32)
        return kept if predicted is None else kept + predicted

    def _restored(self) -> Pair:
        """Keys before RoPE and values of all encoded tokens, fp32 ``[n, D]``."""
        below, n = self.ladder.below(self.index), self.encoded
        if n == 0:
            return self._empty()
        width = self._shape[0] * self._shape[1]
        keys, values = (
            self.codec.decode([buffer.used[0] for buffer in buffers], width, torch.float32) for buffers in self._codes
        )
        if self.predictor is not None and below is not None:
            below = (below[0][:n], below[1][:n])
            keys = keys + self.predictor.keys(below)
            values = values + self.predictor.values(keys, below)
        return keys, values

    def _shown(self, restored: Pair, dtype: torch.dtype) -> Pair:
        """Restored vectors as attention sees them: ``[Hk, n, d]``, keys rotated to their positions."""
        keys, values = (self._heads(x) for x in restored)
        if self.rope is not None:
            keys = self.rope.apply(keys, self._positions_of(slice(0, keys.shape[1])))
        return keys.to(dtype), values.to(dtype)

    def _hand_up(self, restored: Pair) -> None:
        self.ladder.hand_up(self.index, None if self.top else restored)

    def _positions_of(self, rows: slice) -> Tensor:
        return torch.arange(self.sink + rows.start, self.sink + rows.stop, device=self._device)

    def _heads(self, x: Tensor) -> Tensor:
        """``[n, D]`` as ``[Hk, n, d]``."""
        return x.reshape(x.shape[0], *self._shape).transpose(0, 1)

    def _joined_heads(self, x: Tensor) -> Tensor:
        """``[Hk, n, d]`` as fp32 ``[n, D]``."""
        return x.float().transpose(0, 1).flatten(1)

    def _empty(self) -> Pair:
        empty = torch.zeros(0, self._shape[0] * self._shape[1], device=self._device)
        return empty, empty

    def _empty_waiting(self) -> Tensor:
        return self._first[0].used[:, :0].clone()

    def positions(self) -> Tensor:
        return torch.arange(self.seen, device=self._device)

    @property
    def _device(self) -> torch.device:
        return self._first[0].used.device

    def restored(self) -> list[tuple[Tensor, Tensor]]:
        """See `kv.witness.Restores`; fp32. Hands up, as a step does."""
        vectors = self._restored()
        self._hand_up(vectors)
        shown = self._shown(vectors, torch.float32)
        keys, values = (
            torch.cat([first.used.float(), coded, waiting.used.float()], dim=1)
            for first, coded, waiting in zip(self._first, shown, self._waiting, strict=True)
        )
        return list(zip(keys, values, strict=True))

    def tensors(self) -> Iterator[Tensor]:
        for buffers in (self._first, *self._codes, self._waiting):
            yield from (buffer.used for buffer in buffers)
        if self.predictor is not None:
            yield from (self.predictor.key, self.predictor.value)
        if self.rope is not None:
            yield self.rope.frequencies

    def fork(self) -> PredictedLayer:
        """A copy with a ladder of its own; `PredictedCache.fork` puts the layers of a cache on one."""
        return self.on(Ladder())

    def on(self, ladder: Ladder) -> PredictedLayer:
        """An independent copy that hands up through this ladder."""
        assert self._pending is None, "attend must follow append"
        new = PredictedLayer.__new__(PredictedLayer)
        new.__dict__.update(self.__dict__)
        new.ladder = ladder
        new._codes = ([b.fork() for b in self._codes[0]], [b.fork() for b in self._codes[1]])
        new._first = (self._first[0].fork(), self._first[1].fork())
        new._waiting = (self._waiting[0].fork(), self._waiting[1].fork())
        return new


class PredictedCache(KVCache):
    """A cache of `PredictedLayer`s on one ladder."""

    def __init__(self, layers: Sequence[PredictedLayer]) -> None:
        super().__init__(layers)

    def fork(self) -> PredictedCache:
        ladder = Ladder()
        return PredictedCache([layer.on(ladder) for layer in self.layers if isinstance(layer, PredictedLayer)])
