"""From a Llama model to its latent form: which pairs stay rotated, and a joint SVD of the other keys and the values.

arXiv:2502.14837, sections 3.1 and 3.2. Without fine-tuning a strong compression ruins the model; with
``rope_dims = head_dim`` and full rank it is the same model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from lcbench.errors import BadValue, ModelError
from lcbench.models.mha2mla.modeling import LatentAttention, Mha2MlaConfig, Mha2MlaForCausalLM

Selection = Literal["high", "low", "uniform", "2-norm"]
Pairs = list[list[list[int]]]


def check(config: Any, rope_dims: int, rank: int) -> None:
    """Refuse what cannot be converted. Raises ModelError or BadValue."""
    if config.model_type != "llama":
        raise ModelError(
            f"MHA2MLA converts Llama models, and this is a {config.model_type} model.",
            "Give a Llama model (Llama-2, SmolLM, demo, …).",
        )
    head_dim = _head_dim(config)
    if rope_dims < 2 or rope_dims % 2 or rope_dims > head_dim:
        raise BadValue(
            f"--rope-dims {rope_dims} is not an even number from 2 to the head dimension, {head_dim}.",
            f"Use e.g. {head_dim // 2}.",
        )
    most = full_rank(config, rope_dims)
    if not 1 <= rank <= most:
        raise BadValue(f"The rank {rank} is not between 1 and {most}, where nothing is lost.", f"Use at most {most}.")


def full_rank(config: Any, rope_dims: int) -> int:
    """The rank from which the decomposition loses nothing."""
    head_dim, kv_heads = _head_dim(config), int(config.num_key_value_heads)
    return min(int(config.hidden_size), kv_heads * (2 * head_dim - rope_dims))


def _head_dim(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def select_pairs(
    config: Any, rope_dims: int, selection: Selection, *, start: int = 0, norms: Tensor | None = None
) -> Pairs:
    """The pairs that stay rotated, ``[layers][kv_heads][rope_dims / 2]``, ascending.

    Args:
        selection: "high" the fastest pairs, "low" the slowest, "uniform" every (head_dim / rope_dims)-th from
            ``start``, "2-norm" those with the largest product of mean query and key norms.
        norms: for "2-norm": these products ``[layers, kv_heads, head_dim / 2]``.

    Raises:
        BadValue: dimensions that "uniform" cannot spread, or a start beyond its step.
    """
    half, count = _head_dim(config) // 2, rope_dims // 2
    layers, kv_heads = int(config.num_hidden_layers), int(config.num_key_value_heads)
    if selection == "2-norm":
        assert norms is not None, "2-norm needs the norms of queries and keys"
        order = norms.argsort(dim=-1, descending=True, stable=True)[..., :count].sort(dim=-1).values
        chosen: Pairs = order.tolist()
        return chosen
    if selection == "uniform":
        step = half // count
        if half % count or not 0 <= start < step:
            raise BadValue(
                f"{count} of {half} pairs from {start} on cannot be spread evenly.",
                "Use --rope-dims that divide the head dimension, and a --start below the step.",
            )
        one = list(range(start, half, step))
    else:
        one = list(range(count)) if selection == "high" else list(range(half - count, half))
    return [[list(one) for _ in range(kv_heads)] for _ in range(layers)]


def rows_of(pairs: Sequence[Sequence[int]], heads: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """Row numbers of a projection of ``heads`` heads: rotated ones and the others, head by head, each ascending.

    Args:
        pairs: of each KV head; query heads of a group share them.
    """
    groups = heads // len(pairs)
    rotated, free = [], []
    for head in range(heads):
        kept = {p + offset for p in pairs[head // groups] for offset in (0, head_dim // 2)}
        rotated += [head * head_dim + d for d in range(head_dim) if d in kept]
        free += [head * head_dim + d for d in range(head_dim) if d not in kept]
    return torch.tensor(rotated, dtype=torch.int64), torch.tensor(free, dtype=torch.int64)


def decompose(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best approximation ``up @ down`` of a matrix ``[m, n]``: ``down [rank, n]`` with orthonormal rows."""
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    return (u[:, :rank] * s[:rank]).to(matrix.dtype), v[:rank].to(matrix.dtype)


@torch.no_grad()
def convert(model: Any, pairs: Pairs, rope_dims: int, rank: int) -> Mha2MlaForCausalLM:
    """The latent form of a Llama model, on the same device in the same dtype; the model is left as it was.

    Args:
        pairs: see `select_pairs`. rank: R, of all KV heads together.

    Raises:
        ModelError, BadValue: as `check`.
    """
    check(model.config, rope_dims, rank)
    facts = {k: v for k, v in model.config.to_dict().items() if k not in ("model_type", "architectures")}
    config = Mha2MlaConfig(**facts, rope_dims=rope_dims, rank=rank, rope_pairs=pairs)
    made: Mha2MlaForCausalLM = Mha2MlaForCausalLM._from_config(config, dtype=model.dtype).to(model.device).eval()
    own = made.state_dict()
    own.update({k: v for k, v in model.state_dict().items() if ".self_attn." not in k})
    made.load_state_dict(own)
    for index, (source, target) in enumerate(zip(model.model.layers, made.model.layers, strict=True)):
        _convert_layer(source.self_attn, target.self_attn, pairs[index])
    made.tie_weights()
    made.generation_config = model.generation_config
    return made


def _convert_layer(source: Any, target: LatentAttention, pairs: list[list[int]]) -> None:
    device = source.q_proj.weight.device
    rotated, free = (r.to(device) for r in rows_of(pairs, target.heads, target.head_dim))
    k_rotated, k_free = (r.to(device) for r in rows_of(pairs, target.kv_heads, target.head_dim))
    order = torch.cat([rotated, free])
    keys, values = source.k_proj.weight, source.v_proj.weight
    up, down = decompose(torch.cat([keys[k_free], values]).float(), target.config.rank)
    copies = [
        (target.q_proj, source.q_proj.weight[order], _rows(source.q_proj.bias, order)),
        (target.k_r_proj, keys[k_rotated], _rows(source.k_proj.bias, k_rotated)),
        (target.kv_proj.down_kv, down, None),
        (target.kv_proj.up_k, up[: len(k_free)], _rows(source.k_proj.bias, k_free)),
        (target.kv_proj.up_v, up[len(k_free) :], source.v_proj.bias),
        (target.o_proj, source.o_proj.weight, source.o_proj.bias),
    ]
    for layer, weight, bias in copies:
        if layer is not None:
            layer.weight.copy_(weight)
            if bias is not None:
                layer.bias.copy_(bias)


def _rows(bias: Tensor | None, index: Tensor) -> Tensor | None:
    return None if bias is None else bias[index]
