"""Makes ``golden_longllmlingua.json``: what the package llmlingua 0.2.2 makes of our texts with a tiny random Llama.

Not run by the tests; see `golden_llmlingua2.py` for the two environments:

    PYTHONPATH=tests python tests/methods/golden_longllmlingua.py save FOLDER
    python tests/methods/golden_longllmlingua.py compress FOLDER

The committed file has three of the sixteen results, to keep the test fast.
"""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

SIZES = {"prose": 3000, "code": 2600}  # characters of `small_classifier.texts`
QUESTION = "Where does vidor keep the shubel?"
SETTINGS: dict[str, dict[str, Any]] = {
    "recommended": {"rate": 0.55, "reorder_context": "sort", "dynamic_context_compression_ratio": 0.3},
    "original": {"rate": 0.5, "reorder_context": "original", "dynamic_context_compression_ratio": 0.0},
    "two-stage": {"rate": 0.7, "reorder_context": "two_stage", "dynamic_context_compression_ratio": 0.4},
    "narrow": {"rate": 0.3, "reorder_context": "sort", "dynamic_context_compression_ratio": 0.2},
}


def documents(text: str) -> list[str]:
    """A text as five documents of unequal length."""
    size = len(text) // 9
    cuts = [0, size, 3 * size, 4 * size, 7 * size, len(text)]
    return [text[a:b].strip() for a, b in pairwise(cuts)]


def save(folder: Path) -> None:
    from small_classifier import texts
    from tiny import save_tiny

    save_tiny(folder / "tiny-llama", layers=2)
    written = folder / "tiny-llama" / "tokenizer_config.json"
    config = json.loads(written.read_text(encoding="utf-8"))
    written.write_text(json.dumps({**config, "tokenizer_class": "PreTrainedTokenizerFast"}), encoding="utf-8")
    ours = texts()
    chosen = {name: ours[name][:size] for name, size in SIZES.items()}
    (folder / "texts.json").write_text(json.dumps(chosen), encoding="utf-8")


def compress(folder: Path) -> None:
    import tiktoken

    class Stub:
        def encode(self, text: str) -> list[int]:
            return [0] * len(text)

    tiktoken.encoding_for_model = lambda name: Stub()
    from llmlingua import PromptCompressor

    compressor = PromptCompressor(str(folder / "tiny-llama"), device_map="cpu")
    found: dict[str, Any] = {}
    for name, text in json.loads((folder / "texts.json").read_text(encoding="utf-8")).items():
        for setting, options in SETTINGS.items():
            for many in (True, False):
                made = compressor.compress_prompt(
                    documents(text) if many else [text],
                    question=QUESTION,
                    condition_in_question="after_condition",
                    condition_compare=True,
                    context_budget="+100",
                    rank_method="longllmlingua",
                    concate_question=True,
                    **options,
                )
                key = f"{setting}/{'documents' if many else 'whole'}"
                found.setdefault(name, {})[key] = made["compressed_prompt"][: -len("\n\n" + QUESTION)]
    print(json.dumps(found, indent=0, ensure_ascii=True))


if __name__ == "__main__":
    (save if sys.argv[1] == "save" else compress)(Path(sys.argv[2]))
