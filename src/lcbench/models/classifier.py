"""Token classifiers: encoders that say of each token how much it is worth keeping (LLMLingua-2)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lcbench.config.spec import ModelSpec
from lcbench.errors import LcbenchError, ModelError
from lcbench.models import hub
from lcbench.models.identity import Say, weights_sha256
from lcbench.models.place import place
from lcbench.models.quiet import quiet
from lcbench.models.read import checked_weights


@dataclass(frozen=True)
class TokenClassifier:
    """A token classifier with two classes, of which 1 means "keep".

    Attributes:
        name: what the user asked for. model: a transformers token classifier in eval mode. tokenizer: its own.
        window: tokens it reads at once, special ones included. device: where it lies.
    """

    name: str
    model: Any
    tokenizer: Any
    window: int
    device: torch.device


@dataclass(frozen=True)
class FoundClassifier:
    """Where a classifier lies, before its weights are read.

    Attributes:
        where: folder or hub id. commit: of a hub id, else None. identity: commit, or hash of the weights.
    """

    where: str
    commit: hub.Commit | None
    identity: str

    @property
    def place(self) -> dict[str, Any]:
        """What `from_pretrained` is told besides the name."""
        if self.commit is None:
            return {}
        return {"revision": self.commit.sha, "local_files_only": self.commit.cached_only}


def find_classifier(name: str, option: str, home: Path, say: Say) -> FoundClassifier:
    """Where a classifier lies: a folder that exists, else the hub or its local cache.

    Args:
        option: how a user names another one, e.g. ``llmlingua2@model=FOLDER``: for the next step.

    Raises:
        ModelError: it is nowhere; says how to get it.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"{folder} has no config.json, so it is no model folder.", f"Give {option}.")
        return FoundClassifier(str(folder), None, weights_sha256(checked_weights(folder), home, say))
    try:
        commit = hub.commit_of(name, None)
    except LcbenchError as error:
        raise ModelError(
            f"Token classifier of {option.partition('@')[0]}: {error.message}",
            f"Download it where there is a network (hf download {name}), or give a local copy: {option}.",
        ) from None
    return FoundClassifier(name, commit, commit.sha)


def load_classifier(spec: ModelSpec, found: FoundClassifier, extra_tokens: list[str]) -> TokenClassifier:
    """Load a token classifier.

    Args:
        spec: its name, device and dtype. extra_tokens: added to its tokenizer as special tokens; embeddings of those
            that the checkpoint does not have are drawn from a fixed seed, with the mean and spread of its own.

    Raises:
        ModelError: it cannot be read, has not two classes, or does not fit.
    """
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    placement = place(replace(spec, load_in=None, attn="auto"))
    with _explained(spec.name), quiet():
        tokenizer = AutoTokenizer.from_pretrained(found.where, **found.place)
        model, report = AutoModelForTokenClassification.from_pretrained(
            found.where, dtype=placement.dtype, output_loading_info=True, **found.place
        )
        if report["missing_keys"]:
            missing = sorted(report["missing_keys"])
            raise ModelError(
                f"The weights of {spec.name} lack {len(missing)} of a token classifier's tensors, e.g. {missing[0]}.",
                "Choose a checkpoint that was trained to classify tokens.",
            )
        if int(model.config.num_labels) != 2:
            raise ModelError(
                f"{spec.name} sorts tokens into {model.config.num_labels} classes; two are needed, drop and keep.",
                "Choose an LLMLingua-2 checkpoint.",
            )
        tokenizer.add_special_tokens({"additional_special_tokens": extra_tokens})
        _grow(model, len(tokenizer))
        model = model.to(placement.device).eval()
    reach = int(model.config.max_position_embeddings)
    if model.config.model_type in ("xlm-roberta", "roberta"):
        reach -= int(model.config.pad_token_id or 0) + 1  # their positions begin behind the padding id
    return TokenClassifier(spec.name, model, tokenizer, reach, placement.device)


@torch.no_grad()
def _grow(model: Any, rows: int) -> None:
    """More embedding rows, each the mean of the others: what transformers from 4.46 on makes of them (its draws stray
    from it by 3e-5 deviations); older versions drew them, with mean 0."""
    table = model.get_input_embeddings().weight
    had = table.shape[0]
    if rows <= had:
        return
    model.resize_token_embeddings(rows, mean_resizing=False)
    table = model.get_input_embeddings().weight
    table[had:] = table[:had].float().mean(dim=0).to(table.dtype)


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    try:
        yield
    except (LcbenchError, KeyboardInterrupt):
        raise
    except (torch.OutOfMemoryError, MemoryError):
        raise ModelError(f"{name} does not fit into memory.", "Use --device cpu, or a smaller classifier.") from None
    except Exception as error:  # transformers raises many kinds here
        if hub.is_hub_failure(error):
            raise hub.explain(name, None, error) from None
        raise ModelError(
            f"{name} cannot be read as a token classifier: {hub.plain(error)}.",
            "Give a folder with config.json, weights and tokenizer of one.",
        ) from None
