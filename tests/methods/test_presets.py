"""``2x 4x 6x 8x`` are the settings of "KV Cache Compression, But What Must We Give in Return?" to the token.

The numbers are those of the paper's configurations: Llama-3-8B prompts count up to 7500 tokens, LongChat-7B and
Mistral-7B prompts up to 31500; StreamingLLM and InfLLM read longer prompts whole and still count so many.
"""

from __future__ import annotations

from typing import Any

import pytest

from lcbench.methods.registry import resolve

NAMES = ("2x", "4x", "6x", "8x")
STREAMING = {
    7500: [(78, 3672), (39, 1836), (26, 1249), (19, 918)],
    31500: [(330, 15420), (165, 7710), (112, 5243), (82, 3855)],
}
INFLLM = {  # first tokens, looked-up blocks, newest tokens
    7500: [(78, 9, 2520), (39, 4, 1324), (26, 3, 865), (19, 2, 662)],
    31500: [(330, 39, 10428), (165, 19, 5278), (112, 13, 3579), (82, 9, 2703)],
    2000: [(21, 2, 723), (10, 1, 512), (7, 0, 512), (5, 0, 512)],  # 512: tokens that are read together at least
}


@pytest.mark.parametrize("number", range(4), ids=NAMES)
def test_every_row_of_the_table(number: int) -> None:
    preset = NAMES[number]
    h2o: Any = resolve(f"h2o-longctx@{preset}")
    limits = h2o.limits(7500 + 1)
    assert (limits.heavy, limits.recent) == ((1875, 937, 622, 468)[number],) * 2
    for prompt, rows in STREAMING.items():
        for length in (prompt, prompt + 12345):
            streaming: Any = resolve(f"streamingllm-longctx@{preset},cap={prompt}")
            assert streaming.sizes(length) == rows[number]
    for prompt, wanted in INFLLM.items():
        infllm: Any = resolve(f"infllm@{preset},cap={max(prompt, 7500)}")
        n_init, n_local, topk = infllm.sizes(prompt)
        assert (n_init, topk, n_local) == wanted[number]
    kept: Any = resolve(f"snapkv@{preset}")  # ours have no such settings; the same share of the prompt
    assert kept.kept_tokens(7500) == (3750, 1875, 1275, 937)[number]


def test_quantizers_have_the_same_setting_in_every_column() -> None:
    for bits in (2, 4):
        kivi = resolve(f"kivi@bits={bits},group_size=32,residual_length=128").parameters
        assert kivi == resolve(f"kivi@bits={bits}").parameters
    assert resolve("flexgen-longctx").parameters == {"bits": "4", "group_size": "32"}
