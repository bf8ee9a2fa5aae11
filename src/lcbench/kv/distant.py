"""A window at true distances, and whatever lies before it at one distance: what InfLLM and EM-LLM attend.

The text is read in runs. Tokens that leave the window become first tokens, then parts of blocks; what a subclass looks
up of the blocks, a query sees with the first tokens and with what is in no block yet. One softmax runs over all.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

from lcbench.kv.rope import moved
from lcbench.kv.runs import Runs
from lcbench.kv.sections import Section, over_sections
from lcbench.kv.whole import WholeLayer
from lcbench.kv.witness import tell_fetched
from lcbench.models.rope import observed_rope
from lcbench.models.rule import AttentionRule


class DistantLayer(WholeLayer):
    """All tokens: the first ones, blocks, and window with remainder follow one another by position.

    Args:
        runs: how the prompt is read. n_local: tokens of the window. repr_topk: keys that stand for a block.
        expected: tokens of the prompt.
        whole_remainder: a query also sees the remainder's keys that are in its window, a second time.

    Attributes:
        first: first tokens that the window has left.
        blocks: ``[H, blocks, d]``, what stands for each block, at angle 0; None while there are none.
        mass: fp32 ``[H, n]``, attention that the tokens after the blocks got so far from the windows they were in.
    """

    def __init__(
        self, runs: Runs, n_local: int, repr_topk: int, *, expected: int, whole_remainder: bool = False
    ) -> None:
        super().__init__(expected=expected)
        self.runs, self.n_local, self.repr_topk, self.whole_remainder = runs, n_local, repr_topk, whole_remainder
        self.first = 0
        self.blocks: Tensor | None = None
        self.mass: Tensor | None = None

    @property
    def block_count(self) -> int:
        return 0 if self.blocks is None else self.blocks.shape[1]

    @property
    @abstractmethod
    def rest(self) -> int:
        """Position of the first token after the blocks."""

    @abstractmethod
    def look_up(self, asked: Tensor, waiting: int) -> list[tuple[int, int]]:
        """First and one past the last token of the blocks that a run sees, ascending.

        Args:
            asked: the run's queries ``[H, q, d]`` at the far angle. waiting: tokens of the remainder it sees.
        """

    @abstractmethod
    def settle(self, seen: int) -> None:
        """Called after each run, ``seen`` tokens so far: put away what the window has left (`leave`, `put_away`)."""

    def _attend(self, query: Tensor, rule: AttentionRule) -> Tensor:
        start = self.seen - query.shape[1]
        outputs = [self._run(query[:, a - start : b - start], a, rule) for a, b in self.runs.cut(start, self.seen)]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)

    def _run(self, query: Tensor, start: int, rule: AttentionRule) -> Tensor:
        """Attention of the queries from position ``start`` on, and what follows from it."""
        stop = start + query.shape[1]
        low = max(0, start - self.n_local + 1)
        rows = torch.arange(start, stop, device=query.device)[:, None]
        age = rows - torch.arange(low, stop, device=query.device)[None]
        hidden = (age < 0) | (age >= min(self.n_local, rule.window or self.n_local))
        sections = [Section(query, *self.rows([(low, stop)]), hidden)]
        far = self._far(query, rows, stop, rule.window)
        if far is not None:
            sections.append(far)
        out, received = over_sections(sections, rule, received=True)
        assert received is not None
        self._credit(received, low, start, stop)
        self.settle(stop)
        return out

    def _far(self, query: Tensor, rows: Tensor, stop: int, window: int | None) -> Section | None:
        """First tokens, blocks and remainder at the one distance, None while there is nothing outside the window.

        Args:
            rows: positions ``[q, 1]`` of the queries, up to ``stop``.
        """
        end = max(self.rest, stop - self.n_local)  # of the remainder that the last query sees
        if end == 0:
            return None
        rope = observed_rope()
        asked = moved(rope, query, rows[:, 0], self.n_local - 1)
        found = self.look_up(asked, end - self.rest)
        tell_fetched(self, lambda: [torch.tensor([p for span in found for p in range(*span)])])
        spans = [(0, self.first), *found, (self.rest, end)]
        positions = torch.cat([torch.arange(a, b, device=query.device) for a, b in spans])
        key, value = self.rows(spans)
        age = rows - positions[None]
        hidden = age < (0 if self.whole_remainder else self.n_local)
        if window is not None:
            hidden |= age >= window
        return Section(asked, moved(rope, key, positions, 0), value, hidden)

    def similarities(self, asked: Tensor) -> Tensor:
        """``sum_h mean(q_h) . r_h`` of each block, fp32 ``[blocks]``, for queries ``[H, q, d]`` at the far angle."""
        assert self.blocks is not None
        return torch.einsum("hd,hbd->b", asked.float().mean(dim=1), self.blocks.float())

    def _credit(self, received: Tensor, low: int, start: int, stop: int) -> None:
        """Add what the window's keys, from position ``low`` on, got from a run."""
        mass = received.new_zeros(received.shape[0], stop - self.rest)
        if self.mass is not None:
            mass[:, : start - self.rest] = self.mass
        since = max(low, self.rest)
        mass[:, since - self.rest :] += received[:, since - low :]
        self.mass = mass

    def leave(self, count: int) -> None:
        """The oldest ``count`` tokens after the first ones become first tokens; only while there is no block."""
        assert self.mass is not None
        self.mass = self.mass[:, count:].clone()
        self.first += count

    def put_away(self, size: int) -> None:
        """The oldest ``size`` tokens after the blocks become one; the caller moves `rest`, after this call."""
        assert self.mass is not None
        vector = self._vector(self.mass[:, :size])
        self.mass = self.mass[:, size:].clone()
        self.blocks = vector if self.blocks is None else torch.cat([self.blocks, vector], dim=1)

    def _vector(self, mass: Tensor) -> Tensor:
        """What stands for a block that begins at `rest`: ``[H, 1, d]``."""
        span = (self.rest, self.rest + mass.shape[1])
        key = moved(observed_rope(), self.rows([span])[0], torch.arange(*span, device=mass.device), 0)
        best = torch.sort(mass, dim=-1, descending=True, stable=True).indices[:, : self.repr_topk]
        heads, kv_heads = mass.shape[0], key.shape[0]
        owner = torch.arange(heads, device=mass.device) // (heads // kv_heads)
        return key[owner[:, None], best].float().mean(dim=1, keepdim=True).to(key.dtype)

    def resident_of(self, looked_up: int) -> int:
        """Bytes that a step reads when it looks up so many tokens of the blocks."""
        tokens = self.first + looked_up + self.seen - self.rest
        return self.token_nbytes(tokens) + sum(t.numel() * t.element_size() for t in self._statistics())

    def _statistics(self) -> Iterator[Tensor]:
        yield from (t for t in (self.blocks, self.mass) if t is not None)

    def tensors(self) -> Iterator[Tensor]:
        yield from super().tensors()
        yield from self._statistics()
