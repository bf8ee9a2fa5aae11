"""The last product of a 16-bit model, from hidden states to logits, in fp32 where it decides.

In bfloat16 logits of about 20 lie 0.125 apart, so that the two best candidates of one token in twenty or thirty come
out equal and greedy decoding takes the one with the lower id. The hidden state says more than that: the best few
candidates are multiplied once more, with fp32 sums that are not rounded to 16 bits. What the model makes of its
logits afterwards (a soft cap, a scale) follows in fp32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CANDIDATES = 16  # a token: as many that far apart as 16-bit rounding can bring together do not occur
_ROWS = 64  # tokens whose candidates' weights are gathered at once


def sharpen(model: Any) -> None:
    """Give a model fp32 logits whose `CANDIDATES` highest are exact products of its 16-bit weights and hidden states.

    Models in fp32, and heads that are not a plain 16-bit matrix (quantized ones), stay as they are.
    """
    head = model.get_output_embeddings()
    weight = getattr(head, "weight", None)
    if isinstance(head, torch.nn.Linear) and weight is not None and weight.dtype in (torch.float16, torch.bfloat16):
        head.register_forward_hook(_recomputed)


def _recomputed(head: torch.nn.Linear, arguments: tuple[Tensor, ...], logits: Tensor) -> Tensor:
    """Logits ``[..., vocab]`` in fp32, made of hidden states ``[..., hidden]``; while gradients are recorded, as they
    come."""
    if torch.is_grad_enabled():
        return logits  # a text is learned; nothing is chosen
    scores = logits.float()
    if head.weight.device.type == "meta":  # moved away again, to make room
        return scores
    rows = scores.view(-1, scores.shape[-1])
    hidden = arguments[0].to(rows.device).reshape(len(rows), -1)
    for start in range(0, len(rows), _ROWS):
        piece = slice(start, start + _ROWS)
        best = rows[piece].topk(min(CANDIDATES, rows.shape[-1]), dim=-1).indices
        exact = torch.einsum("rkh,rh->rk", head.weight[best].float(), hidden[piece].float())
        if head.bias is not None:
            exact += head.bias[best]
        rows[piece] = rows[piece].scatter(-1, best, exact)
    return scores
