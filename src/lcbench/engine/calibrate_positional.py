"""The channels of `positional-hidden` (arXiv:2406.02536, section 3.2): hidden channels that grow or fall with position.

Random strings are read and each layer's input is averaged over them, position by position. A channel is a candidate
where a cubic fitted to its curve, scaled to 0 to 1, is monotone in the same direction in more than a quarter of the
layers; candidates are ranked by how smooth their curves are, and the best ten are tried: on prompts that ask for the
value of a key among many, with the channel set to zero, the one with the smallest loss on the value is kept.

The paper's sizes are 200 strings of 1000 tokens, of whose positions the first 300 are left out of the fit and the first
200 of the smoothness; other lengths keep these proportions. Our choice, where it is open: the layers' inputs are looked
at (the residual stream), strings are of random token ids, one channel is kept, and the validation asks 5 prompts of up
to 25 pairs, as many as fit.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lcbench.engine.calibrate import Made, Progress, Request, Say
from lcbench.errors import BadValue, ModelError
from lcbench.kv.cache import KVCache
from lcbench.methods.calibration import save_json
from lcbench.methods.extend.positional_hidden import NAME, PositionalHidden, attention_modules
from lcbench.models import adapter
from lcbench.models.info import LoadedModel
from lcbench.models.load import load
from lcbench.store.provenance import software

SAMPLES, LENGTH = 200, 1000
FIT_FROM, SMOOTH_FROM = 0.3, 0.2
LEAST = 60  # tokens of a string, so that a window of ten and its differences fit many times
CANDIDATES, PROMPTS, PAIRS = 10, 5, 25
_WINDOW, _ORDER = 10, 3  # of the Savitzky-Golay filter


def calibrate_positional(request: Request, *, say: Say, progress: Progress) -> list[Made]:
    """Find and store the channel of a model. Raises BadValue, ModelError, CannotWrite."""
    if request.text is not None or request.source is not None:
        raise BadValue(f"{NAME} reads random strings and no file.", "Leave --text and --from out.")
    if request.lengths is not None and (len(request.lengths) != 1 or request.lengths[0] < LEAST):
        raise BadValue(f"{NAME} reads strings of one length, {LEAST} tokens or more.", "Write e.g. --lengths 1000.")
    loaded = load(request.model, request.home, say=say)
    samples = request.samples or SAMPLES
    length = min((request.lengths or (LENGTH,))[0], loaded.info.window)
    if request.lengths is not None and request.lengths[0] > length:
        raise BadValue(
            f"--lengths {request.lengths[0]} is beyond the window of {loaded.info.name}, {length} tokens.",
            f"Use --lengths {length} or less.",
        )
    asked = list(questions(loaded, request.seed))
    curves = mean_inputs(loaded, samples, length, request.seed, lambda done: progress("strings", done, samples))
    ranked = candidates(curves)
    if not ranked:
        raise ModelError(
            f"No hidden channel of {loaded.info.name} follows the position in more than a quarter of the layers.",
            f"Read more or longer strings (--samples {4 * samples} --lengths {LENGTH}), or choose another model.",
        )
    tried = [channel for channel, _ in ranked[:CANDIDATES]]
    losses: dict[int, float] = {}
    for done, channel in enumerate(tried, start=1):
        losses[channel] = loss(loaded, asked, channel)
        progress("channels", done, len(tried))
    best = min(losses, key=lambda channel: (losses[channel], channel))
    plain = loss(loaded, asked, None)
    provenance = {
        "samples": samples,
        "length": length,
        "seed": request.seed,
        "candidates": len(ranked),
        "smoothness": {str(channel): value for channel, value in ranked[:CANDIDATES]},
        "losses": {str(channel): value for channel, value in losses.items()},
        "plain_loss": plain,
        "dtype": loaded.info.dtype,
        "device": loaded.info.device,
        "software": software(),
    }
    path = save_json(NAME, loaded.info, request.home, {"channels": [best]}, provenance)
    found = f"channel {best} of {len(ranked)} candidates: loss on values {losses[best]:.3f}, unscaled {plain:.3f}"
    return [Made(NAME, path, found)]


def mean_inputs(
    loaded: LoadedModel, samples: int, length: int, seed: int, on_sample: Callable[[int], None] = lambda done: None
) -> Tensor:
    """Input of each layer, mean over random strings: fp64 ``[N, length, hidden]``, on the CPU."""
    layers = _decoder_layers(loaded)
    generator = torch.Generator().manual_seed(seed)
    total: list[Tensor | None] = [None] * len(layers)

    def note(index: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
            hidden = (args[0] if args else kwargs["hidden_states"])[0].double().cpu()
            held = total[index]
            total[index] = hidden if held is None else held + hidden

        return hook

    handles = [layer.register_forward_pre_hook(note(i), with_kwargs=True) for i, layer in enumerate(layers)]
    try:
        for done in range(samples):
            ids = torch.randint(0, loaded.info.vocab, (1, length), generator=generator).to(loaded.shape().device)
            positions = torch.arange(length, device=ids.device)[None]
            cache = KVCache.dense(loaded.shape().layers, expected=length)
            adapter.forward(loaded.model, ids, positions, [cache])
            on_sample(done + 1)
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack([held / samples for held in total if held is not None])


def _decoder_layers(loaded: LoadedModel) -> list[nn.Module]:
    """The modules whose children are the attention modules, in order."""
    parents = {child: parent for parent in loaded.model.modules() for child in parent.children()}
    return [parents[attention] for attention in attention_modules(loaded.model)]


def candidates(curves: Tensor) -> list[tuple[int, float]]:
    """Channels that follow the position, the smoothest first, with their smoothness (smaller is smoother).

    Args:
        curves: fp64 ``[N, n, hidden]``.
    """
    layers, n, _ = curves.shape
    low, high = curves.amin(dim=1, keepdim=True), curves.amax(dim=1, keepdim=True)
    scaled = (curves - low) / torch.where(high > low, high - low, torch.ones_like(low))
    direction = _monotone(scaled[:, int(FIT_FROM * n) :])
    up, down = (direction > 0).sum(dim=0), (direction < 0).sum(dim=0)
    most = torch.maximum(up, down)
    chosen = (most > layers / 4).nonzero()[:, 0].tolist()
    rough = _roughness(scaled[:, int(SMOOTH_FROM * n) :])
    found = []
    for channel in chosen:
        wanted = 1 if up[channel] >= down[channel] else -1
        found.append((channel, float(rough[direction[:, channel] == wanted, channel].min())))
    return sorted(found, key=lambda item: (item[1], item[0]))


def _monotone(curves: Tensor) -> Tensor:
    """1, -1 or 0 where a cubic fitted to a curve ``[N, n, hidden]`` rises, falls, or does neither: ``[N, hidden]``."""
    n = curves.shape[1]
    x = torch.linspace(0, 1, n, dtype=torch.float64)
    powers = torch.stack([x**k for k in range(4)], dim=1)
    fitted = torch.linalg.pinv(powers) @ curves  # [N, 4, hidden]
    slope = torch.stack([torch.zeros_like(x), torch.ones_like(x), 2 * x, 3 * x**2], dim=1) @ fitted
    direction: Tensor = (slope > 0).all(dim=1).long() - (slope < 0).all(dim=1).long()
    return direction


def _roughness(curves: Tensor) -> Tensor:
    """Sum of squared second differences of curves ``[N, n, hidden]`` after a Savitzky-Golay filter: ``[N, hidden]``."""
    places = torch.arange(_WINDOW, dtype=torch.float64) - (_WINDOW - 1) / 2
    powers = torch.stack([places**k for k in range(_ORDER + 1)], dim=1)
    weights = torch.linalg.pinv(powers)[0]  # of the fitted cubic's value in the middle of the window
    smooth = (curves.unfold(1, _WINDOW, 1) * weights).sum(dim=-1)
    bends: Tensor = smooth[:, 2:] - 2 * smooth[:, 1:-1] + smooth[:, :-2]
    return bends.square().sum(dim=1)


@dataclass(frozen=True)
class Question:
    """A prompt and the answer that should follow it, as token ids."""

    prompt: Sequence[int]
    answer: Sequence[int]


def questions(loaded: LoadedModel, seed: int) -> Iterator[Question]:
    """Pairs of random identifiers, one of whose values is asked for; the place asked moves from first to last.

    Raises:
        ModelError: not even two pairs fit the window.
    """
    draw = random.Random(f"{NAME}|{seed}")

    def name() -> str:
        return str(uuid.UUID(int=draw.getrandbits(128), version=4))

    def ids(text: str) -> list[int]:
        return list(loaded.tokenizer(text, verbose=False)["input_ids"])

    pairs = [(name(), name()) for _ in range(PROMPTS * PAIRS)]
    each = len(ids(_line(*pairs[0])))
    count = min(PAIRS, loaded.info.window // each - 3)
    if count < 2:
        raise ModelError(
            f"{loaded.info.name} has a window of {loaded.info.window} tokens, too short for prompts of pairs.",
            "Choose another model.",
        )
    for number in range(PROMPTS):
        own = pairs[number * PAIRS :][:count]
        key, value = own[(count - 1) * number // (PROMPTS - 1)]
        text = "".join(_line(*pair) for pair in own) + f'\nThe value of the key "{key}" is "'
        prompt, whole = ids(text), ids(text + value)
        yield Question(prompt, whole[len(prompt) :])


def _line(key: str, value: str) -> str:
    return f'"{key}": "{value}"\n'


def loss(loaded: LoadedModel, asked: Sequence[Question], channel: int | None) -> float:
    """Mean loss of the answers' tokens with a channel set to zero (None: with none), in nats."""
    total, count = 0.0, 0
    device = loaded.shape().device
    for question in asked:
        text = torch.tensor([[*question.prompt, *question.answer]], device=device)
        length, answer = text.shape[1], len(question.answer)
        positions = torch.arange(length, device=device)[None]
        channels, factor = ((0,), 1.0) if channel is None else ((channel,), 0.0)
        method = PositionalHidden(channels=channels, factor=factor, rows=answer + 1)
        with method.transform_model(loaded.model, length):
            cache = method.prefill_cache(loaded.shape(), length)
            logits = adapter.forward(loaded.model, text, positions, [cache], all_logits=True)[0]
        scores = torch.log_softmax(logits[-answer - 1 : -1].float(), dim=-1)
        total -= float(scores.gather(1, text[0, -answer:, None]).sum())
        count += answer
    return total / count
