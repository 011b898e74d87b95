"""What a graph file says, read without the onnx package, against what the onnx package reads."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper
from tiny_bundle import TinyModel

from nsn_edge.bundle import Bundle, TensorSpec
from nsn_edge.errors import EngineError
from nsn_edge.runtimes.engines.graph_file import external_tensors, graph_inputs

TinyBundle = tuple[Path, TinyModel]


def test_external_tensors_are_those_that_onnx_reads(tiny_bundle: TinyBundle) -> None:
    graphs = sorted(tiny_bundle[0].glob("*.onnx"))
    assert len(graphs) > 3
    for path in graphs:
        expected = []
        for tensor in onnx.load(path, load_external_data=False).graph.initializer:
            if tensor.data_location == TensorProto.EXTERNAL:
                entries = {entry.key: entry.value for entry in tensor.external_data}
                dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type).name
                place = (path.parent / entries["location"], int(entries["offset"]), int(entries["length"]))
                expected.append((tensor.name, dtype, tuple(tensor.dims), *place))
        found = [(t.name, t.dtype, t.shape, t.file, t.offset, t.size_bytes) for t in external_tensors(path)]
        assert found == expected


def test_inputs_are_those_of_the_manifest(tiny_bundle: TinyBundle) -> None:
    manifest = Bundle.open(tiny_bundle[0]).manifest
    assert graph_inputs(tiny_bundle[0] / "rank-005.onnx") == list(manifest.inputs)
    assert TensorSpec("rank", "int64", ()) in graph_inputs(tiny_bundle[0] / "sliced.onnx")


def test_packed_sizes_and_types_that_numpy_lacks(tmp_path: Path) -> None:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT16, dims=(300, 2))
    brain = TensorProto(name="b", data_type=TensorProto.BFLOAT16, dims=(4,))
    for proto in (tensor, brain):
        proto.data_location = TensorProto.EXTERNAL
        proto.external_data.add(key="location", value="w.bin")  # no offset: it begins the file
    path = tmp_path / "g.onnx"
    # Some writers pack the sizes into one field: number 1, length-delimited, 300 = 0xac 0x02.
    unpacked, packed = b"\x08\xac\x02\x08\x02", b"\x0a\x03\xac\x02\x02"
    for sizes in (unpacked, packed):
        model = helper.make_model(helper.make_graph([], "g", [], [], [tensor, brain])).SerializeToString()
        grown = tensor.SerializeToString()
        assert unpacked in grown
        replaced = TensorProto.FromString(grown.replace(unpacked, sizes))
        assert list(replaced.dims) == [300, 2]
        body = model.replace(grown, grown.replace(unpacked, sizes))
        path.write_bytes(body)  # both encodings take five bytes, so every length before stays right
        (found,) = external_tensors(path)
        assert (found.name, found.shape, found.dtype, found.offset) == ("w", (300, 2), "float16", 0)


@pytest.mark.parametrize("content", [b"", b"not a graph", b"\x3a\xff\x01abc", b"\x3a\x80"])
def test_files_that_are_no_graph(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "g.onnx"
    path.write_bytes(content)
    with pytest.raises(EngineError, match=r"g\.onnx is no ONNX graph"):
        external_tensors(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"g\.onnx cannot be read: No such file"):
        graph_inputs(tmp_path / "g.onnx")
