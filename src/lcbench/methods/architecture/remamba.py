"""ReMamba: a Mamba that reads a long prompt twice, the second time with a part of it condensed to a few vectors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lcbench.config.options import param
from lcbench.errors import ModelError
from lcbench.kv.cache import CacheShape
from lcbench.methods.base import Method, Traits
from lcbench.methods.calibration import bound
from lcbench.methods.registry import method
from lcbench.models.families import Family
from lcbench.models.native import NativeState, family_of

if TYPE_CHECKING:
    from lcbench.models.info import ModelInfo

_TRAINED = "ReMamba weights (a merged checkpoint)"
_MODEL = "Give --model the folder of a merged ReMamba checkpoint on Mamba."


@method(
    "remamba",
    paper="arXiv:2408.15496",
    traits=Traits(family="architecture", prefill="own", stackable=False, training=_TRAINED),
)
@dataclass(frozen=True)
class ReMamba(Method):
    """Selective compression and adaptation for Mamba (arXiv:2408.15496, code lblankl/ReMamba), on Mamba-1 checkpoints
    that carry its weights.

    The prompt of L tokens is read once without a cache. Of its final hidden states h the last asks,
    ``q = Q(h_{L-1})``; tokens of a region that begins at `start` and is `region` of the prompt long are scored by
    ``cos(K(h_t), q)``, and the best ``ceil(ratio * region)`` of them stay, in the order of the text. Then the model
    reads again: in place of the region the vectors ``V(h_t)`` of those that stayed, for all others their embeddings.
    In every layer the time step of the inserted positions is ``step * max(score, 0) + ret_bias`` before the model's
    own bias and softplus, so that what does not matter hardly moves the state. The answer continues from there.
    Defaults are those of the authors' evaluation script.

    Q, K and V are two linear maps with SiLU between. The authors' inference code changes the time step of the *last*
    positions of the prompt instead of the inserted ones; `place=last` does the same.

    The cache is Mamba's, of constant size. The weights are read from the model's own folder, under the names of the
    authors' code (``backbone.Q_proj.0.weight``, …, ``backbone.layers.0.mixer.ret_bias.param``); a LoRA must be merged.
    """

    proof: ClassVar[str] = (
        "Logits against a Mamba of our own in numpy, one token after another, with the inserted vectors and the "
        "changed time steps written out; with all tokens kept, V giving back embeddings, scores of one and no bias it "
        "is the plain model; the number of positions of the second reading; every weight and method of the model is "
        "as before afterwards. On random weights: no published checkpoint was at hand."
    )

    start: float = param(0.0, "where the region begins, as a share of the prompt", minimum=0, maximum=1)
    region: float = param(0.18, "length of the region, as a share of the prompt", minimum=0, maximum=1)
    ratio: float = param(0.009, "share of the region's tokens that stay", minimum=0, maximum=1)
    place: Literal["first", "last"] = param(
        "first", "positions whose time step changes: the inserted, or the last ones"
    )

    def bind(self, info: ModelInfo, home: Path) -> Method:
        if info.architecture != "MambaForCausalLM":
            raise ModelError(f"remamba works on Mamba, and {info.name} is a {info.architecture}.", _MODEL)
        if info.source != "folder":
            raise ModelError(f"remamba reads its weights from the model's folder, and {info.name} is none.", _MODEL)
        return bound(self, _weights=read_weights(Path(info.name), info.layers))

    def check(self, shape: CacheShape) -> None:
        if shape.state is None:
            raise ModelError("remamba works on Mamba, and this model's layers are attention.", _MODEL)

    def native_state(self, model: Any) -> NativeState:
        weights: Mapping[str, Tensor] | None = getattr(self, "_weights", None)
        if weights is None:
            raise ModelError("remamba has no weights.", _MODEL)
        device = next(model.parameters()).device
        family = family_of(model)
        assert family is not None
        placed = {name: tensor.to(device) for name, tensor in weights.items()}
        return ReMambaState(family, len(model.backbone.layers), self, placed)

    def span(self, length: int) -> tuple[int, int, int]:
        """Begin and end of the region in a prompt of ``length`` tokens, and how many of its tokens stay. The last token
        of a prompt, which asks, is never in it."""
        begin = min(int(self.start * length), length - 1)
        end = min(begin + math.ceil(self.region * length), length - 1)
        return begin, end, math.ceil(self.ratio * (end - begin))


def read_weights(folder: Path, layers: int) -> dict[str, Tensor]:
    """Q, K, V and the biases, by name. Raises ModelError where one is missing."""
    from safetensors import safe_open

    wanted = {f"backbone.{p}_proj.{i}.{kind}" for p in "QKV" for i in (0, 2) for kind in ("weight", "bias")}
    wanted |= {f"backbone.layers.{i}.mixer.ret_bias.param" for i in range(layers)}
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            found |= {name: opened.get_tensor(name) for name in wanted & set(opened.keys())}
    missing = sorted(wanted - set(found))
    if missing:
        raise ModelError(f"{folder} has no ReMamba weights: {missing[0]} is missing.", _MODEL)
    return found


class ReMambaState(NativeState):
    """Mamba's cache, filled by reading a prompt twice.

    Args:
        weights: see `read_weights`, on the model's device.
    """

    def __init__(self, family: Family, layers: int, how: ReMamba, weights: Mapping[str, Tensor]) -> None:
        super().__init__(family, layers)
        self._how, self._weights = how, weights

    def forward(self, model: Any, ids: Tensor, positions: Tensor, *, all_logits: bool = False) -> Tensor:
        if self.seen:
            return super().forward(model, ids, positions, all_logits=all_logits)
        embeddings, scores, begin = self.condensed(model, ids)
        first = begin if self._how.place == "first" else embeddings.shape[1] - len(scores)
        biases = [self._weights[f"backbone.layers.{i}.mixer.ret_bias.param"] for i in range(self.layers)]
        with changed_steps(model, first, scores, biases):
            output = self._run(model, {"inputs_embeds": embeddings, "use_cache": True})
        self._cache, self.seen = output.cache_params, ids.shape[1]
        logits: Tensor = output.logits
        return logits if all_logits else logits[:, -1:]

    def condensed(self, model: Any, ids: Tensor) -> tuple[Tensor, Tensor, int]:
        """What the second reading is given ``[1, L - region + K, D]``, the scores ``[K]`` of the inserted vectors, not
        negative, and the position of the first of them."""
        begin, end, keep = self._how.span(ids.shape[1])
        embeddings = model.get_input_embeddings()(ids)
        if not keep:
            return embeddings, embeddings.new_zeros(0), begin
        hidden = self._run(model.backbone, {"input_ids": ids, "use_cache": False}).last_hidden_state[0]
        region = hidden[begin:end]
        cosine = F.cosine_similarity(self._map("K", region), self._map("Q", hidden[-1:]), dim=1, eps=1e-8)
        chosen = torch.sort(cosine, descending=True, stable=True).indices[:keep].sort().values
        inserted = self._map("V", region[chosen])[None].to(embeddings.dtype)
        text = torch.cat([embeddings[:, :begin], inserted, embeddings[:, end:]], dim=1)
        return text, torch.relu(cosine[chosen]), begin

    def _map(self, name: str, x: Tensor) -> Tensor:
        for i in (0, 2):
            weight, bias = (self._weights[f"backbone.{name}_proj.{i}.{kind}"] for kind in ("weight", "bias"))
            x = F.linear(x.to(weight.dtype), weight, bias)
            x = F.silu(x) if i == 0 else x
        return x


@contextmanager
def changed_steps(model: Any, first: int, scores: Tensor, biases: list[Tensor]) -> Iterator[None]:
    """Context in which the time step of ``len(scores)`` positions from ``first`` on is multiplied by their scores, and
    each layer's bias ``[d_inner]`` added to it.

    The time step is ``W_dt x``, x ``[rank]`` made of each token. The bias becomes a further column of W_dt, and x gets
    a further element that is one at these positions and zero elsewhere: the model's own code does the rest.
    """
    positions = slice(first, first + len(scores))
    mixers = [layer.mixer for layer in model.backbone.layers]
    before = [(mixer.time_step_rank, mixer.dt_proj.weight) for mixer in mixers]

    def hook(module: Any, given: Any, output: Tensor) -> Tensor:
        rank = before[0][0]
        step, rest = output[..., :rank].clone(), output[..., rank:]
        marked = torch.zeros_like(output[..., :1])
        step[:, positions] *= scores.to(step.dtype)[:, None]
        marked[:, positions] = 1
        return torch.cat([step, marked, rest], dim=-1)

    hooks = [mixer.x_proj.register_forward_hook(hook) for mixer in mixers]
    try:
        for mixer, bias, (rank, weight) in zip(mixers, biases, before, strict=True):
            wider = torch.cat([weight, bias.to(weight.dtype)[:, None]], dim=1)
            mixer.time_step_rank, mixer.dt_proj.weight = rank + 1, torch.nn.Parameter(wider, requires_grad=False)
        yield
    finally:
        for mixer, (rank, weight) in zip(mixers, before, strict=True):
            mixer.time_step_rank, mixer.dt_proj.weight = rank, weight
        for one in hooks:
            one.remove()
