"""flash-attention for the prompt pass of models that were loaded with it.

The choice belongs to a model, attention is computed far away in `lcbench.kv.attention`: hooks on the model say, while
it runs, that it wants flash-attention.
"""

from __future__ import annotations

import contextvars
from typing import Any

from torch import Tensor

_wanted: contextvars.ContextVar[bool] = contextvars.ContextVar("lcbench_flash", default=False)


def wanted() -> bool:
    """Whether the model that is running now was loaded with flash_attention_2."""
    return _wanted.get()


def use_in(model: Any) -> None:
    """Let every forward pass of ``model`` compute dense causal attention with flash-attention."""
    model.register_forward_pre_hook(_enter)
    model.register_forward_hook(_leave, always_call=True)


def _enter(model: Any, arguments: Any) -> None:
    _wanted.set(True)


def _leave(model: Any, arguments: Any, output: Any) -> None:
    _wanted.set(False)


def causal(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """Dense causal attention of n queries ``[H, n, d]`` on n keys and values ``[Hk, n, d]``, fp16 or bf16 on a GPU.

    Returns:
        ``[H, n, d]``.
    """
    from flash_attn import flash_attn_func

    rows = [t.transpose(0, 1).unsqueeze(0) for t in (query, key, value)]  # [1, n, heads, d]
    out: Tensor = flash_attn_func(*rows, softmax_scale=scaling, causal=True)
    return out[0].transpose(0, 1)
