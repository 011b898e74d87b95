"""Real engines, built by TensorRT-RTX on this processor: per rung, for every rank, with a cache, in half precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from families import family_checkpoint
from real_engines import SMALL, SMALL_CACHED, built, rtx

from nsn_edge.bundle import Bundle
from nsn_edge.bundle.engines import EngineDevice, check_usable, find_engine, read_records
from nsn_edge.checkpoint import Checkpoint
from nsn_edge.errors import EngineError
from nsn_edge.export.exporter import ExportConfig, export_bundle
from nsn_edge.export.tensorrt.builder import build_engine
from nsn_edge.export.tensorrt.network import parse, producers_of, values_of
from nsn_edge.export.tensorrt.plan import BuildConfig, plan_jobs
from nsn_edge.export.tensorrt.ranks import follow_ranks_
from nsn_edge.export.tensorrt.shapes import SizeRange
from nsn_edge.export.tensorrt.timing import TimingCache
from nsn_edge.export.tensorrt.weights import lower_precision_, multiply_out_

GPU = EngineDevice("NVIDIA GeForce RTX 3060", "8.6")


@pytest.fixture(scope="module")
def decoder_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    config = ExportConfig(fractions=(), ranks=(9,), forms=("static", "sliced"))
    return export_bundle(family_checkpoint("llama"), tmp_path_factory.mktemp("llama") / "bundle", config)


def test_an_engine_per_rung(wide_bundle: Bundle, tmp_path: Path) -> None:
    engines = built(wide_bundle, tmp_path)
    ranks = wide_bundle.manifest.ladder.ranks
    assert [engine.stored.record.rank for engine in engines] == list(ranks)
    assert all(engine.built for engine in engines)
    folder = engines[0].stored.path.parent
    assert folder.name == f"tensorrt_rtx-{rtx().version}-sm86"
    assert {path.suffix for path in folder.iterdir()} == {".engine", ".json"}
    assert {stored.record.rank for stored in read_records(folder)} == set(ranks)
    for rank in ranks:
        stored = find_engine(tmp_path, "tensorrt_rtx", rtx().version, GPU, f"rank-{rank:03}-fp32")
        check_usable(stored, wide_bundle.manifest, GPU, "tensorrt_rtx", rtx().version)
        (profile,) = stored.record.profiles
        assert profile.rank_range == (rank, rank)
        assert profile.inputs["input_ids"].max == (8, 32)


def test_one_engine_for_every_rank(wide_bundle: Bundle, tmp_path: Path) -> None:
    (engine,) = built(wide_bundle, tmp_path, kinds=("dynamic",))
    record = engine.stored.record
    assert (record.kind, record.form, record.rank) == ("dynamic", "sliced", None)
    ladder = wide_bundle.manifest.ladder
    assert [profile.rank for profile in record.profiles] == list(ladder.ranks)
    shapes = dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), (1, 16))
    for rank in range(1, ladder.max_rank + 1):
        inside = [profile for profile in record.profiles if profile.takes(rank, shapes)]
        assert [profile.rank for profile in inside] == [min(r for r in ladder.ranks if r >= rank)]


@pytest.mark.parametrize("follow", [True, False])
def test_the_builder_foresees_the_layer_ranks(
    wide_bundle: Bundle, follow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without our arithmetic it does not: it takes 1 for every layer rank and says so."""
    from nsn_edge.export.tensorrt import builder

    if not follow:
        monkeypatch.setattr(builder, "follow_ranks_", lambda network, curves: 0)
    library = rtx()
    (job,) = plan_jobs(wide_bundle, BuildConfig(kinds=("dynamic",), ranks=(128,), sizes=SMALL))
    device = library.device("sm86")
    build_engine(library, wide_bundle, job, device, TimingCache(None), lambda percent: None)
    blind = [message for message in library.messages.warnings if "kOPT" in message]
    assert bool(blind) is not follow


def test_layers_with_curves_of_their_own_are_followed(wide_bundle: Bundle) -> None:
    library = rtx()
    network = parse(library, wide_bundle.file(wide_bundle.graph(form="sliced")))
    curves = {layer.curve for layer in wide_bundle.manifest.ladder.layers}
    assert follow_ranks_(network, curves) == len(curves)
    assert follow_ranks_(parse(library, wide_bundle.file(wide_bundle.graph(40))), curves) == 0


def test_a_decoder_with_its_cache(decoder_bundle: Bundle, tmp_path: Path) -> None:
    engines = built(decoder_bundle, tmp_path, sizes=SMALL_CACHED, kinds=("rung", "dynamic"))
    assert [engine.stored.path.stem for engine in engines] == ["rank-009-fp32", "rank-032-fp32", "sliced-fp32"]
    assert [profile.rank_range for profile in engines[2].stored.record.profiles] == [(1, 9), (10, 32)]
    (with_two,) = built(decoder_bundle, tmp_path, sizes=SMALL_CACHED, ranks=(9,), decode_profile=True)
    assert "other options: decode_profile" in with_two.reason
    decode, prefill = with_two.stored.record.profiles
    config = BuildConfig(ranks=(9,), sizes=SMALL_CACHED, decode_profile=True)
    assert with_two.stored.record.size_bytes < plan_jobs(decoder_bundle, config)[0].expected_bytes
    assert decode.name == "rank 9, decode"
    assert decode.inputs["input_ids"].max == (1, 1)
    assert prefill.inputs["input_ids"].max == (1, 32)
    assert prefill.inputs["past_key_values.0.key"].min == (1, 2, 0, 8)
    assert prefill.inputs["attention_mask"].opt == (1, 32)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_halves_the_linear_weights(wide_bundle: Bundle, tmp_path: Path, precision: str) -> None:
    full, half = (built(wide_bundle, tmp_path, precision=p, ranks=(128,))[0].stored for p in ("fp32", precision))
    linear_bytes = 4 * wide_bundle.manifest.ladder.dense_macs
    saved_bytes = full.record.size_bytes - half.record.size_bytes
    assert 0.4 * linear_bytes < saved_bytes < 0.6 * linear_bytes
    assert half.path.stem == f"rank-128-{precision}"


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_sliced_weights_are_stored_in_halves(wide_bundle: Bundle, precision: str) -> None:
    """No linear layer of the network reads a float32 weight any more, sliced or not."""
    library = rtx()
    trt = library.module
    network = parse(library, wide_bundle.file(wide_bundle.graph(form="sliced")))
    outputs = [network.definition.get_output(i).name for i in range(network.definition.num_outputs)]
    layers = len(wide_bundle.manifest.ladder.layers)
    assert lower_precision_(network, precision) == 2 * layers
    low = trt.DataType.HALF if precision == "fp16" else trt.DataType.BF16
    producers = producers_of(network.layers())
    lowered = []
    for layer in network.layers():
        if layer.type != trt.LayerType.MATRIX_MULTIPLY:
            continue
        source = layer.get_input(1)
        while (maker := producers.get(source.name)) is not None and maker.type in (
            trt.LayerType.SHUFFLE,
            trt.LayerType.SLICE,
        ):
            source = maker.get_input(0)
        if maker is not None and maker.type == trt.LayerType.CONSTANT:
            lowered.append(source.dtype)
            assert layer.get_input(0).dtype == low
    assert lowered == [low] * (2 * layers)
    assert [network.definition.get_output(i).name for i in range(network.definition.num_outputs)] == outputs
    assert network.definition.get_output(0).dtype == trt.DataType.FLOAT


def test_bfloat16_is_rounded_to_nearest() -> None:
    import torch

    from nsn_edge.export.tensorrt.weights import _rounded

    values = np.random.default_rng(0).standard_normal(1000).astype(np.float32) * 10.0 ** np.arange(-20, 20).repeat(25)
    bits, _ = _rounded(values.astype(np.float32), "bf16", None)
    wanted = torch.from_numpy(values.astype(np.float32)).to(torch.bfloat16).view(torch.int16).numpy()
    assert np.array_equal(bits.view(np.int16), wanted)


def test_merged_layers_are_multiplied_out(wide_bundle: Bundle, wide_checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Their engine is that of the dense model in size, and holds the very products."""
    network = parse(rtx(), wide_bundle.file(wide_bundle.graph(120)))
    before = len(network.arrays)
    layers = wide_bundle.manifest.ladder.layers
    assert multiply_out_(network) == len(layers)
    products = network.arrays[before:]
    modules = dict(wide_checkpoint.model.named_modules())
    for layer in layers:
        module, rank = modules[layer.name], layer.curve(120)
        product = (module.A[:rank].T @ module.B[:rank]).detach().numpy()
        assert any(made.shape == product.shape and np.allclose(made, product, atol=1e-6) for made in products), (
            layer.name
        )
    engines = built(wide_bundle, tmp_path, ranks=(120, 128))
    merged, dense = (engine.stored.record.size_bytes for engine in engines)
    assert merged < 1.02 * dense


def test_shuffles_of_constants_are_evaluated() -> None:
    """Turn, reshape, turn again, against numpy."""
    library = rtx()
    trt = library.module
    from nsn_edge.export.tensorrt.network import Network

    builder = trt.Builder(library.logger)
    network = Network(library, builder, builder.create_network(0), None)
    left = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    right = np.random.default_rng(1).standard_normal((5, 6)).astype(np.float32)
    shuffle = network.definition.add_shuffle(network.constant(left))
    shuffle.first_transpose = (2, 0, 1)
    shuffle.reshape_dims = (6, 4)
    shuffle.second_transpose = (1, 0)
    product = network.definition.add_matrix_multiply(
        shuffle.get_output(0), trt.MatrixOperation.NONE, network.constant(right), trt.MatrixOperation.TRANSPOSE
    )
    reader = network.definition.add_identity(product.get_output(0))
    network.definition.mark_output(reader.get_output(0))
    assert multiply_out_(network) == 1
    wanted = left.transpose(2, 0, 1).reshape(6, 4).T @ right.T
    source = producers_of(network.layers())[reader.get_input(0).name]
    assert np.allclose(values_of(network, source), wanted, atol=1e-6)


def test_float32_is_not_rounded(wide_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT's default is TF32; ours is what was asked for."""
    from nsn_edge.export.tensorrt import builder

    flags = {}
    original = builder._set_options

    def spy(library: object, config: object, network: object, job: object) -> None:
        original(library, config, network, job)  # type: ignore[arg-type]
        flags[job.precision] = config.get_flag(rtx().module.BuilderFlag.TF32)  # type: ignore[attr-defined]

    monkeypatch.setattr(builder, "_set_options", spy)
    for precision in ("fp32", "tf32"):
        built(wide_bundle, tmp_path, precision=precision, ranks=(40,))
    assert flags == {"fp32": False, "tf32": True}


@pytest.mark.parametrize("device", [None, "sm80+", "sm75", "sm120"])
def test_devices_without_one(tmp_path: Path, device: str | None, tiny_bundle: tuple[Path, object]) -> None:
    library = rtx()
    if device is None and library.device(None).sm != "sm80+":
        pytest.skip("there is a GPU here, and engines are built for it")
    sizes = {"batch_size": SizeRange(1, 1, 4)}
    (engine,) = built(Bundle.open(tiny_bundle[0]), tmp_path, device=device, sizes=sizes, ranks=(5,), precision="fp16")
    assert engine.stored.record.device.sm == (device or "sm80+")


def test_outputs_keep_their_names_and_types(decoder_bundle: Bundle) -> None:
    """The logits come right out of a linear layer."""
    library = rtx()
    network = parse(library, decoder_bundle.file(decoder_bundle.graph(9)))

    def outputs() -> list[tuple[str, object]]:
        tensors = (network.definition.get_output(i) for i in range(network.definition.num_outputs))
        return sorted((tensor.name, tensor.dtype) for tensor in tensors)

    before = outputs()
    assert lower_precision_(network, "fp16") > 0
    assert outputs() == before


@pytest.mark.parametrize("device", ["sm86", "sm75"])
def test_a_model_exported_in_float16(tmp_path: Path, device: str) -> None:
    """Nothing is lowered: it is as it was exported. Turing takes it, which has no float32 products."""
    checkpoint = family_checkpoint("bert")
    checkpoint.model.half()
    config = ExportConfig(fractions=(), ranks=(30,), forms=("static", "sliced"))
    bundle = export_bundle(checkpoint, tmp_path / "bundle", config)
    (engine,) = built(bundle, tmp_path / "engines", device=device, ranks=(30,))
    assert (engine.stored.record.precision, engine.stored.record.device.sm) == ("fp16", device)
    network = parse(rtx(), bundle.file(bundle.graph(30)))
    before = len(network.arrays)
    assert multiply_out_(network) > 0
    assert {array.dtype for array in network.arrays[before:]} == {np.dtype(np.float16)}


def test_turing_has_no_float32_products(wide_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"could not build rank-040-fp32 .*SM75"):
        built(wide_bundle, tmp_path, device="sm75", ranks=(40,))
