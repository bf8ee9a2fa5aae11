"""LIFT: the model is fine-tuned on a prompt's text before it answers, and put back afterwards."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from lcbench.config.options import param
from lcbench.errors import BadValue, ModelError
from lcbench.kv.cache import CacheShape, KVCache
from lcbench.methods.base import Method, Traits
from lcbench.methods.registry import method
from lcbench.models import adapter

if TYPE_CHECKING:
    from lcbench.models.info import ModelInfo

BETAS, EPSILON, DECAY, CLIP = (0.9, 0.98), 1e-8, 1e-4, 1.0  # AdamW and gradient norm of the authors' scripts


@method("lift", paper="arXiv:2502.14644", traits=Traits(family="memory", prefill="own", stackable=False))
@dataclass(frozen=True)
class Lift(Method):
    """Long input fine-tuning: the model learns a prompt's text before it answers (arXiv:2502.14644). Written again from
    the paper's abstract and the public run scripts of Xi-yuanWang/2024-LIFT: LoRA or the weights themselves stand in
    for its Gated Memory, and no questions and answers about the text are made first. Numbers are those of this
    re-implementation.

    Before a prompt is read, its context (all of the text where the question is not known apart, never cut) is split
    into segments of `segment` tokens, one every `offset` tokens, the last one at the end of the text. Each of `epochs`
    goes through the segments in an order of its own and makes a step a segment on the next-token cross-entropy: AdamW
    (betas 0.9 and 0.98, weight decay 1e-4), the gradient's norm clipped to 1, a constant rate. Then the prompt, cut
    in its middle to the model's window or `--max-input-tokens`, also where a task refuses to cut (passkey), is read
    and answered by the tuned model.

    `tune=lora` adds ``x A B alpha / rank`` to every linear map of the decoder's layers, A drawn, B zero, both fp32; the
    weights are never touched. `tune=full` trains the layers' weights themselves (attention sinks excepted). After each
    sample the model is bit for bit what it was; nothing passes to the next one. Draws are seeded by sample. The seconds
    of the training are `adapt` in the sample's timing, and answers are decoded one prompt at a time.

    The cache is the full one, ``2 Hk d e T`` bytes a layer of what is read. What was learned is no cache and not in
    these bytes: 4 bytes a parameter of A and B while the sample lasts.
    """

    proof: ClassVar[str] = (
        "Segments cover every token and end with the text; no epochs or a rate of 0 give the full method's answers on "
        "the cut prompt; the loss on the text falls; the first step of both kinds of tuning equals one taken with the "
        "unmodified transformers model, plain AdamW and LoRA written out; all parameters and buffers are bit for bit "
        "the same after samples, after failures and in the midst of a run, and a sample's answer does not depend on "
        "those before it; a text outside the window is learned that the cut prompt does not have."
    )

    epochs: int = param(3, "times that the text is gone through", minimum=0)
    lr: float = param(2e-4, "learning rate", minimum=0)
    segment: int = param(2048, "tokens of a segment", minimum=2)
    offset: int = param(768, "tokens from one segment's start to the next", minimum=1)
    tune: Literal["lora", "full"] = param("lora", "what is trained: added low-rank maps, or the layers' weights")
    rank: int = param(16, "rank of the added maps", minimum=1)
    alpha: float = param(32.0, "the added maps count alpha / rank times", minimum=0)

    learns: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.offset > self.segment:
            raise BadValue(
                f"lift@offset={self.offset} is more than segment={self.segment}: tokens between segments would not be "
                "learned.",
                "Use an offset of at most the segment.",
            )

    def bind(self, info: ModelInfo, home: Path) -> Method:
        if self.tune == "full" and info.load_in is not None:
            raise ModelError(
                f"lift@tune=full trains the weights themselves, and those of {info.name} are held in {info.load_in}.",
                "Use lift@tune=lora, or leave --load-in out.",
            )
        return self

    def check(self, shape: CacheShape) -> None:
        if shape.dtype == torch.float16:
            raise ModelError(
                "lift trains the model, and gradients vanish in float16.", "Use --dtype bfloat16 or --dtype float32."
            )

    def adapt(self, model: Any, lesson: Sequence[int], seed: int) -> AbstractContextManager[Any]:
        return self._adapted(model, lesson, seed)

    @contextmanager
    def _adapted(self, model: Any, lesson: Sequence[int], seed: int) -> Iterator[list[float]]:
        """The tuned model, put back on exit. Yields the mean loss of each epoch."""
        draws = torch.Generator().manual_seed(seed)
        with ExitStack() as stack:
            stack.enter_context(frozen(model))
            tuned = lora(model, self.rank, self.alpha, draws) if self.tune == "lora" else in_place(model)
            yield self._learn(model, stack.enter_context(tuned), lesson, draws)

    def _learn(
        self, model: Any, weights: Sequence[Tensor], lesson: Sequence[int], draws: torch.Generator
    ) -> list[float]:
        """Train the weights on a text; the mean loss of each epoch."""
        device = next(model.parameters()).device
        ids = torch.tensor(list(lesson), dtype=torch.int64, device=device)
        spans = segments(len(ids), self.segment, self.offset)
        optimizer = torch.optim.AdamW(weights, lr=self.lr, betas=BETAS, eps=EPSILON, weight_decay=DECAY)
        means = []
        for _ in range(self.epochs if spans else 0):
            losses = []
            for place in torch.randperm(len(spans), generator=draws).tolist():
                first, stop = spans[place]
                cache = KVCache.dense(model.config.get_text_config().num_hidden_layers, expected=stop - first)
                with torch.enable_grad():
                    loss = adapter.loss(model, ids[first:stop], cache)
                    loss.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(weights, CLIP)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                losses.append(float(loss.detach()))
            means.append(sum(losses) / len(losses))
        return means


def segments(total: int, size: int, offset: int) -> list[tuple[int, int]]:
    """First and one past the last token of each segment; none for a text in which no token has a next one."""
    if total < 2:
        return []
    if total <= size:
        return [(0, total)]
    return [(start, start + size) for start in (*range(0, total - size, offset), total - size)]


@contextmanager
def frozen(model: Any) -> Iterator[None]:
    """No parameter of the model asks for a gradient; as before on exit."""
    asked = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in asked:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, wanted in asked:
            parameter.grad = None
            parameter.requires_grad_(wanted)


@contextmanager
def in_place(model: Any) -> Iterator[list[Tensor]]:
    """The weights of the decoder's layers, to be trained; the same bits as before on exit."""
    embedding = model.get_input_embeddings().weight
    weights = [p for p in model.base_model.parameters() if p.is_floating_point() and p is not embedding]
    kept = [weight.detach().clone() for weight in weights]
    try:
        for weight in weights:
            weight.requires_grad_(True)
        yield weights
    finally:
        with torch.no_grad():
            for weight, before in zip(weights, kept, strict=True):
                weight.copy_(before)


@contextmanager
def lora(model: Any, rank: int, alpha: float, draws: torch.Generator) -> Iterator[list[Tensor]]:
    """Low-rank maps beside every linear map of the decoder's layers (arXiv:2106.09685), to be trained; gone on exit.

    Yields:
        A ``[in, rank]``, drawn uniformly within 1 / sqrt(in), and B ``[rank, out]`` of zeros for each; fp32.
    """
    weights: list[Tensor] = []
    with ExitStack() as stack:
        for module in model.base_model.modules():
            if not isinstance(module, nn.Linear):
                continue
            width = module.in_features
            down = (torch.rand(width, rank, generator=draws) * 2 - 1) / math.sqrt(width)
            down = down.to(module.weight.device).requires_grad_(True)
            up = torch.zeros(rank, module.out_features, device=module.weight.device, requires_grad=True)
            weights += [down, up]
            stack.callback(module.register_forward_hook(_adding(down, up, alpha / rank)).remove)
        yield weights


def _adding(down: Tensor, up: Tensor, factor: float) -> Any:
    def hook(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + (arguments[0].float() @ down @ up * factor).to(output.dtype)

    return hook
