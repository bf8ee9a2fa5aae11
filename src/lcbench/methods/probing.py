"""What a linear prober is trained on and asked with: texts, and the hidden states of an early layer at their ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lcbench.kv.cache import KVCache
from lcbench.methods.surprisal import tokens
from lcbench.models.early import hidden_states_at
from lcbench.models.info import LoadedModel

CHUNK_WORDS = 180
_LAYOUT = "Does this text help to answer the question?\n\nText: {chunk}\n\nQuestion: {question}\n"


def probe_text(chunk: str, question: str) -> str:
    """What the model reads of a chunk."""
    return _LAYOUT.format(chunk=chunk.strip(), question=question.strip())


def last_states(loaded: LoadedModel, texts: Sequence[str], layer: int) -> Tensor:
    """Hidden states behind ``layer`` layers at the last token of each text: fp32 ``[n, hidden]`` on the CPU."""
    return torch.stack([states_at_end(loaded, text, [layer])[0] for text in texts])


def states_at_end(loaded: LoadedModel, text: str, layers: Sequence[int]) -> list[Tensor]:
    """Hidden states ``[hidden]`` at a text's last token behind each of several numbers of layers, ascending."""
    ids = tokens(loaded, text, special=True)[-loaded.info.window :]
    tensor = torch.tensor(ids, device=loaded.shape().device)
    states = hidden_states_at(loaded.model, tensor, layers, KVCache.dense(loaded.info.layers))
    return [state[-1].float().cpu() for state in states]


def fit(states: Tensor, labels: Tensor, penalty: float = 1e-2) -> dict[str, Tensor]:
    """A logistic regression on standardised features, classes weighed alike, by L-BFGS.

    Args:
        states: ``[n, hidden]`` fp32. labels: bool ``[n]``, both classes among them. penalty: on the squared weights.

    Returns:
        ``mean``, ``spread``, ``weight`` ``[hidden]`` and ``bias``, as `probability` takes them.
    """
    mean, spread = states.mean(dim=0), states.std(dim=0).clamp_min(1e-6)
    features, wanted = ((states - mean) / spread).double(), labels.double()
    weights = torch.where(labels, 0.5 / wanted.mean(), 0.5 / (1 - wanted).mean())
    weight = torch.zeros(states.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros((), dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        fitted = torch.nn.functional.binary_cross_entropy_with_logits(features @ weight + bias, wanted, weights)
        total = fitted + penalty * weight.square().sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    with torch.enable_grad():
        solver.step(loss)  # type: ignore[no-untyped-call]
    return {"mean": mean, "spread": spread, "weight": weight.detach().float(), "bias": bias.detach().float()}


def probability(states: Tensor, prober: Mapping[str, Tensor]) -> Tensor:
    """p of each row of ``states [n, hidden]``."""
    return torch.sigmoid((states - prober["mean"]) / prober["spread"] @ prober["weight"] + prober["bias"])


def auroc(values: Tensor, labels: Tensor) -> float:
    """The chance that a row with the label has the greater value; ties count half."""
    yes, no = values[labels], values[~labels]
    pairs = yes[:, None] - no[None]
    return float(((pairs > 0).double() + 0.5 * (pairs == 0).double()).mean())
