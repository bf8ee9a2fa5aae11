"""A layer that keeps every token's key and value as codes, each token by itself, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from lcbench.kv import attention
from lcbench.kv.buffer import Buffer
from lcbench.kv.codecs import Codec
from lcbench.kv.layer import LayerKV, outside_window, text_positions
from lcbench.models.rule import AttentionRule


class TokenCodes(LayerKV):
    """Keys and values of all tokens as what a `Codec` makes of them; decoded as a whole for each forward.

    After a prompt read at once the memory held is exact to the byte; the growing `Buffer`s have slack later on.

    Args:
        codec: of keys and of values.
        own_exact: whether a token's own step sees its own key and value exactly and they are encoded afterwards
            (several new tokens are then taken one by one); else they are encoded first, and prompts too are read
            through the codec.
    """

    def __init__(self, codec: Codec, *, own_exact: bool) -> None:
        self.seen = 0
        self.codec, self.own_exact = codec, own_exact
        self._kept: Tensor | None = None  # text positions of the prompt's tokens, where some were dropped
        self._dropped = 0
        self.width = 0  # channels of a head, once something was appended
        self._buffers: tuple[list[Buffer], list[Buffer]] = ([], [])
        self._pending: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of_prompt(
        cls,
        key: Tensor,
        value: Tensor,
        codec: Codec,
        *,
        own_exact: bool,
        kept: Tensor | None = None,
        seen: int | None = None,
    ) -> TokenCodes:
        """The store of a prompt's keys and values ``[Hk, L, d]``, which are not kept; or of a part of it.

        Args:
            kept: text positions ``[L]`` or ``[Hk, L]`` of the part. seen: tokens of the prompt; default L.
        """
        new = cls(codec, own_exact=own_exact)
        new._store(key, value)
        new.seen = key.shape[1] if seen is None else seen
        new._kept, new._dropped = kept, new.seen - key.shape[1]
        return new

    @property
    def codes(self) -> tuple[list[Tensor], list[Tensor]]:
        """The tensors ``[Hk, n, ...]`` that stand for the keys, and those for the values."""
        keys, values = self._buffers
        return [buffer.used for buffer in keys], [buffer.used for buffer in values]

    def decoded(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values ``[Hk, n, d]`` as queries see them."""
        keys, values = self.codes
        return self.codec.decode(keys, self.width, dtype), self.codec.decode(values, self.width, dtype)

    def append(self, key: Tensor, value: Tensor) -> None:
        assert self._pending is None, "attend must follow append"
        self._pending = (key, value)
        self.seen += key.shape[1]

    def attend(self, query: Tensor, rule: AttentionRule) -> Tensor:
        assert self._pending is not None, "attend must follow append"
        key, value = self._pending
        self._pending = None
        if not self.own_exact:
            self._store(key, value)
            keys, values = self.decoded(query.dtype)
            return attention.causal(query, keys, values, rule)
        return self._one_by_one(query, key, value, rule)

    def _one_by_one(self, query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule) -> Tensor:
        past = [self.decoded(query.dtype)] if self._buffers[0] else []
        q = query.shape[1]
        outputs = []
        for i in range(q):
            new = slice(i, i + 1)
            pieces = [*past, (key[:, new], value[:, new])]
            seen = self.seen - q + i + 1
            hidden = outside_window(partial(self._places, seen, query.device), seen, 1, rule.window)
            out, _ = attention.over_parts(
                query[:, new],
                [k for k, _ in pieces],
                [v for _, v in pieces],
                rule,
                hidden=hidden,
                positions=partial(self._places, seen, query.device),
                seen=seen,
            )
            outputs.append(out)
            past.append(self._store(key[:, new], value[:, new], query.dtype))
        return outputs[0] if q == 1 else torch.cat(outputs, dim=1)

    def _store(self, key: Tensor, value: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """Encode tokens ``[Hk, q, d]`` behind those that are there; returns what is left of them."""
        self.width = int(key.shape[2])
        parts = [self.codec.encode(key), self.codec.encode(value)]
        if not self._buffers[0]:
            self._buffers = ([Buffer(p) for p in parts[0]], [Buffer(p) for p in parts[1]])
        else:
            for buffers, new in zip(self._buffers, parts, strict=True):
                for buffer, rows in zip(buffers, new, strict=True):
                    buffer.append(rows)
        keys, values = (self.codec.decode(p, self.width, dtype) for p in parts)
        return keys, values

    def _places(self, seen: int, device: torch.device) -> Tensor:
        return text_positions(self._kept, seen - self._dropped, seen, device)

    def positions(self) -> Tensor:
        device = self._buffers[0][0].used.device if self._buffers[0] else torch.device("cpu")
        return self._places(self.seen, device)

    def restored(self) -> list[tuple[Tensor, Tensor]]:
        """See `kv.witness.Restores`; fp32."""
        return list(zip(*self.decoded(torch.float32), strict=True))

    def tensors(self) -> Iterator[Tensor]:
        for codes in self.codes:
            yield from codes

    def fork(self) -> TokenCodes:
        assert self._pending is None, "attend must follow append"
        keys, values = self._buffers
        return self._with([b.fork() for b in keys], [b.fork() for b in values])

    def compact(self) -> TokenCodes:
        """A copy in memory of its own, exact to the byte."""
        assert self._pending is None, "attend must follow append"
        keys, values = self._buffers
        return self._with([Buffer(b.used.clone()) for b in keys], [Buffer(b.used.clone()) for b in values])

    def _with(self, keys: list[Buffer], values: list[Buffer]) -> TokenCodes:
        new = TokenCodes(self.codec, own_exact=self.own_exact)
        new.seen, new.width, new._buffers = self.seen, self.width, (keys, values)
        new._kept, new._dropped = self._kept, self._dropped
        return new
