"""The context extensions that replace rotary frequencies: their formulas, transformers' own scaling, what they leave
behind, which models they refuse, and that other methods work on the extended model."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import harness
import pytest
import torch
from cases_extend import dprope_choices
from harness import LAYERS, SHAPE, force, largest_difference, models, prefill, tokens
from torch import Tensor

from lcbench.errors import BadValue, LcbenchError, ModelError
from lcbench.methods.base import Method
from lcbench.methods.extend.dprope import distances, interpolated
from lcbench.methods.extension import Extension, RopeChange, Trained
from lcbench.methods.registry import all_methods, resolve
from lcbench.models import adapter
from lcbench.models.rope_facts import RopeFacts, inverse_frequencies, rope_facts
from tiny import loaded_tiny, tiny_model

WINDOW = 64
PROMPT, STEPS = 150, 64
LLAMA2 = Trained(10000.0, 128, 4096)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with harness.one_thread():
        yield


def angles(spec: str, model: Trained, length: int = 0) -> tuple[Tensor, float]:
    method = resolve(spec)
    assert isinstance(method, RopeChange)
    return method.angles(model, length)


def pair_of(family: str = "llama") -> tuple[Any, Any]:
    """Ours and a plain copy, trained for 64 tokens."""
    plain = tiny_model(family, window=WINDOW)
    ours = copy.deepcopy(plain)
    adapter.install(ours)
    return ours, plain


def forced(model: Any, method: Method, ids: Tensor, prompt: int = PROMPT) -> Tensor:
    """Logits of what follows the prompt, token by token."""
    pair = harness.Models("", model, None, None)
    with method.transform_model(model, len(ids)):
        left = method.compress(prefill(pair, ids[:prompt], method))
        return force(pair, left, ids[prompt:])


def rebuilt(plain: Any, **rope: Any) -> Any:
    """The plain model's weights in a transformers model with other rope_parameters."""
    config = copy.deepcopy(plain.config)
    config.rope_parameters = {**config.rope_parameters, **rope}
    other = type(plain)._from_config(config, attn_implementation="sdpa")
    other.load_state_dict(plain.state_dict())
    return other.eval()


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize(
    ("spec", "rope"),
    [
        ("pi@factor=4", {"rope_type": "linear", "factor": 4.0}),
        ("yarn@factor=4", {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": WINDOW}),
        (
            "yarn@factor=8,beta_fast=4,beta_slow=0.5,attention_factor=1.5",
            {
                "rope_type": "yarn",
                "factor": 8.0,
                "original_max_position_embeddings": WINDOW,
                "beta_fast": 4,
                "beta_slow": 0.5,
                "attention_factor": 1.5,
            },
        ),
        ("dynamic-ntk@factor=2", {"rope_type": "dynamic", "factor": 2.0}),
        ("ntk@factor=4", {"rope_type": "default", "rope_theta": 10000.0 * 4 ** (32 / 30)}),
        ("rope-theta@ratio=32", {"rope_type": "default", "rope_theta": 320000.0}),
    ],
)
def test_token_by_token_equals_the_scaling_of_transformers_over_the_whole_text(
    spec: str, rope: dict[str, Any], family: str
) -> None:
    """transformers is given the text at once, so that its "dynamic" has one base for all of it."""
    ours, plain = pair_of(family)
    ids = tokens(PROMPT + STEPS, seed=1)
    with torch.inference_mode():
        expected = rebuilt(plain, **rope)(input_ids=ids[None]).logits[0, PROMPT:]
        unchanged = plain(input_ids=ids[None]).logits[0, PROMPT:]
    assert largest_difference(forced(ours, resolve(spec), ids), expected) < 1e-4
    assert largest_difference(expected, unchanged) > 0.1


@pytest.mark.parametrize(
    "spec", ["pi@factor=1", "ntk@factor=1", "yarn@factor=1", "rope-theta@ratio=1", "dprope@factor=1"]
)
def test_a_factor_of_one_changes_no_bit(spec: str) -> None:
    ours, _ = pair_of()
    ids = tokens(PROMPT + 8, seed=2)
    assert torch.equal(forced(ours, resolve(spec), ids), forced(ours, resolve("full"), ids))


def test_dynamic_ntk_leaves_short_texts_alone_and_remembers_no_long_one() -> None:
    ours, _ = pair_of()
    method = resolve("dynamic-ntk@factor=2")
    short, long = tokens(WINDOW, seed=3), tokens(PROMPT + STEPS, seed=4)
    first = forced(ours, method, short, 40)
    assert torch.equal(first, forced(ours, resolve("full"), short, 40))
    after = forced(ours, method, long)
    assert torch.equal(forced(ours, method, short, 40), first)
    assert torch.equal(forced(ours, method, long), after)
    last = angles("dynamic-ntk@factor=2", Trained(1e4, 32, WINDOW), 214)[0][-1]
    assert float(inverse_frequencies(1e4, 32)[-1] / last) == pytest.approx(2 * 214 / WINDOW - 1, rel=1e-5)
    assert torch.equal(angles("dynamic-ntk@least=100", LLAMA2, 5)[0], inverse_frequencies(1e4, 128))
    frozen = angles("dynamic-ntk@factor=2,least=32768", LLAMA2, 5000)[0]
    assert torch.equal(frozen, inverse_frequencies(1e4 * 15 ** (128 / 126), 128))


def test_pi_is_the_plain_model_at_fractional_positions() -> None:
    ours, plain = pair_of()
    ids = tokens(PROMPT + STEPS, seed=5)
    with torch.inference_mode():
        expected = plain(input_ids=ids[None], position_ids=torch.arange(len(ids))[None] / 4).logits[0, PROMPT:]
    assert largest_difference(forced(ours, resolve("pi@factor=4"), ids), expected) < 1e-4


def test_published_numbers_of_llama_2() -> None:
    own = inverse_frequencies(1e4, 128)
    yarn, scaling = angles("yarn@factor=8", LLAMA2)
    ratio = own / yarn
    assert scaling == pytest.approx(1.20794, abs=1e-5)
    assert next(i for i in range(64) if float(ratio[i]) != 1) == 21
    assert torch.allclose(ratio[46:], torch.full((18,), 8.0))
    assert float(ratio[45]) < 7.9
    assert float(ratio[33]) == pytest.approx(1.778, abs=1e-3)
    ntk, _ = angles("ntk@factor=4", LLAMA2)
    assert float(ntk[0]) == 1.0
    assert float(own[-1] / ntk[-1]) == pytest.approx(4.0, rel=1e-5)
    theta, _ = angles("rope-theta@ratio=32", Trained(5e5, 128, 8192))
    assert float(theta[1]) == pytest.approx(1.6e7 ** (-2 / 128), rel=1e-6)
    assert float(theta[0]) == 1.0


@pytest.mark.parametrize("base", [1e4, 5e5, 1e6])
@pytest.mark.parametrize(("factor", "window"), [(2.0, 4096), (8.0, 4096), (4.0, 32768), (1.0, 512)])
def test_yarn_is_the_library_s(base: float, factor: float, window: int) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {"rope_type": "yarn", "rope_theta": base, "factor": factor, "original_max_position_embeddings": window}
    config = LlamaConfig(hidden_size=256, num_attention_heads=2, head_dim=128, rope_parameters=rope)
    expected, scaling = ROPE_INIT_FUNCTIONS["yarn"](config, torch.device("cpu"))
    mine = angles(f"yarn@factor={factor:g}", Trained(base, 128, window))
    assert torch.allclose(mine[0], expected, rtol=1e-6)
    assert mine[1] == pytest.approx(scaling)


@pytest.mark.parametrize(
    ("theta", "dims", "window", "factor"), [(1e4, 16, 300, 4.0), (1e4, 32, 64, 2.0), (500.0, 12, 200, 3.0)]
)
def test_dprope_choices_are_those_of_the_loops(theta: float, dims: int, window: int, factor: float) -> None:
    chosen = interpolated(theta, dims, window, factor)
    assert chosen.tolist() == dprope_choices(theta, dims, window, factor)
    turns = torch.tensor([2 * math.pi * theta ** (2 * i / dims) for i in range(dims // 2)])
    assert chosen[turns > factor * window].all()
    kept, divided = distances(theta, dims, window, factor)
    total = torch.where(chosen, divided, kept).sum()
    assert total <= kept.sum()
    assert total <= divided.sum()


def test_dprope_on_llama_2() -> None:
    assert int(interpolated(1e4, 128, 4096, 4.0).sum()) == 42
    assert int(interpolated(1e4, 128, 4096, 2.0).sum()) == 46
    assert interpolated(1e4, 128, 4096, 4.0)[31:].all()


def rope_changes() -> list[str]:
    return [name for name, cls in all_methods().items() if issubclass(cls, RopeChange) and name != "clex"]


@pytest.mark.parametrize("name", rope_changes())
def test_the_loaded_model_changes_and_is_put_back(name: str) -> None:
    ours, _ = pair_of()
    rotary = ours.model.rotary_emb
    before = {key: value.clone() for key, value in rotary.named_buffers()}

    def broken_off() -> None:
        with resolve(name).transform_model(ours, 1000):
            assert float(rotary.inv_freq[-1]) < 0.9 * float(before["inv_freq"][-1])
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        broken_off()
    assert {key: value.tolist() for key, value in rotary.named_buffers()} == {
        key: value.tolist() for key, value in before.items()
    }
    assert rotary.attention_scaling == 1.0


@pytest.mark.parametrize(
    ("spec", "trained", "window"),
    [
        ("full", 4096, 4096),
        ("kivi", 4096, 4096),
        ("quest", 4096, 4096),
        ("infllm", 4095, 4095),  # its window is larger
        ("pi@factor=2.5", 4096, 10240),
        ("ntk@factor=2,reach=9000", 4096, 9000),
        ("dynamic-ntk", 4096, None),
        ("dynamic-ntk@reach=65536", 4096, 65536),
        ("yarn@factor=4", 4096, 16384),
        ("yarn@factor=4,original=2048", 4096, 8192),
        ("yarn@factor=1", 4096, 4096),
        ("dprope@factor=2", 4096, 8192),
        ("yarn@factor=4+snapkv@budget=0.25", 4096, 16384),
        ("yarn@factor=4+snapkv+kivi", 4096, 16384),
    ],
)
def test_the_window_that_is_served(spec: str, trained: int, window: int | None) -> None:
    assert resolve(spec).window_of(trained) == window


def test_rope_theta_serves_what_its_slowest_pair_says() -> None:
    loaded = loaded_tiny(window=1000, head_dim=128, heads=2, kv_heads=1)
    bound = resolve("rope-theta@ratio=32").bind(loaded.info, Path())
    assert bound.window_of(1000) == int(1000 * 32 ** (126 / 128)) == 30313
    assert bound.id == "rope-theta@ratio=32"


@pytest.mark.parametrize(
    ("family", "config", "words"),
    [
        (
            "llama",
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
            r"already \(linear\)",
        ),
        (
            "gpt_oss",
            {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4}},
            r"already \(yarn\)",
        ),
        ("gemma3", {}, "each kind of layer"),
    ],
)
@pytest.mark.parametrize("name", rope_changes())
def test_models_that_cannot_be_extended_are_refused_in_a_sentence(
    family: str, config: dict[str, Any], words: str, name: str
) -> None:
    loaded = loaded_tiny(family, **config)
    for spec in (name, f"{name}+kivi"):
        with pytest.raises(ModelError, match=words) as refusal:
            resolve(spec).bind(loaded.info, Path())
        assert "\n" not in refusal.value.message


def test_a_model_without_angles_is_refused() -> None:
    loaded = loaded_tiny()
    info = type(loaded.info)(**{**vars(loaded.info), "rope": RopeFacts()})
    with pytest.raises(ModelError, match="no rotary position embedding"):
        resolve("yarn").bind(info, Path())


@pytest.mark.parametrize(
    "family", ["llama", "mistral", "qwen2", "qwen3", "phi3", "gemma2", "smollm3", "olmo2", "falcon"]
)
def test_facts_are_read_without_weights(family: str) -> None:
    facts = rope_facts(tiny_model(family))
    assert (facts.kind, facts.dims) == ("default", 32)
    assert facts.theta >= 10000


INNER = ["snapkv@budget=0.25", "kivi@bits=4,group_size=16,residual_length=16", "h2o", "quest@budget=16,page_size=4"]
INNER += [
    "snapkv@budget=40+kivi@group_size=16,residual_length=16",
    "streamingllm-longctx",
    "infllm@n_local=24,exc_block_size=16,n_init=4",
    "kvmerger",
]
INNER += ["expected-attention", "longcache@global_size=4,local_size=16,scope=24,chunk_size=8,align=8"]


@pytest.mark.parametrize("inner", INNER)
def test_other_methods_on_the_extended_model_are_those_of_a_model_made_so(inner: str) -> None:
    """Methods that rotate, too: the same on transformers' own yarn model behind lcbench's attention."""
    ours, plain = pair_of()
    made = rebuilt(plain, rope_type="yarn", factor=4.0, original_max_position_embeddings=WINDOW)
    adapter.install(made)
    ids = tokens(PROMPT + 24, seed=6)
    results = []
    for model, spec in ((ours, f"yarn@factor=4+{inner}"), (made, inner)):
        method = resolve(spec)
        pair = harness.Models("", model, None, None)
        torch.manual_seed(3)
        with method.transform_model(model, len(ids)):
            left = method.compress(prefill(pair, ids[:PROMPT], method))
            nbytes = left.nbytes
            results.append((force(pair, left, ids[PROMPT:]), nbytes))
    assert largest_difference(results[0][0], results[1][0]) < 1e-4
    assert results[0][1] == results[1][1]
    plainly = forced(ours, resolve(inner), ids)
    assert largest_difference(results[0][0], plainly) > 0.01


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("kivi+yarn", "yarn changes the model and comes first"),
        ("snapkv+pi+kivi", "pi changes the model and comes first"),
        ("yarn+pi", "extends the model twice"),
        ("yarn+full", "full adds nothing to yarn"),
        ("yarn+kivi+snapkv", "quantizes before it drops"),
        ("yarn@beta_slow=40", "not below beta_fast"),
        ("pi@factor=0.5", "below the least value 1"),
        ("pi@factor=much", "not a number"),
        ("dynamic-ntk@reach=0", "below the least value 1"),
    ],
)
def test_what_does_not_go_together_is_refused(spec: str, words: str) -> None:
    with pytest.raises(LcbenchError, match=words) as refusal:
        resolve(spec)
    assert "\n" not in refusal.value.message


def test_identity_of_a_composition() -> None:
    method = resolve("yarn@factor=4+snapkv@budget=0.25")
    assert (method.id, method.name, method.reading) == (
        "yarn@factor=4+snapkv@budget=0.25",
        "yarn+snapkv",
        "yarn@factor=4",
    )
    assert resolve(method.id) == method
    assert method.paper == "arXiv:2309.00071, arXiv:2404.14469"
    assert (method.traits.family, method.traits.prefill) == ("evict", "own")
    assert method.parameters["yarn.factor"] == "4"
    assert method.parameters["snapkv.budget"] == "0.25"
    three = resolve("yarn+snapkv+kivi@bits=2")
    assert three.parameters["kivi.bits"] == "2"
    assert resolve("yarn+infllm").reading is None
    assert not resolve("dynamic-ntk+kivi").traits.stackable
    with pytest.raises(LcbenchError, match="does not divide"):
        resolve("yarn+kivi@group_size=64,residual_length=64").check(SHAPE)


def test_every_extension_says_what_it_serves() -> None:
    for name, cls in all_methods().items():
        if issubclass(cls, Extension):
            assert cls.traits.family == "extend", name
            assert cls.traits.prefill == "own", name
            assert resolve(f"{name}@reach=77").window_of(5) == 77


def test_another_model_of_the_same_class_is_left_alone() -> None:
    ours, other = pair_of()[0], pair_of()[0]
    ids = tokens(100, seed=7)
    plain = forced(other, resolve("full"), ids, 90)
    with resolve("pi").transform_model(ours, 100):
        assert torch.equal(forced(other, resolve("full"), ids, 90), plain)
    assert len(models("llama").ours.model.layers) == LAYERS


def test_buffers_that_are_not_what_the_config_says_are_refused() -> None:
    ours, _ = pair_of()
    ours.model.rotary_emb.inv_freq = ours.model.rotary_emb.inv_freq * 0.5
    with pytest.raises(ModelError, match="not what its config says"), resolve("pi").transform_model(ours, 10):
        pass


def test_bad_value_is_the_kind_of_error() -> None:
    with pytest.raises(BadValue):
        resolve("kivi+yarn")
