"""MInference: each head reads the prompt through one of three sparse patterns; the cache stays whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from lcbench.config.options import param
from lcbench.errors import ModelError, UsageError
from lcbench.kv.attention import over_parts
from lcbench.kv.cache import CacheShape, KVCache
from lcbench.kv.layer import DenseLayer
from lcbench.kv.record import PrefillRecord
from lcbench.kv.weights import ELEMENTS, weight_blocks
from lcbench.kv.whole import WholeLayer
from lcbench.methods.base import AttentionMethod, Method, Traits
from lcbench.methods.calibration import Calibration, bound, load_json, missing
from lcbench.methods.registry import method
from lcbench.models.rule import AttentionRule

if TYPE_CHECKING:
    from lcbench.models.info import ModelInfo

Kind = Literal["a-shape", "vertical-slash", "block-sparse"]
NAME = "minference"


class Pattern(NamedTuple):
    """What a head looks at: first tokens and window, columns and diagonals, or blocks (and 0)."""

    kind: Kind
    first: int
    second: int


@method(NAME, paper="arXiv:2407.02490", traits=Traits(family="memory", prefill="own", calibrate=NAME))
@dataclass(frozen=True)
class MInference(AttentionMethod):
    """Dynamic sparse attention while the prompt is read (arXiv:2407.02490, section 3; rules as in microsoft/MInference
    minference/modules/minference_forward.py).

    Each query head has a pattern, the same for every prompt, and finds in each prompt what the pattern selects:

    * a-shape: the first `sinks` tokens and the newest `local` ones.
    * vertical-slash: the attention of the last `last_q` queries is summed over columns and over diagonals; a query
      sees the `vertical` best columns and the `slash` best diagonals (distances). The first `first` columns and the
      `recent` nearest diagonals rank before all others.
    * block-sparse: queries and keys are averaged over blocks of `block_size` tokens; a block of queries sees the
      `blocks` blocks of keys, its own or older, with the largest dot product of the means. In a layer with a sliding
      window it sees its own block as well, so that no query sees nothing.

    Ties keep the older column or block, and the nearer diagonal. `lcbench calibrate minference` finds pattern and
    sizes of each head: of several candidates the one that keeps most attention on a text (`--from` takes a published
    file of the authors over, whose block-sparse heads see 100 blocks as in their code). Other values of `pattern` give
    every head one pattern, with the sizes above, and need no calibration.

    Only meaning is reproduced: what a pattern hides is masked in dense attention, exactly, whereas the authors'
    kernels widen diagonals to blocks of 64 keys; nothing is faster for it. The prompt is read in one piece. Decoding
    is dense, and one layer holds the full cache, ``2 Hk d e T`` bytes.
    """

    proof: ClassVar[str] = (
        "Teacher-forced logits of tiny Llama, Mistral (sliding window) and Qwen2 models, of the prompt and of 64 "
        "tokens after it, against attention written query by query in fp64 with the three patterns in Python loops, "
        "each alone and mixed over heads as a calibration gives them; sizes that cover everything are the full cache; "
        "a published pattern file is taken over; `calibrate` finds planted patterns."
    )

    pattern: Literal["calibrated", "a-shape", "vertical-slash", "block-sparse"] = param(
        "calibrated", "of every head: its own, or one for all"
    )
    sinks: int = param(100, "a-shape: first tokens", minimum=0)
    local: int = param(800, "a-shape: newest tokens", minimum=1)
    vertical: int = param(1000, "vertical-slash: columns", minimum=1)
    slash: int = param(6096, "vertical-slash: diagonals", minimum=1)
    blocks: int = param(100, "block-sparse: blocks of keys that a block of queries sees", minimum=1)
    block_size: int = param(64, "block-sparse: tokens of a block", minimum=1)
    last_q: int = param(64, "vertical-slash: last queries whose attention is summed", minimum=1)
    first: int = param(30, "vertical-slash: first columns that rank before others", minimum=0)
    recent: int = param(100, "vertical-slash: nearest diagonals that rank before others", minimum=1)

    @property
    def calibration(self) -> str:
        return "" if self._table is None else self._table.sha256

    @property
    def _table(self) -> Calibration | None:
        return getattr(self, "_patterns", None)

    def bind(self, info: ModelInfo, home: Path) -> Method:
        return bound(self, _patterns=load_json(NAME, info, home)) if self.pattern == "calibrated" else self

    def check(self, shape: CacheShape) -> None:
        self.patterns(shape)

    def patterns(self, shape: CacheShape) -> list[list[Pattern]]:
        """The pattern of each query head of each layer. Raises ModelError: there are none, or of another model."""
        sizes = {
            "a-shape": (self.sinks, self.local),
            "vertical-slash": (self.vertical, self.slash),
            "block-sparse": (self.blocks, 0),
        }
        if self.pattern != "calibrated":
            return [[Pattern(self.pattern, *sizes[self.pattern])] * shape.heads] * shape.layers
        if self._table is None:
            raise missing(NAME)
        found = [[Pattern(*entry[:3]) for entry in layer] for layer in self._table.data["patterns"]]
        if len(found) != shape.layers or any(len(layer) != shape.heads for layer in found):
            raise ModelError(
                f"The minference patterns are not those of a model of {shape.layers} layers of {shape.heads} heads.",
                "Make patterns for this model: lcbench calibrate minference --model MODEL",
            )
        return found

    def prefill_cache(self, shape: CacheShape, prompt_tokens: int) -> KVCache:
        return KVCache([SparsePromptLayer(self, layer, prompt_tokens) for layer in self.patterns(shape)])

    def compress(self, record: PrefillRecord) -> KVCache:
        return KVCache([DenseLayer(*layer.rows([(0, layer.seen)])) for layer in _whole(record.cache)])


def _whole(cache: KVCache) -> list[WholeLayer]:
    return [layer for layer in cache.layers if isinstance(layer, WholeLayer)]


class SparsePromptLayer(WholeLayer):
    """Reads a prompt of ``prompt_tokens`` through the patterns of its heads."""

    def __init__(self, rules: MInference, patterns: Sequence[Pattern], prompt_tokens: int) -> None:
        super().__init__(expected=prompt_tokens)
        self.rules, self.patterns = rules, list(patterns)

    def _attend(self, query: Tensor, rule: AttentionRule) -> Tensor:
        if query.shape[1] != self.expected or self.seen != self.expected:
            raise UsageError(
                "minference looks at the last tokens of a prompt before its first are read, and a prompt in pieces "
                "does not have them.",
                "Leave --prefill-chunk out.",
            )
        keys, values = self.parts()
        key, value = keys[0], values[0]
        looks = Looks(self.rules, self.patterns, query, key, rule)
        heads, total = query.shape[:2]
        step = max(1, ELEMENTS // (heads * total))
        outputs = []
        for start in range(0, total, step):
            stop = min(start + step, total)
            seen = looks.rows(start, stop)
            outputs.append(over_parts(query[:, start:stop], [key[:, :stop]], [value[:, :stop]], rule, hidden=~seen)[0])
        return torch.cat(outputs, dim=1)


class Looks:
    """Which keys of a prompt each query sees, found from its rotated queries ``[H, L, d]`` and keys ``[Hk, L, d]``."""

    def __init__(
        self, rules: MInference, patterns: Sequence[Pattern], query: Tensor, key: Tensor, rule: AttentionRule
    ) -> None:
        heads, self.total = query.shape[:2]
        self.size, self.window = rules.block_size, rule.window
        self.columns = torch.zeros(heads, self.total, dtype=torch.bool, device=query.device)
        self.distances = torch.zeros_like(self.columns)
        self.blocks: dict[int, Tensor] = {}  # query head to bool [blocks of queries, blocks of keys]
        if any(pattern.kind == "vertical-slash" for pattern in patterns):
            down, along = line_sums(query[:, -rules.last_q :], key, rule)
            down[:, : rules.first] = torch.inf
            along[:, : rules.recent] = torch.inf
        for head, (kind, first, second) in enumerate(patterns):
            if kind == "a-shape":
                self.columns[head, :first] = True
                self.distances[head, :second] = True
            elif kind == "vertical-slash":
                self.columns[head, best(down[head], first)] = True
                self.distances[head, best(along[head], second)] = True
            else:
                owner = head // (heads // key.shape[0])
                self.blocks[head] = self._best_blocks(query[head], key[owner], first)

    def _best_blocks(self, query: Tensor, key: Tensor, count: int) -> Tensor:
        """Blocks of keys that each block of queries sees, bool ``[b, b]``."""
        products = self._means(query) @ self._means(key).t()
        place = torch.arange(len(products), device=key.device)
        later = place[None] > place[:, None]
        order = torch.sort(products.masked_fill(later, -torch.inf), dim=-1, descending=True, stable=True).indices
        chosen = torch.zeros_like(later).scatter_(1, order[:, :count], True)
        if self.window is not None:
            chosen |= torch.eye(len(chosen), dtype=torch.bool, device=key.device)
        return chosen & ~later

    def _means(self, x: Tensor) -> Tensor:
        """Mean of each block of ``x [L, d]``, the last one possibly shorter, fp32 ``[b, d]``."""
        return torch.stack([block.float().mean(dim=0) for block in torch.split(x, self.size)])

    def rows(self, start: int, stop: int) -> Tensor:
        """What the queries ``start`` to ``stop`` see of the tokens before ``stop``: bool ``[H, q, stop]``."""
        device = self.columns.device
        row, col = torch.arange(start, stop, device=device)[:, None], torch.arange(stop, device=device)[None]
        age = row - col
        seen = self.columns[:, None, :stop] | self.distances[:, age.clamp(min=0)]
        for head, blocks in self.blocks.items():
            seen[head] = blocks[row // self.size, col // self.size]
        seen &= age >= 0
        if self.window is not None:
            seen &= age < self.window
        return seen


def line_sums(query: Tensor, key: Tensor, rule: AttentionRule) -> tuple[Tensor, Tensor]:
    """Attention of the last q queries summed over columns and over diagonals.

    Args:
        query: ``[H, q, d]``, at the last positions of the prompt. key: ``[Hk, L, d]``.

    Returns:
        fp32 ``[H, L]`` by position of the key, and ``[H, L]`` by its distance from the query.
    """
    (heads, q, _), total = query.shape, key.shape[1]
    down, along = torch.zeros(heads, total, device=key.device), torch.zeros(heads, total, device=key.device)
    for block in weight_blocks(query, key, rule):
        col = torch.arange(block.cols.start, block.cols.stop, device=key.device)
        row = torch.arange(total - q + block.rows.start, total - q + block.rows.stop, device=key.device)
        down[block.heads, block.cols] += block.weights.sum(dim=1)
        age = (row[:, None] - col[None]).clamp(min=0)  # what is in the future has weight 0
        index = age.expand(block.weights.shape).flatten(1)
        along[block.heads] = along[block.heads].scatter_add(1, index, block.weights.flatten(1))
    return down, along


def best(scores: Tensor, count: int) -> Tensor:
    """Places of the ``count`` highest of ``scores [n]``; ties keep the lower place."""
    return torch.sort(scores, descending=True, stable=True).indices[:count]
