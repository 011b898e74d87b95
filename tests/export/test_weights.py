"""The prefix store: what goes in comes out, any prefix of it, once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nsn_edge.errors import ExportError
from nsn_edge.export.weights import PAGE, WEIGHTS_NAME, WeightStore


def tensor(array: np.ndarray) -> ir.TensorProtocol:
    return ir.Tensor(array)


@settings(max_examples=30, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 60)), min_size=1, max_size=6),
    dtype=st.sampled_from([np.float32, np.float16, np.int64]),
    data=st.data(),
)
def test_every_prefix_reads_back(
    shapes: list[tuple[int, int]], dtype: type, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("store")
    rng = np.random.default_rng(0)
    arrays = {f"t{i}": rng.integers(0, 999, shape).astype(dtype) for i, shape in enumerate(shapes)}
    with WeightStore(folder) as store:
        for name, array in arrays.items():
            store.add(name, tensor(array))
    for name, array in arrays.items():
        rows = data.draw(st.integers(1, array.shape[0]))
        np.testing.assert_array_equal(store.reference(name, rows).numpy(), array[:rows])
        np.testing.assert_array_equal(store.reference(name).numpy(), array)


def test_equal_tensors_are_stored_once(tmp_path: Path) -> None:
    array = np.arange(4096, dtype=np.float32)
    with WeightStore(tmp_path) as store:
        store.add("embedding", tensor(array))
        store.add("tied", tensor(array.copy()))
        store.add("embedding", tensor(array))
        store.add("same bytes, another shape", tensor(array.reshape(64, 64)))
    assert store.reference("embedding").offset == store.reference("tied").offset
    assert (tmp_path / WEIGHTS_NAME).stat().st_size == 2 * array.nbytes


def test_large_tensors_start_on_a_page_and_small_ones_do_not_waste_one(tmp_path: Path) -> None:
    with WeightStore(tmp_path) as store:
        store.add("small", tensor(np.ones(3, np.float32)))
        store.add("also small", tensor(np.ones(5, np.float32)))
        store.add("large", tensor(np.ones(PAGE, np.float32)))
    assert store.reference("also small").offset == 64
    assert store.reference("large").offset == PAGE


def test_one_name_for_two_tensors_is_refused(tmp_path: Path) -> None:
    with WeightStore(tmp_path) as store:
        store.add("a", tensor(np.ones((2, 3), np.float32)))
        with pytest.raises(ExportError, match="two different tensors are both called 'a'"):
            store.add("a", tensor(np.ones((3, 2), np.float32)))
