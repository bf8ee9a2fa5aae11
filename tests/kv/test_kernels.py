"""KIVI's kernels: on a GPU where there is one, else in Triton's interpreter; against the torch stores."""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch
from torch import Tensor

from lcbench.kv import kernels
from lcbench.kv.cache import KVCache
from lcbench.kv.kernels.pages import TOKENS, PageLayout, Row, from_planes, read, to_planes, write
from lcbench.kv.layer import LayerKV
from lcbench.kv.packing import quantize
from lcbench.methods.quantize.kivi import KiviLayer
from lcbench.models import adapter
from lcbench.models.rule import AttentionRule
from tiny import tiny_model

GPU = torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1"  # set in conftest where there is none
DEVICE = torch.device("cuda" if GPU else "cpu")
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


@pytest.fixture(autouse=True)
def _switch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(kernels.SWITCH, "interpret")


def text(heads: int, n: int, d: int, seed: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Keys and values ``[Hk, n, d]``; a key channel with an offset, as real models have."""
    generator = torch.Generator().manual_seed(seed)
    key, value = torch.randn(2, heads, n, d, generator=generator)
    key[:, :, 3] += 4
    return key.to(DEVICE, dtype), value.to(DEVICE, dtype)


def kivi(heads: int, n: int, d: int, *, seed: int, bits: int = 2, dtype: torch.dtype = torch.float32) -> KiviLayer:
    return KiviLayer(*text(heads, n, d, seed, dtype), bits=bits, group=32, residual=TOKENS)


def new_tokens(rows: int, heads: int, kv_heads: int, d: int, seed: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Query ``[R, H, 1, d]``, key and value ``[R, Hk, 1, d]``."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(rows, h, 1, d, generator=generator).to(DEVICE, dtype) for h in (heads, kv_heads, kv_heads))


def one_by_one(stores: list[KiviLayer], query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule) -> Tensor:
    """The reference: every row by itself, in torch."""
    return LayerKV.attend_rows.__func__(KiviLayer, stores, query, key, value, rule)  # type: ignore[attr-defined]


def error(out: Tensor, reference: Tensor) -> float:
    return float((out.double() - reference.double()).norm() / reference.double().norm())


def same(a: Row, b: Row) -> bool:
    tensors = [(*r.keys.tensors(), *r.values.tensors(), r.exact_keys, r.exact_values) for r in (a, b)]
    return a.tokens == b.tokens and all(torch.equal(x, y) for x, y in zip(*tensors, strict=True))


# --- pages, in torch ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 4])
def test_planes_hold_every_code(bits: int) -> None:
    codes = torch.randint(2**bits, (3, 64, 24), generator=torch.Generator().manual_seed(bits))
    words = to_planes(codes, bits)
    assert words.dtype == torch.int16
    assert words.shape == (3, 3, 64 * bits // 16, 8)
    assert torch.equal(from_planes(words, bits), codes)
    w, x, plane = 2, 13, 3
    code = words[1, x // 8, w, x % 8].item() >> (bits * plane) & (2**bits - 1)
    assert code == codes[1, plane * words.shape[2] + w, x]


@pytest.mark.parametrize(("bits", "d", "group"), [(2, 128, 32), (4, 64, 32), (2, 64, 64)])
def test_a_page_is_as_large_as_what_it_holds(bits: int, d: int, group: int) -> None:
    """Bytes of 128 keys and 128 values of one head, and the same tensors back."""
    layout = PageLayout(bits, group, d)
    assert layout.serves()
    assert 2 * layout.record == 2 * TOKENS * d * bits // 8 + 2 * 4 * TOKENS * d // group
    key, value = text(2, 3 * TOKENS, d, seed=1)
    keys, values = quantize(key.transpose(1, 2), bits, group), quantize(value[:, :300], bits, group)
    records = torch.empty(3, 2, layout.record, dtype=torch.int16, device=DEVICE)
    write(records, layout, keys, values)
    back = read(records, layout, 300)
    for mine, theirs in zip((keys, values), back, strict=True):
        assert mine.shape == theirs.shape
        assert all(torch.equal(a, b) for a, b in zip(mine.tensors(), theirs.tensors(), strict=True))


@pytest.mark.parametrize(("bits", "group", "d"), [(8, 32, 128), (2, 32, 48), (4, 16, 128), (2, 128, 64), (2, 32, 512)])
def test_layouts_the_kernels_do_not_read(bits: int, group: int, d: int) -> None:
    assert not PageLayout(bits, group, d).serves()


# --- the kernels ----------------------------------------------------------------------------------------------------

CASES = [
    # bits, d, g, tokens held before the step
    (2, 64, 4, (1, 127, 128)),
    (2, 128, 1, (255, 300)),
    (4, 64, 8, (383, 129)),
    (4, 128, 3, (520,)),
]


@needs_triton
@pytest.mark.parametrize(("bits", "d", "g", "lengths"), CASES)
def test_a_step_equals_the_rows_one_by_one(bits: int, d: int, g: int, lengths: tuple[int, ...]) -> None:
    """Ragged rows in one launch, over a flush; output close, and afterwards the same bits are stored."""
    _compare(bits, d, g, lengths, steps=2, dtype=torch.float16, kv_heads=1, bound=4e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason="no GPU")
@needs_triton
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("d", [64, 128])
@pytest.mark.parametrize("g", [1, 4, 8])
@pytest.mark.parametrize("bits", [2, 4])
def test_many_steps_on_a_gpu(bits: int, g: int, d: int, dtype: torch.dtype) -> None:
    lengths = (1, 60, 127, 128, 300, 510, 1023, 1025, 2047, 4000)
    _compare(
        bits, d, g, lengths, steps=140, dtype=dtype, kv_heads=2, bound=2e-2, seed=int.from_bytes(os.urandom(3), "big")
    )  # fresh ones each time; printed


def _compare(
    bits: int, d: int, g: int, lengths: tuple[int, ...], *, steps: int, dtype: torch.dtype, kv_heads: int,
    bound: float, seed: int = 0,
) -> None:  # fmt: skip
    print("seed", seed)
    stores = [kivi(kv_heads, n, d, seed=seed + i, bits=bits, dtype=dtype) for i, n in enumerate(lengths)]
    plain = [store.fork() for store in stores]
    rule = AttentionRule(d**-0.5)
    for step in range(steps):
        tokens = new_tokens(len(lengths), kv_heads * g, kv_heads, d, seed + 100 + step, dtype)
        out = KiviLayer.attend_rows(stores, *tokens, rule)
        assert all(store.place is not None for store in stores)
        assert out.dtype == dtype
        assert error(out, one_by_one(plain, *tokens, rule)) < bound
    assert all(same(a.row(), b.row()) for a, b in zip(stores, plain, strict=True))


@needs_triton
@pytest.mark.parametrize("bits", [2, 4])
def test_a_prompt_is_packed_bit_for_bit(bits: int) -> None:
    """Against `quantize`, with groups that are constant, tiny, huge and beyond fp16."""
    from lcbench.kv.kernels.batch import PagedBatch

    key, value = text(2, 300, 64, seed=2)
    key[0, :32, 5] = 0.25
    value[1, 7, :32] *= 1e-7
    key[1, 40:90, 6] *= 3e4
    value[0, 9] *= 1e6
    arena = PagedBatch(PageLayout(bits, 32, 64), 2, 1, 1, dtype=torch.float32, device=DEVICE)
    arena.fill(0, key, value)
    layer = KiviLayer(key, value, bits=bits, group=32, residual=TOKENS)
    assert same(arena.row(0), layer.row())


@needs_triton
def test_a_wrong_page_shows() -> None:
    """The comparison can fail: two pages of a row exchanged."""
    store = kivi(1, 400, 64, seed=3, dtype=torch.float16)
    plain = store.fork()
    rule = AttentionRule(0.125)
    tokens = new_tokens(1, 4, 1, 64, 5, torch.float16)
    KiviLayer.attend_rows([store], *tokens, rule)
    one_by_one([plain], *tokens, rule)
    assert store.place is not None
    table = store.place.arena.table
    table[0, [0, 2]] = table[0, [2, 0]]  # the last page is not a full one: its first values are exact
    tokens = new_tokens(1, 4, 1, 64, 6, torch.float16)
    assert error(KiviLayer.attend_rows([store], *tokens, rule), one_by_one([plain], *tokens, rule)) > 0.05


@needs_triton
def test_rows_come_and_go() -> None:
    """Two settings in one batch, rows leave and join, forks and bytes in between: as if each were alone."""
    rule = AttentionRule(0.125)
    stores = [kivi(1, n, 64, seed=n, bits=bits, dtype=torch.float16) for n, bits in ((140, 2), (130, 4), (255, 2))]
    plain = [store.fork() for store in stores]

    def step(which: list[int], seed: int) -> None:
        tokens = new_tokens(len(which), 2, 1, 64, seed, torch.float16)
        out = KiviLayer.attend_rows([stores[i] for i in which], *tokens, rule)
        assert error(out, one_by_one([plain[i] for i in which], *tokens, rule)) < 4e-3

    step([0, 1, 2], 1)
    arena = stores[0].place.arena  # type: ignore[union-attr]
    assert stores[2].place is not None
    assert stores[2].place.arena is arena
    assert stores[1].place is not None
    assert stores[1].place.arena is not arena
    step([2, 0], 2)
    assert stores[0].place.arena is arena  # type: ignore[union-attr]
    assert stores[0].nbytes == plain[0].nbytes == stores[0].storage_nbytes
    twin, other = stores[0].fork(), plain[0].fork()
    assert twin.place is None
    stores.append(twin)
    plain.append(other)
    step([0, 3], 3)  # one of them is new: both move
    assert stores[0].place.arena is stores[3].place.arena is not arena  # type: ignore[union-attr]
    step([0], 4)
    assert torch.equal(stores[3].positions(), plain[3].positions())
    assert all(same(a.row(), b.row()) for a, b in zip(stores, plain, strict=True))
    free = len(stores[3].place.arena._free)  # type: ignore[union-attr]
    kept = stores[0].place.arena  # type: ignore[union-attr]
    del stores[3], twin
    assert len(kept._free) == free + 1


@needs_triton
def test_what_the_kernels_do_not_do_stays_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def housed(rule: AttentionRule, q: int = 1, **store: int) -> bool:
        settings = {"bits": 2, "group": 32, "residual": 128, **store}
        layer = KiviLayer(*text(1, 70, 64, 0, torch.float16), **settings)
        tokens = (torch.randn(1, heads, q, 64, device=DEVICE, dtype=torch.float16) for heads in (2, 1, 1))
        KiviLayer.attend_rows([layer], *tokens, rule)
        return layer.place is not None

    assert housed(AttentionRule(1.0))
    assert housed(AttentionRule(1.0, window=128))
    assert not housed(AttentionRule(1.0, window=64))
    assert not housed(AttentionRule(1.0, softcap=30.0))
    assert not housed(AttentionRule(1.0, sinks=torch.zeros(2, device=DEVICE)))
    assert not housed(AttentionRule(1.0), q=2)
    assert not housed(AttentionRule(1.0), bits=8)
    assert not housed(AttentionRule(1.0), residual=64)
    monkeypatch.setenv(kernels.SWITCH, "0")
    assert not housed(AttentionRule(1.0))


@needs_triton
def test_rows_that_stay_with_torch_take_no_others_with_them() -> None:
    def made(chosen: tuple[int, ...]) -> Tensor:
        stores = [
            KiviLayer(*text(1, 200 + r, 64, r, torch.float16), bits=2, group=32, residual=(128, 64, 128)[r])
            for r in chosen
        ]
        query, key, value = new_tokens(3, 2, 1, 64, 7, torch.float16)
        rows = list(chosen)
        out = KiviLayer.attend_rows(stores, query[rows], key[rows], value[rows], AttentionRule(0.1))
        assert [store.place is not None for store in stores] == [r != 1 for r in chosen]
        return out

    together = made((0, 1, 2))
    for r in range(3):
        assert torch.equal(made((r,))[0], together[r])


@needs_triton
def test_a_model_decodes_alike_either_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits of two ragged rows through transformers and the adapter, over a flush of the second."""
    model = tiny_model(layers=2, heads=4, kv_heads=2, head_dim=64, dtype=torch.float16 if GPU else torch.float32)
    model.to(DEVICE)
    adapter.install(model)
    lengths = (140, 127)

    def decode(switch: str) -> Tensor:
        monkeypatch.setenv(kernels.SWITCH, switch)
        caches = [
            KVCache([kivi(2, n, 64, seed=10 * n + layer, dtype=model.dtype) for layer in range(2)]) for n in lengths
        ]
        logits = []
        for step in range(2):
            tokens = torch.tensor([[5 + step], [90 + step]], device=DEVICE)
            places = torch.tensor([[n + step] for n in lengths], device=DEVICE)
            logits.append(adapter.forward(model, tokens, places, caches))
        assert (caches[0].layers[0].place is not None) == (switch != "0")  # type: ignore[attr-defined]
        return torch.cat(logits, dim=1)

    assert error(decode("interpret"), decode("0")) < 1e-2
