"""Perception Compressor: passages by how well they answer guiding questions, tokens by what the question changes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lcbench.config.options import param
from lcbench.errors import ModelError, SampleError
from lcbench.kv.cache import KVCache
from lcbench.methods import passages
from lcbench.methods.base import Traits
from lcbench.methods.registry import method
from lcbench.methods.rewriting import PromptText
from lcbench.methods.surprisal import (
    LanguageModelTransform,
    Stream,
    complete,
    joined,
    suffix_loss,
    tokens,
    with_offsets,
)
from lcbench.models.early import hidden_states
from lcbench.models.info import LoadedModel

HINT = " We can get the answer to this question in the given documents."
_ASK = "Question: {question}\nThree short questions that help to answer it:\n1."


@method("perception-compressor", paper="arXiv:2409.19272", traits=Traits(family="prompt", prefill="own"))
@dataclass(frozen=True)
class PerceptionCompressor(LanguageModelTransform):
    """Perception Compressor (arXiv:2409.19272; rules as in Twilightaaa/PerceptionCompressor).

    Passages are ranked by ``sum_q c_q nll(q | passage)`` over the question and its guiding questions, where c_q is how
    near q is to the question; the best come first and are kept until the share ``rate`` of all tokens is used up; the
    one that crosses the line stays, and its overshoot is taken out of tokens. In segments of 200 tokens segment i of n
    keeps the share ``1 - overshoot / tokens + k1 (n - 1 - 2 i) / (n - 1)``: a part
    ``tau - k2 (n - 1 - 2 i) / (n - 1)`` of it the tokens with the largest ``nll(t | kept) - nll(t | question, kept)``,
    the rest the least surprising of the others (`reverse`: the most surprising).

    Our choice where the authors use other models: guiding questions (`guides`) are written by the language model itself
    and nearness is the cosine of its mean last hidden states, in place of a large model's questions and a sentence
    encoder. Passages as in `longllmlingua`.
    """

    proof: ClassVar[str] = (
        "Shares by hand: they sum to what is asked, one segment does not divide by zero; the kept tokens of a segment "
        "against a second computation on losses of the plain transformers model; nothing to remove keeps everything."
    )
    asks: ClassVar[bool] = True

    rate: float = param(0.25, "share of the context's tokens that stays", minimum=0.01, maximum=1)
    model: str = param("demo", "language model that reads the context: as --model")
    guides: int = param(3, "guiding questions beside the question itself", minimum=0, maximum=10)
    segment: int = param(200, "tokens that are shortened at once", minimum=2)
    k1: float = param(0.4, "how much more early segments keep", minimum=0)
    tau: float = param(0.2, "part of what is kept that the question decides", minimum=0, maximum=1)
    k2: float = param(0.1, "how much that part grows along the text", minimum=0)
    reverse: bool = param(False, "keep the most surprising of the other tokens, not the least")

    def check_helper(self, helper: LoadedModel) -> None:
        room = helper.info.window - _anchor(helper) - 1
        if self.segment > room:
            raise ModelError(
                f"{self.name} reads {self.segment} tokens at once behind the question, and {helper.info.name} has a "
                f"window of {helper.info.window}.",
                f"Use {self.name}@segment={room} or less, or another model to read with.",
            )

    def rewrite(self, prompt: PromptText, helper: LoadedModel) -> str:
        documents = [text.strip() for text in passages.split(prompt.passage, 200) if text.strip()]
        if not documents:
            return prompt.passage
        if not prompt.asked:
            raise SampleError(f"{self.name} keeps what a question needs, and this prompt has none.")
        question = prompt.asked[-helper.info.window :]  # characters: far fewer tokens than the window
        asked = [question, *guiding_questions(helper, question, self.guides)]
        order = perceived(helper, documents, asked)
        lengths = [len(tokens(helper, text)) for text in documents]
        budget = self.rate * sum(lengths)
        used: list[int] = []
        for i in order:
            used.append(i)
            budget -= lengths[i]
            if budget < 0:
                break
        text = "\n\n".join(documents[i] for i in used)
        return self.shortened(helper, text, question, max(0, round(-budget)))

    def shortened(self, helper: LoadedModel, text: str, question: str, overshoot: int) -> str:
        """A text less about ``overshoot`` of its tokens."""
        ids, offsets = with_offsets(helper, text)
        count = -(-len(ids) // self.segment)
        alone, behind = Stream(helper), Stream(helper, anchor=_anchor(helper))
        behind.read(tokens(helper, question + "\n\n"))
        kept: list[int] = []
        for i in range(count):
            places = range(i * self.segment, min((i + 1) * self.segment, len(ids)))
            piece = [ids[j] for j in places]
            slope = (count - 1 - 2 * i) / (count - 1) if count > 1 else 0.0
            share = min(1.0, max(0.0, 1 - overshoot / len(ids) + self.k1 * slope)) if overshoot else 1.0
            if share < 1:
                tau = min(1.0, max(0.0, self.tau - self.k2 * slope))
                chosen = choose(alone.losses(piece), behind.losses(piece), share, tau, reverse=self.reverse)
            else:
                chosen = list(range(len(piece)))
            kept += [places[j] for j in chosen]
            for stream in (alone, behind):
                stream.read([piece[j] for j in chosen])
        return joined(text, offsets, kept)


def _anchor(helper: LoadedModel) -> int:
    """Tokens of the question that stay before whatever is read."""
    return min(512, helper.info.window // 4)


def choose(plain: Tensor, asked: Tensor, share: float, tau: float, *, reverse: bool) -> list[int]:
    """Tokens of a segment that stay, ascending.

    Args:
        plain, asked: losses ``[n]`` behind what was kept, without and with the question before it.
        share: that stays. tau: part of it that the contrast decides.
    """
    count = len(plain)
    keep = round(share * count)
    first = min(keep, round(keep * tau))
    contrast = torch.sort(plain - asked, descending=True, stable=True).indices.tolist()
    taken = set(contrast[:first])
    rest = [i for i in torch.sort(plain, descending=reverse, stable=True).indices.tolist() if i not in taken]
    return sorted(taken | set(rest[: keep - first]))


def guiding_questions(helper: LoadedModel, question: str, count: int) -> list[str]:
    """Questions that help to answer one, written by the model; fewer where it writes fewer."""
    if not count:
        return []
    written = "1." + complete(helper, _ASK.format(question=question), 96)
    lines = [re.sub(r"^[^A-Za-z\u3040-\u9fff]+", "", line).strip() for line in written.splitlines()]
    return [line for line in lines if line.endswith(("?", "？"))][:count]


def perceived(helper: LoadedModel, documents: Sequence[str], asked: Sequence[str]) -> list[int]:
    """Documents, the most telling first; the question stands first in ``asked``."""
    vectors = [mean_state(helper, text) for text in asked]
    near = [float(torch.nn.functional.cosine_similarity(vectors[0], vector, dim=0)) for vector in vectors]
    scores = [
        sum(c * suffix_loss(helper, text, f"\nQuestion: {q}\nAnswer:{HINT}") for c, q in zip(near, asked, strict=True))
        for text in documents
    ]
    return sorted(range(len(documents)), key=lambda i: scores[i])


def mean_state(helper: LoadedModel, text: str) -> Tensor:
    """Mean of a text's last hidden states, fp32 ``[hidden]``."""
    ids = torch.tensor(tokens(helper, text, special=True)[: helper.info.window], device=helper.shape().device)
    layers = helper.info.layers
    return hidden_states(helper.model, ids, layers, KVCache.dense(layers)).float().mean(dim=0).cpu()
