"""Products by oneDNN: equal to torch's, and a row is the same whatever stands beside it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lcbench.models import adapter, linear
from tiny import tiny_model

needs_onednn = pytest.mark.skipif(not linear._ONEDNN, reason="no oneDNN on this processor")


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(1, 48), (7, 48), (2, 5, 48), (1, 1, 48), (3, 0, 48)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_product_equals_torch(shape: tuple[int, ...], with_bias: bool) -> None:
    weight, bias = rows(80, 48, seed=1), rows(80, seed=2) if with_bias else None
    with torch.inference_mode():
        made = linear.product(rows(*shape), weight, bias)
        expected = nn.functional.linear(rows(*shape).double(), weight.double(), None if bias is None else bias.double())
    assert made.shape == expected.shape
    torch.testing.assert_close(made.double(), expected, rtol=1e-5, atol=1e-5)


@needs_onednn
@pytest.mark.parametrize(("inner", "outer"), [(48, 80), (576, 192), (1536, 576)])
def test_a_row_does_not_depend_on_its_neighbours(inner: int, outer: int) -> None:
    weight, some = rows(outer, inner, seed=1), rows(40, inner)
    with torch.inference_mode():
        together = linear.product(some, weight)
        for count in (1, 2, 3, 5, 17):
            assert torch.equal(linear.product(some[:count], weight), together[:count])


@needs_onednn
def test_torch_multiplies_where_onednn_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def poor(*args: object) -> torch.Tensor:
        raise RuntimeError(said[-1])

    weight, some = rows(80, 48, seed=1), rows(3, 48)
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", poor)
    with torch.inference_mode():
        for words in linear.OUT_OF_MEMORY:
            said.append(words)
            assert torch.equal(linear.product(some, weight), nn.functional.linear(some, weight))
        said.append("mat1 and mat2 shapes cannot be multiplied")
        with pytest.raises(RuntimeError, match="shapes"):
            linear.product(some, weight)


def test_gradients_flow() -> None:
    layer = nn.Linear(8, 4)
    linear.by_onednn(layer)
    layer(rows(3, 8)).sum().backward()
    assert layer.weight.grad is not None


def test_other_dtypes_are_left_to_torch() -> None:
    layer = nn.Linear(8, 4, dtype=torch.float64)
    linear.by_onednn(layer)
    with torch.inference_mode():
        torch.testing.assert_close(
            layer(rows(3, 8).double()), nn.functional.linear(rows(3, 8).double(), layer.weight, layer.bias)
        )


@needs_onednn
def test_plain_layers_are_exchanged_and_given_back() -> None:
    model = tiny_model("llama")
    adapter.install(model)
    kinds = {type(module) for module in model.modules() if isinstance(module, nn.Linear)}
    assert kinds == {linear.OneDNNLinear}
    linear.by_torch(model)
    assert {type(module) for module in model.modules() if isinstance(module, nn.Linear)} == {nn.Linear}


def test_subclasses_keep_their_own_product() -> None:
    class Doubled(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(input)

    layer = Doubled(8, 4)
    linear.by_onednn(layer)
    assert type(layer) is Doubled
