"""Makes ``golden_llmlingua2.json``: what the package llmlingua 0.2.2 makes of our texts with our classifiers.

Not run by the tests. The package needs transformers below 5, so it has an environment of its own:

    PYTHONPATH=tests python tests/methods/golden_llmlingua2.py save FOLDER     (in lcbench's environment)
    python tests/methods/golden_llmlingua2.py compress FOLDER [OTHER.json]     (where llmlingua is; OTHER: name to text)

tiktoken's vocabulary is not asked for: words are weighed by `weigh`, in the package and in the test alike.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

RATES = {"2x": 0.5, "4x": 0.25, "6x": 1 / 6, "8x": 0.125}
FORCE = ["\n", ".", "!", "?", ","]
SETTINGS: dict[str, dict[str, Any]] = {
    **{name: {"rate": rate, "force_tokens": FORCE, "drop_consecutive": True} for name, rate in RATES.items()},
    "plain": {"rate": 0.3},
    "digits": {"rate": 0.2, "force_tokens": ["\n", "?"], "force_reserve_digit": True},
}


def weigh(word: str) -> int:
    """Stands for the number of tokens of a word."""
    return 1 + len(word) // 4


def save(folder: Path) -> None:
    from small_classifier import BARE, KINDS, save_classifier, texts

    for kind in (*KINDS, BARE):
        written = save_classifier(folder, kind) / "tokenizer_config.json"
        config = json.loads(written.read_text(encoding="utf-8"))
        written.write_text(json.dumps({**config, "tokenizer_class": "PreTrainedTokenizerFast"}), encoding="utf-8")
    (folder / "texts.json").write_text(json.dumps(texts()), encoding="utf-8")


def compress(folder: Path, other: Path | None) -> None:
    import tiktoken

    class Stub:
        def encode(self, text: str) -> list[int]:
            return [0] * weigh(text)

    tiktoken.encoding_for_model = lambda name: Stub()
    from llmlingua import PromptCompressor

    texts = json.loads((other or folder / "texts.json").read_text(encoding="utf-8"))
    found: dict[str, Any] = {}
    for model in sorted(folder.glob("tiny-*")):
        compressor = PromptCompressor(str(model), device_map="cpu", use_llmlingua2=True)
        for setting, options in SETTINGS.items():
            for name, text in texts.items():
                made = compressor.compress_prompt_llmlingua2([text], chunk_end_tokens=[".", "\n"], **options)
                found.setdefault(model.name, {}).setdefault(setting, {})[name] = made["compressed_prompt"]
    print(json.dumps(found, indent=0, ensure_ascii=True))


if __name__ == "__main__":
    if sys.argv[1] == "save":
        save(Path(sys.argv[2]))
    else:
        compress(Path(sys.argv[2]), Path(sys.argv[3]) if len(sys.argv) > 3 else None)
