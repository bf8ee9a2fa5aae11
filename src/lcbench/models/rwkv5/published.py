"""The published RWKV-5 checkpoints: one ``.pth`` file of named tensors, turned into a model folder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lcbench.errors import ModelError
from lcbench.models.rwkv5.modeling import Rwkv5Config, Rwkv5ForCausalLM
from lcbench.models.rwkv5.tokenizer import RwkvWorldTokenizer

_PROMPT = (
    "{% for message in messages %}{{ 'User: ' if message['role'] == 'user' else 'Assistant: ' }}"
    "{{ message['content'] }}\n\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)


def read(file: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint; no code in it is run. Raises ModelError for a file that holds none."""
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever the bytes lead it into
        why = error.strerror if isinstance(error, OSError) and error.strerror else "it is no file of tensors"
        raise ModelError(f"{file} cannot be read as a checkpoint: {why}.", "Give the published .pth file.") from None
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ModelError(f"{file} does not hold named tensors.", "Give the published .pth file.")
    return found


def config_of(tensors: dict[str, Tensor], file: Path) -> Rwkv5Config:
    """Sizes, from the shapes of the tensors; the trained length from ``ctx4096`` in the file's name, else 4096.

    Raises:
        ModelError: another generation of RWKV.
    """
    decay, gate = tensors.get("blocks.0.att.time_decay"), tensors.get("blocks.0.att.gate.weight")
    if decay is None or gate is None or decay.ndim != 2 or "blocks.0.att.time_mix_k" not in tensors:
        kind = "RWKV-6 or later" if "blocks.0.att.time_maa_k" in tensors else "RWKV-4, an early RWKV-5, or no RWKV"
        raise ModelError(
            f"{file.name} is not an RWKV-5.2 checkpoint but {kind}.", "RWKV-4 runs through transformers' own class."
        )
    vocabulary, width = tensors["emb.weight"].shape
    length = re.search(r"ctx(\d+)", file.name)
    return Rwkv5Config(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=1 + max(int(m[1]) for name in tensors if (m := re.match(r"blocks\.(\d+)\.", name))),
        head_size=decay.shape[1],
        attention_hidden_size=tensors["blocks.0.att.key.weight"].shape[0],
        intermediate_size=tensors["blocks.0.ffn.key.weight"].shape[0],
        context_length=int(length[1]) if length else 4096,
    )


def model_of(file: Path) -> Rwkv5ForCausalLM:
    """The model, in the dtype of its file. Raises ModelError as `read` and `config_of`, and for missing tensors."""
    tensors = read(file)
    config = config_of(tensors, file)
    model: Rwkv5ForCausalLM = Rwkv5ForCausalLM._from_config(config, dtype=tensors["emb.weight"].dtype)
    wanted = model.state_dict()
    missing, more = sorted(set(wanted) - set(tensors)), sorted(set(tensors) - set(wanted))
    if missing or more:
        what = f"lacks {missing[0]}" if missing else f"has {more[0]}, which RWKV-5 does not know"
        raise ModelError(f"{file.name} {what}.", "Give the published .pth file of an RWKV-5 model.")
    model.load_state_dict({name: tensors[name].reshape(wanted[name].shape) for name in wanted})
    model.eval()
    return model


def tokenizer_of(vocabulary: Path) -> Any:
    """The World tokenizer with the models' two-turn prompt. Raises ModelError for a file that is no vocabulary."""
    try:
        tokenizer = RwkvWorldTokenizer(str(vocabulary))
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ModelError(
            f"{vocabulary} cannot be read as a World vocabulary: {why}.", "Give the published file."
        ) from None
    tokenizer.chat_template = _PROMPT
    return tokenizer
