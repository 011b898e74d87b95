"""Cutting a whole model: parity with the original, what is left alone, and what is refused before anything changes."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from transformers.pytorch_utils import Conv1D

from nsn_edge.calibration import collect_covariances
from nsn_edge.convert import NSNConfig, default_filter, nsnify_
from nsn_edge.errors import NsnEdgeError, UnsupportedModelError, UsageError
from nsn_edge.factorize import Covariance, factorize
from nsn_edge.layers import NSNLinear, at_dense, at_rank, ladder_of, nsn_layers

SVD = NSNConfig(method="svd")


def output(model: Any, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(**batch)[0]
    return result


@pytest.fixture(params=["bert", "gpt2"])
def model(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("method", ["whitened", "svd"])
def test_full_rank_and_dense_equal_the_original(model: Any, batch: dict[str, Tensor], method: str) -> None:
    expected = output(model, batch)
    covariances = collect_covariances(model, [batch], default_filter)
    ladder = nsnify_(model, NSNConfig(method=method), covariances=covariances)
    torch.testing.assert_close(output(model, batch), expected, atol=1e-5, rtol=1e-5)
    with at_rank(model, ladder.max_rank):
        torch.testing.assert_close(output(model, batch), expected, atol=1e-5, rtol=1e-5)
    with at_dense(model):
        torch.testing.assert_close(output(model, batch), expected, atol=1e-6, rtol=1e-6)
    with at_rank(model, 1):
        assert float((output(model, batch) - expected).abs().max()) > 1e-3


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_full_rank_is_close_in_half_precision(
    model: Any, batch: dict[str, Tensor], dtype: torch.dtype, tolerance: float
) -> None:
    expected = output(model, batch)
    model.to(dtype)
    nsnify_(model, SVD)
    assert {layer.A.dtype for layer in nsn_layers(model).values()} == {dtype}
    assert float((output(model, batch).float() - expected).abs().max()) < tolerance


def test_the_ladder_is_the_models(model: Any) -> None:
    ladder = nsnify_(model, SVD)
    assert ladder == ladder_of(model)
    assert ladder.rungs == ()
    assert {layer.curve.align for layer in ladder.layers} == {8}


def test_every_encoder_layer_is_cut_and_no_head(bert: Any, gpt2: Any) -> None:
    nsnify_(bert, SVD)
    assert len(nsn_layers(bert)) == 12
    assert type(bert.pooler.dense) is nn.Linear
    nsnify_(gpt2, SVD)
    assert len(nsn_layers(gpt2)) == 8
    assert type(gpt2.lm_head) is nn.Linear
    assert gpt2.lm_head.weight is gpt2.transformer.wte.weight


@pytest.mark.parametrize(
    ("fqn", "taken"),
    [
        ("encoder.layer.0.output.dense", True),
        ("score_net.0", True),
        ("decoder.out_proj", True),
        ("lm_head", False),
        ("classifier.dense", False),
        ("cls.predictions.decoder", False),
        ("bert.pooler.dense", False),
        ("qa_outputs", False),
    ],
)
def test_heads_are_known_by_whole_names(fqn: str, taken: bool) -> None:
    assert default_filter(nn.Linear(2, 2), fqn) is taken
    assert default_filter(Conv1D(2, 2), fqn) is taken
    assert default_filter(nn.LayerNorm(2), fqn) is False


@pytest.mark.parametrize("keep_dense", [True, False])
def test_conv1d_is_a_transposed_linear(keep_dense: bool) -> None:
    torch.manual_seed(0)
    original = nn.Sequential(Conv1D(nf=10, nx=6))
    nn.init.normal_(original[0].bias)
    nested = copy.deepcopy(original)
    nsnify_(nested, NSNConfig(method="svd", keep_dense=keep_dense))
    layer = nested[0]
    assert isinstance(layer, NSNLinear)
    assert (layer.in_features, layer.out_features) == (6, 10)
    x = torch.randn(4, 3, 6)
    torch.testing.assert_close(nested(x), original(x))
    if keep_dense:
        assert layer.weight is not None
        assert layer.weight.is_contiguous()
        with at_dense(nested):
            torch.testing.assert_close(nested(x), original(x))
    else:
        assert layer.weight is None


@pytest.mark.parametrize("bias", [True, False])
def test_a_bias_is_kept_and_none_is_invented(bias: bool) -> None:
    torch.manual_seed(0)
    original = nn.Sequential(nn.Linear(6, 9, bias=bias))
    nested = copy.deepcopy(original)
    nsnify_(nested, SVD)
    assert (nested[0].bias is not None) is bias
    x = torch.randn(5, 6)
    torch.testing.assert_close(nested(x), original(x))


def test_every_layer_is_cut_with_its_own_covariance(bert: Any, batch: dict[str, Tensor]) -> None:
    original = copy.deepcopy(bert)
    covariances = collect_covariances(bert, [batch], default_filter)
    nsnify_(bert, covariances=covariances)
    for name, layer in nsn_layers(bert).items():
        expected = factorize(original.get_submodule(name).weight, covariances[name])
        assert torch.equal(layer.A, expected.A)
        assert torch.equal(layer.B, expected.B)


def test_a_layer_without_tokens_falls_back_to_plain_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    plain = factorize(model[0].weight)
    with caplog.at_level(logging.WARNING, logger="nsn_edge"):
        nsnify_(model, covariances={"0": Covariance(torch.zeros(4, 4, dtype=torch.float64), 0)})
    assert "0 saw no calibration tokens" in caplog.text
    assert torch.equal(model[0].A, plain.A)


def test_progress_and_training_mode() -> None:
    heard: list[tuple[str, int, int]] = []
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4).eval())
    nsnify_(model, SVD, progress=lambda *event: heard.append(event))
    assert heard == [("factorize", 1, 2), ("factorize", 2, 2)]
    assert [layer.training for layer in model] == [True, False]


def test_a_nested_model_learns_at_any_rank(bert: Any, batch: dict[str, Tensor]) -> None:
    nsnify_(bert, SVD)
    layer = next(iter(nsn_layers(bert).values()))
    with at_rank(bert, 8):
        bert(**batch)[0].square().sum().backward()
    assert layer.A.grad is not None
    assert layer.A.grad[:8].abs().sum() > 0
    assert not layer.A.grad[8:].any()


class TestRefused:
    """And the model is untouched."""

    @staticmethod
    def refuse(model: nn.Module, match: str, error: type[NsnEdgeError] = UnsupportedModelError, **options: Any) -> None:
        before = {name: type(module) for name, module in model.named_modules()}
        with pytest.raises(error, match=match):
            nsnify_(model, **{"config": SVD, **options})
        assert {name: type(module) for name, module in model.named_modules()} == before

    def test_nothing_to_cut(self) -> None:
        self.refuse(nn.Sequential(nn.LayerNorm(3)), "no linear layers to cut")
        self.refuse(nn.Sequential(nn.Linear(3, 3)), "no linear layers to cut", filter_fn=lambda module, fqn: False)

    def test_a_single_layer(self) -> None:
        self.refuse(nn.Linear(3, 3), "itself a single Linear")

    def test_a_nested_model(self, bert: Any) -> None:
        nsnify_(bert, SVD)
        self.refuse(bert, "already nested")

    def test_a_layer_type_that_cannot_be_cut(self) -> None:
        model = nn.Sequential(nn.Linear(3, 3), nn.Conv2d(3, 3, 1))
        self.refuse(
            model, r"'1' is a torch.nn.*Conv2d.*torch.nn.Linear and", filter_fn=lambda m, fqn: fqn in ("0", "1")
        )

    def test_a_linear_that_computes_something_else(self) -> None:
        model = nn.Sequential(nn.Linear(3, 3), parametrizations.weight_norm(nn.Linear(3, 3)))
        self.refuse(model, "'1' is a .*ParametrizedLinear")

    def test_an_integer_weight(self) -> None:
        model = nn.Sequential(nn.Linear(3, 3))
        model[0].weight = nn.Parameter(torch.zeros(3, 3, dtype=torch.int8), requires_grad=False)
        self.refuse(model, "'0' is a .*floating-point")

    def test_a_block_that_reads_weights_without_calling_the_layer(self) -> None:
        """torch's encoder layer would go on with the dense weight and ignore every rank."""
        block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        for model, fqn in ((block, "linear1"), (nn.Sequential(block), "0.linear1")):
            match = f"'{fqn}' cannot be cut: TransformerEncoderLayer reads its weight"
            self.refuse(model, match, filter_fn=lambda module, name, fqn=fqn: name == fqn)

    def test_missing_covariances(self) -> None:
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        some = {"0": Covariance(torch.eye(3, dtype=torch.float64), 1)}
        for given in (None, {}, some):
            self.refuse(model, "collect_covariances", UsageError, config=None, covariances=given)

    def test_another_models_covariances(self) -> None:
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        foreign = {name: Covariance(torch.eye(n, dtype=torch.float64), 1) for name, n in (("0", 3), ("1", 4))}
        self.refuse(model, "'1' is of 4 features", UsageError, config=None, covariances=foreign)

    @pytest.mark.parametrize("poison", [float("nan"), float("inf")])
    def test_numbers_that_are_not_finite_in_the_last_layer(self, poison: float) -> None:
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        good, bad = torch.eye(3, dtype=torch.float64), torch.full((3, 3), poison, dtype=torch.float64)
        covariances = {"0": Covariance(good, 1), "1": Covariance(bad, 1)}
        self.refuse(model, "input covariance of '1'", NsnEdgeError, config=None, covariances=covariances)
        with torch.no_grad():
            model[1].weight[0, 0] = poison
        self.refuse(model, "weight of '1'", NsnEdgeError)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"method": "pca"}, "unknown method 'pca' .*whitened, svd"),
        ({"align": 0}, "alignment"),
        ({"align": 8.0}, "alignment"),
        ({"align": True}, "alignment"),
        ({"keep_dense": 1}, "keep_dense"),
    ],
)
def test_a_bad_config_is_refused_on_construction(options: dict[str, Any], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        NSNConfig(**options)
