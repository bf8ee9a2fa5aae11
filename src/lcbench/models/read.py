"""Reading a checkpoint with transformers: config, skeleton, tokenizer, weights; each failure in one sentence."""

from __future__ import annotations

import contextlib
import copy
import importlib.metadata
import importlib.util
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lcbench.config.spec import ModelSpec
from lcbench.errors import LcbenchError, ModelError
from lcbench.models import clex_checkpoint, hub, own, support
from lcbench.models.hub import plain
from lcbench.models.identity import weight_files
from lcbench.models.place import Placement, quantization
from lcbench.models.quiet import quiet

_AGAIN = "Download it again, or choose another model."


@dataclass(frozen=True)
class Reader:
    """One checkpoint. ``where`` is a folder, or a hub id of which ``commit`` is meant."""

    spec: ModelSpec
    where: str
    commit: hub.Commit | None

    @property
    def _place(self) -> dict[str, Any]:
        if self.commit is None:
            return {}
        return {"revision": self.commit.sha, "local_files_only": self.commit.cached_only}

    @property
    def _options(self) -> dict[str, Any]:
        return {**self._place, "trust_remote_code": self.spec.trust_remote_code}

    def config(self) -> Any:
        """The transformers config. Raises ModelError: not JSON, an unknown family, code that is not trusted."""
        from transformers import AutoConfig, PreTrainedConfig

        own.register()
        with self._explained("config"):
            raw, _ = PreTrainedConfig.get_config_dict(self.where, **self._place)
            if clex_checkpoint.is_clex(raw):
                return clex_checkpoint.plain_config(raw)
            return AutoConfig.from_pretrained(self.where, **self._options)

    def skeleton(self, config: Any, dtype: torch.dtype, *, with_generation: bool = True) -> Any:
        """The model without memory for its weights (meta device), checked to be one that lcbench can serve.

        Args:
            with_generation: also read generation_config.json, where there is one.

        Raises:
            ModelError: not a causal language model, or an unsupported one.
        """
        from transformers import AutoModelForCausalLM, GenerationConfig

        with self._explained("config"), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                copy.deepcopy(config),
                dtype=dtype,
                trust_remote_code=self.spec.trust_remote_code,
                attn_implementation="eager",
            )
        support.check(model)
        if with_generation:
            with quiet(), contextlib.suppress(OSError):  # most base models have none
                model.generation_config = GenerationConfig.from_pretrained(self.where, **self._place)
        return model

    def tokenizer(self) -> Any:
        """The tokenizer. Raises ModelError when there is none that can be read."""
        from transformers import AutoTokenizer

        with self._explained("tokenizer"):
            return AutoTokenizer.from_pretrained(self.where, **self._options)

    def weights(self, config: Any, placement: Placement) -> Any:
        """The model in eval mode on its device.

        Raises:
            ModelError: damaged or incomplete weights, or not enough memory.
        """
        from transformers import AutoModelForCausalLM

        more: dict[str, Any] = {}
        quantized = quantization(placement)
        if quantized is not None:
            more["quantization_config"] = quantized
        direct = placement.device.type == "cuda" and importlib.util.find_spec("accelerate") is not None
        if direct:
            more["device_map"] = "auto" if placement.spread else {"": placement.device}
        with self._explained("weights"):
            model, report = AutoModelForCausalLM.from_pretrained(
                self.where,
                config=config,
                dtype=placement.dtype,
                attn_implementation="eager",
                output_loading_info=True,
                **self._options,
                **more,
            )
            if not direct:
                model = model.to(placement.device)
        missing = sorted(report["missing_keys"])
        if missing:
            raise ModelError(
                f"The weights of {self.spec.name} lack {len(missing)} of the model's tensors, e.g. {missing[0]}.",
                _AGAIN,
            )
        return model.eval()

    @contextlib.contextmanager
    def _explained(self, part: str) -> Iterator[None]:
        try:
            with quiet():
                yield
        except (LcbenchError, KeyboardInterrupt):
            raise
        except (torch.OutOfMemoryError, MemoryError):
            raise ModelError(
                f"{self.spec.name} does not fit into memory on the device asked for.",
                "Use --dtype bfloat16, --load-in 4bit (GPU) or a smaller model.",
            ) from None
        except Exception as error:  # transformers raises OSError, ValueError, ImportError, RuntimeError and others here
            raise self._failure(part, error) from None

    def _failure(self, part: str, error: Exception) -> LcbenchError:
        name, text = self.spec.name, str(error)
        unknown = part == "config" and "does not recognize this architecture" in text
        if "trust_remote_code" in text or (unknown and self._ships_code() and not self.spec.trust_remote_code):
            return ModelError(
                f"{name} runs Python code that its repository ships, which is off unless asked for.",
                "Read that code; if you trust it, add --trust-remote-code.",
            )
        if hub.is_hub_failure(error):
            return hub.explain(name, self.spec.revision, error)
        if "Unrecognized configuration class" in text:
            return ModelError(f"{name} is not a causal language model.", "Choose a model that generates text.")
        if unknown:
            version = importlib.metadata.version("transformers")
            return ModelError(
                f"transformers {version} does not know the architecture of {name}.", "Run: pip install -U transformers"
            )
        if part == "tokenizer" and "instantiate the backend tokenizer" in text:
            return ModelError(
                f"{name} has no tokenizer: neither tokenizer.json nor tokenizer.model is beside its weights.",
                "Put the model's tokenizer files there; `lcbench inspect --token-ids FILE` needs none.",
            )
        if part == "tokenizer":
            return ModelError(f"{name} has no tokenizer that can be read: {plain(error)}.", _AGAIN)
        if part == "config":
            return ModelError(f"The config.json of {name} cannot be used: {plain(error)}.", _AGAIN)
        return ModelError(f"The weights of {name} cannot be read: {plain(error)}.", _AGAIN)

    def _ships_code(self) -> bool:
        try:
            config = json.loads((Path(self.where) / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return isinstance(config, dict) and bool(config.get("auto_map"))


def checked_weights(folder: Path) -> list[Path]:
    """The weight files of a folder, each with a header that fits its size.

    Raises:
        ModelError: a file is absent, cut short, or only a pointer to a file that was never fetched.
    """
    from safetensors import SafetensorError, safe_open

    files = weight_files(folder)
    for file in files:
        with file.open("rb") as opened:
            start = opened.read(24)
        if start.startswith(b"version https://git-lfs"):
            raise ModelError(f"{file} is a Git LFS pointer, not the weights themselves.", "Run `git lfs pull` there.")
        if file.suffix != ".safetensors":
            continue
        try:
            with safe_open(file, framework="pt"):
                pass
        except SafetensorError as error:
            raise ModelError(f"{file} is damaged or cut short: {plain(error)}.", _AGAIN) from None
    return files
