"""RWKV-5 in plain torch, for inference: a matrix-valued state a head, decayed channel by channel.

Written from the formulas of arXiv:2404.05892, section 4.1. Parameters carry the names of the published checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

_CHUNK = 16  # tokens whose pairs are computed at once; the memory of a chunk grows with its square
_GROUP_NORM_EPS = 64e-5


class Rwkv5Config(PretrainedConfig):  # type: ignore[misc, no-any-unimported, unused-ignore]
    """Sizes of an RWKV-5 model.

    Args:
        head_size: S; there are ``attention_hidden_size / S`` heads.
        attention_hidden_size: of time mixing; None for ``hidden_size``. intermediate_size: of channel mixing.
        context_length: of the training texts.
    """

    model_type = "rwkv5"
    attribute_map: ClassVar[dict[str, str]] = {"max_position_embeddings": "context_length"}

    def __init__(
        self,
        vocab_size: int = 65536,
        hidden_size: int = 4096,
        num_hidden_layers: int = 32,
        head_size: int = 64,
        attention_hidden_size: int | None = None,
        intermediate_size: int | None = None,
        context_length: int = 4096,
        layer_norm_epsilon: float = 1e-5,
        **more: Any,
    ) -> None:
        self.vocab_size, self.hidden_size, self.num_hidden_layers = vocab_size, hidden_size, num_hidden_layers
        self.head_size, self.context_length = head_size, context_length
        self.attention_hidden_size = attention_hidden_size or hidden_size
        self.intermediate_size = intermediate_size or int(3.5 * hidden_size) // 32 * 32
        self.layer_norm_epsilon = layer_norm_epsilon
        super().__init__(**{"tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 0, **more})


@dataclass
class Rwkv5Output(ModelOutput):  # type: ignore[misc, no-any-unimported, unused-ignore]
    """logits ``[B, n, vocab]``; state: see `Rwkv5ForCausalLM`, or None."""

    logits: Tensor | None = None
    state: list[dict[str, Tensor]] | None = None


def time_mixing(
    receptance: Tensor, key: Tensor, value: Tensor, decay: Tensor, first: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """The recurrence over T tokens, fp32:

        out_t = r_t (diag(u) k_t' v_t + S_t),   S_{t+1} = diag(w) S_t + k_t' v_t

    in chunks: inside one the weight of token s for token t is the product of the decays between them, ``w^(t-1-s)``,
    so every exponent is positive and nothing overflows.

    Args:
        receptance, key, value: r, k, v ``[B, T, H, S]``. decay: log w ``[H, S]``, negative. first: u ``[H, S]``.
        state: ``[B, H, S, S]`` before the first token.

    Returns:
        out ``[B, T, H, S]`` and the state after the last token.
    """
    outputs = []
    for start in range(0, key.shape[1], _CHUNK):
        r, k, v = (x[:, start : start + _CHUNK].transpose(1, 2) for x in (receptance, key, value))  # [B, H, C, S]
        n = k.shape[2]
        step = torch.arange(n, device=k.device)
        gap = step[:, None] - 1 - step[None]  # t - 1 - s
        between = torch.exp(decay[:, None, None] * gap.clamp(min=0)[..., None])  # [H, C, C, S]
        weight = torch.where((gap >= 0)[..., None], between, 0.0)
        weight = weight + first[:, None, None] * torch.eye(n, device=k.device)[..., None]
        pairs = torch.einsum("bhti,bhsi,htsi->bhts", r, k, weight)
        carried = r * torch.exp(decay[:, None] * step[:, None])
        outputs.append((pairs @ v + carried @ state).transpose(1, 2))
        fading = k * torch.exp(decay[:, None] * (n - 1 - step)[:, None])
        state = torch.exp(decay * n)[..., None] * state + fading.transpose(2, 3) @ v
    return torch.cat(outputs, dim=1), state


def shifted(x: Tensor, before: Tensor) -> Tensor:
    """Each token's predecessor ``[B, T, D]``; ``before [B, D]`` is the first one's."""
    return torch.cat([before[:, None], x[:, :-1]], dim=1)


class TimeMixing(nn.Module):
    """The place of attention."""

    def __init__(self, config: Rwkv5Config) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.attention_hidden_size
        self.size, self.heads = config.head_size, inner // config.head_size
        self.time_mix_k, self.time_mix_v, self.time_mix_r, self.time_mix_g = (
            nn.Parameter(torch.zeros(1, 1, width)) for _ in range(4)
        )
        self.time_decay = nn.Parameter(torch.zeros(self.heads, self.size))
        self.time_faaaa = nn.Parameter(torch.zeros(self.heads, self.size))
        self.receptance, self.key, self.value, self.gate = (nn.Linear(width, inner, bias=False) for _ in range(4))
        self.output = nn.Linear(inner, width, bias=False)
        self.ln_x = nn.GroupNorm(self.heads, inner, eps=_GROUP_NORM_EPS)

    def forward(self, x: Tensor, before: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """x ``[B, T, D]`` to the same shape, and the state after it."""
        batch, length, _ = x.shape
        previous = shifted(x, before)
        mixed = [x * mix + previous * (1 - mix) for mix in (self.time_mix_r, self.time_mix_k, self.time_mix_v)]
        layers = (self.receptance, self.key, self.value)
        r, k, v = (
            layer(part).view(batch, length, self.heads, self.size).float()
            for layer, part in zip(layers, mixed, strict=True)
        )
        gate = F.silu(self.gate(x * self.time_mix_g + previous * (1 - self.time_mix_g)))
        out, state = time_mixing(r, k, v, -torch.exp(self.time_decay.float()), self.time_faaaa.float(), state)
        flat = out.reshape(batch * length, -1)
        norm = F.group_norm(flat, self.heads, self.ln_x.weight.float(), self.ln_x.bias.float(), _GROUP_NORM_EPS)
        return self.output(norm.view(batch, length, -1).to(x.dtype) * gate), state


class ChannelMixing(nn.Module):
    """The place of the MLP."""

    def __init__(self, config: Rwkv5Config) -> None:
        super().__init__()
        width = config.hidden_size
        self.time_mix_k, self.time_mix_r = (nn.Parameter(torch.zeros(1, 1, width)) for _ in range(2))
        self.key = nn.Linear(width, config.intermediate_size, bias=False)
        self.receptance = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(config.intermediate_size, width, bias=False)

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        previous = shifted(x, before)
        k = torch.relu(self.key(x * self.time_mix_k + previous * (1 - self.time_mix_k))) ** 2
        r = torch.sigmoid(self.receptance(x * self.time_mix_r + previous * (1 - self.time_mix_r)))
        out: Tensor = r * self.value(k)
        return out


class Block(nn.Module):
    """One layer."""

    def __init__(self, config: Rwkv5Config, index: int) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_epsilon
        if index == 0:
            self.ln0 = nn.LayerNorm(width, eps=eps)
        self.ln1, self.ln2 = nn.LayerNorm(width, eps=eps), nn.LayerNorm(width, eps=eps)
        self.att, self.ffn = TimeMixing(config), ChannelMixing(config)

    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        if hasattr(self, "ln0"):
            x = self.ln0(x)
        a = self.ln1(x)
        mixed, matrix = self.att(a, state["shift"], state["matrix"])
        x = x + mixed
        b = self.ln2(x)
        x = x + self.ffn(b, state["channel_shift"])
        return x, {"shift": a[:, -1].clone(), "channel_shift": b[:, -1].clone(), "matrix": matrix}


class Rwkv5ForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[misc, no-any-unimported, unused-ignore]
    """RWKV-5 with its head. ``state`` is a list of one dict a layer: ``shift`` and ``channel_shift`` ``[B, D]``, the
    last token's normalised inputs of both mixings, and ``matrix`` ``[B, H, S, S]`` fp32, keys by values."""

    config_class = Rwkv5Config
    base_model_prefix = ""
    _no_split_modules: ClassVar[list[str]] = ["Block"]
    _keep_in_fp32_modules: ClassVar[list[str]] = ["time_decay", "time_faaaa"]
    _is_stateful = True

    def __init__(self, config: Rwkv5Config) -> None:
        super().__init__(config)
        self.emb = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList([Block(config, i) for i in range(config.num_hidden_layers)])
        self.ln_out = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.emb

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(
        self,
        input_ids: Tensor,
        state: list[dict[str, Tensor]] | None = None,
        use_cache: bool = True,
        logits_to_keep: int = 0,
        **ignored: Any,
    ) -> Rwkv5Output:
        """Read ``input_ids [B, n]`` after what ``state`` has seen; logits of the last ``logits_to_keep`` (0: all)."""
        x = self.emb(input_ids)
        made = []
        for block, before in zip(self.blocks, state or self._empty(x), strict=True):
            x, after = block(x, before)
            made.append(after)
        return Rwkv5Output(logits=self.head(self.ln_out(x[:, -logits_to_keep:])), state=made if use_cache else None)

    def _empty(self, x: Tensor) -> list[dict[str, Tensor]]:
        """The state before the first token: zeros."""
        size, inner = self.config.head_size, self.config.attention_hidden_size
        return [
            {
                "shift": torch.zeros_like(x[:, 0]),
                "channel_shift": torch.zeros_like(x[:, 0]),
                "matrix": torch.zeros(len(x), inner // size, size, size, dtype=torch.float32, device=x.device),
            }
            for _ in self.blocks
        ]
