"""Architectures that run on the cache they bring along (`models.native`), and what must be known to feed each.

``python -m lcbench.models.families docs/architectures.md`` writes their table into that page.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

BEGIN, END = "<!-- table of families: made by `make docs` -->", "<!-- end of the table -->"


@dataclass(frozen=True)
class Family:
    """What must be known of an architecture to feed it.

    Attributes:
        title: as people write it.
        layers: what its layers are, for people.
        continues: several tokens may be fed into a cache that is not empty. Where that is wrong (the state so far is
            ignored), they go in one by one.
        on_modules: attributes of its modules that hold state, for an architecture whose cache object does not.
        scans: reading a prompt makes the states of all its tokens at once, layer by layer.
        stacks: all that is held are states of fixed size, so that several sequences, however long, can take a step as
            one batch. (Not RWKV-4: its class mixes the rows of a batch up when it is fed single tokens.)
    """

    title: str
    layers: str
    continues: bool = True
    on_modules: tuple[str, ...] = ()
    scans: bool = False
    stacks: bool = False


_MAMBA_1, _MAMBA_2 = "Mamba-1", "Mamba-2"
_DELTA = "gated delta rule"

#: By ``model_type`` of the config. What each entry says is held to by tests on random weights of every class.
FAMILIES: Mapping[str, Family] = {
    "mamba": Family("Mamba", _MAMBA_1, continues=False, scans=True, stacks=True),
    "falcon_mamba": Family("FalconMamba", _MAMBA_1, continues=False, scans=True, stacks=True),
    "mamba2": Family("Mamba-2", _MAMBA_2, stacks=True),
    "rwkv": Family("RWKV-4", "RWKV-4 time mixing"),
    "rwkv5": Family("RWKV-5", "RWKV-5 time mixing (lcbench's own code)", stacks=True),
    "xlstm": Family("xLSTM", "mLSTM"),
    "recurrent_gemma": Family(
        "RecurrentGemma",
        "RG-LRU, sliding attention",
        continues=False,
        on_modules=("conv1d_state", "recurrent_states"),
    ),
    "jamba": Family("Jamba", f"{_MAMBA_1}, attention, experts", continues=False, scans=True),
    "zamba": Family("Zamba", f"{_MAMBA_1}, one shared attention block", continues=False, scans=True),
    "zamba2": Family("Zamba2", f"{_MAMBA_2}, shared attention blocks"),
    "bamba": Family("Bamba", f"{_MAMBA_2}, attention"),
    "granitemoehybrid": Family("GraniteMoeHybrid", f"{_MAMBA_2}, attention, experts"),
    "falcon_h1": Family("Falcon-H1", f"{_MAMBA_2} and attention side by side"),
    "nemotron_h": Family("Nemotron-H", f"{_MAMBA_2}, attention, MLP"),
    "lfm2": Family("LFM2", "short convolution, attention"),
    "lfm2_moe": Family("LFM2-MoE", "short convolution, attention, experts"),
    "lfm3": Family("LFM3", "short convolution, attention, sliding attention"),
    "zaya": Family("Zaya", "attention with short convolutions, experts"),
    "qwen3_next": Family("Qwen3-Next", f"{_DELTA}, attention, experts"),
    "qwen3_5_text": Family("Qwen3.5", f"{_DELTA}, attention"),
    "qwen3_5_moe_text": Family("Qwen3.5-MoE", f"{_DELTA}, attention, experts"),
    "qwen4_exp_text": Family("Qwen4-Exp", f"{_DELTA}, indexed attention, n-gram embeddings, experts"),
    "inkling_text": Family("Inkling", "attention and sliding attention with short convolutions, experts"),
    "inkling2_text": Family("Inkling-2", "attention and sliding attention with short convolutions, experts"),
    "olmo_hybrid": Family("OLMo-Hybrid", f"{_DELTA}, attention"),
    "minimax": Family("MiniMax", "lightning attention, attention, experts", continues=False),
    "mha2mla": Family("MHA2MLA", "latent attention, partial RoPE (lcbench's own code)"),
    "kimi_linear": Family("Kimi-Linear", "Kimi delta attention, latent attention, experts"),
    "bailing_hybrid": Family("Bailing-Hybrid", "Kimi delta attention, latent attention, experts"),
}


def titles() -> list[str]:
    """Names of all families as people write them, in alphabetical order."""
    return sorted((family.title for family in FAMILIES.values()), key=str.lower)


def named(name: str) -> tuple[str, Family] | None:
    """The ``model_type`` and family that someone may mean by a name, however it is written; None for no such."""
    wanted = _letters(name)
    return next(
        ((kind, one) for kind, one in FAMILIES.items() if wanted in (_letters(kind), _letters(one.title))), None
    )


def _letters(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


_OWN_CODE = "#rwkv-5-and-mha2mla"


def table() -> str:
    """The families as a Markdown table. What was run is what the tests hold every one of them to, by the numbers of
    the list below it (`tests/models/test_native.py`, `tests/engine/test_native_models.py`)."""
    lines = [
        "| architecture | `model_type` | layers | read in chunks | answers decode | state lies in | what was run |",
        "|---|---|---|---|---|---|---|",
    ]
    for model_type, family in FAMILIES.items():
        place = "its modules" if family.on_modules else "its cache"
        chunks = "yes" if family.continues else "no"
        decode = "together" if family.stacks else "one by one"
        run = "random weights, 1 to 6" + (f"; converted, [below]({_OWN_CODE})" if "own code" in family.layers else "")
        cells = (family.title, f"`{model_type}`", family.layers, chunks, decode, place, run)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def with_table(page: str) -> str:
    """A page with the table between its two marks made anew."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(with_table(path.read_text(encoding="utf-8")), encoding="utf-8")
