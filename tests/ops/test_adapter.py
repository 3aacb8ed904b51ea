"""The ONNX Runtime library: what it refuses and how it says so, poisoned outputs, NaN, ties, threads, big offsets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from ultramem_deploy.ops import Operator, sparse_gate, sparse_lookup, tucker_topk

from .backends import ELEMENTS, case_model, model, ort_value, runtime, session
from .cases import ENCODINGS, Case, normal, quantised

Failure = onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument


def lookup(
    addresses: object, table: tuple[int, ...] = (6, 8), scores: tuple[int, ...] = (1, 2, 2), blocks: int = 2
) -> Case:
    """A SparseLookup problem of these shapes, right or wrong."""
    values, weights = normal(0, table, scores)
    inputs = {"table": values, "addresses": torch.tensor(addresses), "scores": weights}
    return Case(sparse_lookup.OPERATOR, inputs, {"blocks": blocks})


def encoded(dtype: torch.dtype, encoding: str, scales: int | None = 6) -> Case:
    """A SparseLookup problem of 6 rows in this dtype, said to be of this encoding, with so many scales."""
    case = lookup([[0, 1]], blocks=1)
    inputs = case.inputs | {"table": case.inputs["table"].to(dtype)}
    inputs |= {"scales": torch.ones(scales)} if scales is not None else {}
    return Case(case.operator, inputs, case.attributes | {"encoding": ENCODINGS.index(encoding)})


def gate(addresses: object, table: tuple[int, ...] = (6, 8), x: tuple[int, ...] = (1, 8), activation: int = 0) -> Case:
    """A SparseGate problem of these shapes, right or wrong."""
    values, vector = normal(0, table, x)
    inputs = {"table": values, "addresses": torch.tensor(addresses), "x": vector}
    return Case(sparse_gate.OPERATOR, inputs, {"activation": activation})


def retrieval(k: int = 2, **shapes: tuple[int, ...]) -> Case:
    """A TuckerTopK problem of two tokens, heads, ranks and cores, 5 rows and 4 columns, but for `shapes`."""
    sizes = {"row_scores": (2, 2, 2, 5), "col_scores": (2, 2, 2, 4), "u": (2, 2), "v": (2, 2), "core": (2, 2, 2, 2)}
    sizes |= shapes
    return Case(tucker_topk.OPERATOR, dict(zip(sizes, normal(0, *sizes.values()), strict=True)), {"k": k})


REFUSED = {
    "rank": (lookup([[0, 1]], scores=(1, 2)), "input scores must be [T, K, M], found [1, 2]"),
    "tokens": (lookup([[0, 1], [0, 1]]), "input scores must be [T, K, M], found [1, 2, 2]: T is 2 in addresses"),
    "cores": (lookup([[0, 1]], table=(6, 9)), "the 2 cores of input scores must divide the table's width 9"),
    "blocks": (lookup([[0, 1]], blocks=0), "blocks must be in [1, 1048576], found 0"),
    "address": (lookup([[0, 12]]), "address 12 at token 0, slot 1 lies outside the table"),
    "negative": (lookup([[-1, 0]]), "address -1 at token 0, slot 0 lies outside the table"),
    "no rows": (lookup([[0, 0]], table=(0, 8)), "address 0 at token 0, slot 0 lies outside the table"),
    "gate width": (gate([[0]], table=(6, 9)), "input table must be 8 wide (x is 8 wide, activation 0), found 9"),
    "swiglu width": (gate([[0]], activation=3), "input table must be 16 wide (x is 8 wide, activation 3), found 8"),
    "gate address": (gate([[4, -7]]), "address -7 at token 0, slot 1 lies outside the table"),
    "gate no rows": (gate([[0]], table=(0, 8)), "address 0 at token 0, slot 0 lies outside the table"),
    "heads": (retrieval(u=(3, 2)), "input u must be [H, R], found [3, 2]: H is 2 in row_scores"),
    "rank of core": (retrieval(core=(2, 2, 2, 3)), "input core must be [M, H, R, R], found [2, 2, 2, 3]: R is 2"),
    "encoding": (encoded(torch.int8, "int4"), "input table of ONNX element type 3 does not go with encoding 2"),
    "no scales": (encoded(torch.int8, "int8", scales=None), "input scales must be given for encoding 1"),
    "scales of a float": (encoded(torch.float32, "float"), "input scales must be absent for encoding 0"),
    "few scales": (encoded(torch.int8, "int8", scales=5), "input scales must be [N], found [5]: N is 6 in table"),
    "k": (retrieval(k=21), "k is 21, but 5 rows and 4 columns leave only 20 pairs"),
    "k zero": (retrieval(k=0), "k must be in [1, 46340], found 0"),
    "no keys": (retrieval(row_scores=(2, 2, 2, 0)), "k is 2, but 0 rows and 4 columns leave only 0 pairs"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refuses(what: str, libraries: dict[str, Path]) -> None:
    case, message = REFUSED[what]
    proto = onnx.ModelProto()
    proto.CopyFrom(case_model(case))
    for value in proto.graph.input:
        value.type.tensor_type.ClearField("shape")  # else ONNX Runtime itself refuses a wrong rank
    feeds = {name: ort_value(x) for name, x in case.inputs.items()}
    for library in libraries.values():
        with pytest.raises(Failure) as error:
            session(proto, library).run_with_ort_values(None, feeds)
        assert f"{case.operator.name}: {message}" in str(error.value)


@pytest.mark.parametrize(
    ("operator", "attributes", "message"),
    [
        (sparse_gate.OPERATOR, {"activation": 4}, "SparseGate: attribute activation must be in [0, 4), found 4"),
        (sparse_lookup.OPERATOR, {"blocks": 2.0}, "SparseLookup: attribute blocks must be given, as an integer"),
        (tucker_topk.OPERATOR, {}, "TuckerTopK: attribute k must be given, as an integer"),
    ],
)
def test_refuses_attributes_at_load(
    operator: Operator, attributes: dict[str, object], message: str, library: Path
) -> None:
    elements = {p.name: TensorProto.INT64 if p.type == "I" else TensorProto.FLOAT for p in operator.inputs}
    with pytest.raises(Exception) as error:
        session(model(operator, elements, attributes, body=False), library)
    assert message in str(error.value)


def test_an_absent_attribute_has_its_default(library: Path) -> None:
    case = lookup([[0, 1]], blocks=1)
    absent = Case(case.operator, case.inputs, {})
    np.testing.assert_array_equal(runtime(library)(absent)[0], runtime(library)(case)[0])


def test_the_body_has_no_bounds() -> None:
    """Documented: an address of an absent block adds nothing, a negative one wraps round."""
    outside, inside = runtime(None)(lookup([[12, 1]]))[0], runtime(None)(lookup([[11, 1]]))[0]
    np.testing.assert_array_equal(outside[:, :8], inside[:, :8])
    assert not outside[:, 8:].any()
    np.testing.assert_array_equal(runtime(None)(lookup([[-1, 1]]))[0], runtime(None)(lookup([[5, 1]]))[0])


def test_one_file_runs_with_and_without_the_library(library: Path, tmp_path: Path) -> None:
    case = lookup([[0, 11]])
    onnx.save(case_model(case), tmp_path / "model.onnx")
    feeds = {name: ort_value(x) for name, x in case.inputs.items()}
    outputs = []
    for register in (False, True):
        options = onnxruntime.SessionOptions()
        if register:
            options.register_custom_ops_library(str(library))
        run = onnxruntime.InferenceSession(tmp_path / "model.onnx", options, providers=["CPUExecutionProvider"])
        outputs.append(run.run_with_ort_values(None, feeds)[0].numpy())
    np.testing.assert_allclose(*outputs, rtol=1e-6)


@pytest.mark.parametrize("width", [1, 3, 15, 16, 17, 31, 33, 63, 65, 255, 256, 257, 511, 777, 1025])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_every_element_of_a_poisoned_output_is_written(
    width: int, dtype: torch.dtype, libraries: dict[str, Path]
) -> None:
    table, scores = normal(width, (5, width), (3, 4, 1))
    addresses = torch.tensor([[0, 3, 4, 9], [1, 1, 1, 1], [14, 13, 12, 10]])
    inputs = {"table": table.to(dtype), "addresses": addresses, "scores": scores.to(dtype)}
    case = Case(sparse_lookup.OPERATOR, inputs, {"blocks": 3})
    expected = sparse_lookup.reference(*inputs.values(), 3).numpy()
    for library in libraries.values():
        poisoned = onnxruntime.OrtValue.ortvalue_from_numpy(np.full_like(expected, np.nan))
        run = session(case_model(case), library)
        binding = run.io_binding()
        for name, x in inputs.items():
            binding.bind_ortvalue_input(name, ort_value(x))
        binding.bind_ortvalue_output("output", poisoned)
        run.run_with_iobinding(binding)
        np.testing.assert_allclose(poisoned.numpy(), expected, rtol=2e-3, atol=2e-3)


def test_the_cut_among_threads_changes_no_byte(libraries: dict[str, Path]) -> None:
    """Enough work for many tasks, by tokens and (a single token) by columns, against one thread."""
    for tokens in (1, 3, 70):
        table, scores = normal(tokens, (40, 3000), (tokens, 50, 2))
        addresses = torch.randint(0, 80, (tokens, 50), generator=torch.Generator().manual_seed(1))
        case = Case(sparse_lookup.OPERATOR, {"table": table, "addresses": addresses, "scores": scores}, {"blocks": 2})
        feeds = {name: ort_value(x) for name, x in case.inputs.items()}
        for library in libraries.values():
            outputs = [
                session(case_model(case), library, threads).run_with_ort_values(None, feeds)[0].numpy()
                for threads in (1, 2, 5)
            ]
            np.testing.assert_array_equal(outputs[0], outputs[1])
            np.testing.assert_array_equal(outputs[0], outputs[2])


def test_ties_go_to_the_smaller_position(libraries: dict[str, Path]) -> None:
    ones = {"u": (1, 1), "v": (1, 1), "core": (1, 1, 1, 1)}
    case = retrieval(row_scores=(1, 1, 1, 90), col_scores=(1, 1, 1, 70), **ones)
    inputs = {name: torch.ones_like(x) for name, x in case.inputs.items()}
    for library in libraries.values():
        scores, indices = runtime(library)(Case(tucker_topk.OPERATOR, inputs, {"k": 5}))
        assert indices.tolist() == [[0, 1, 2, 3, 4]]
        assert (scores == 1).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_odd_numbers_stay_in_bounds_and_in_sight(value: float, libraries: dict[str, Path]) -> None:
    """A NaN ranks first, as in PyTorch, so it reaches the output; indices stay legal and distinct."""
    case = retrieval(k=4, row_scores=(2, 2, 2, 50), col_scores=(2, 2, 2, 45))
    case.inputs["row_scores"][0, 0, :, 7] = value
    case.inputs["row_scores"][1] = value
    for library in libraries.values():
        scores, indices = runtime(library)(case)
        for head in indices.reshape(4, 4):
            assert len(set(head.tolist())) == 4 and head.min() >= 0 and head.max() < 50 * 45
        if value != value:
            assert 7 in indices[0, :4] // 45
            assert np.isnan(scores[0, :4]).any() and np.isnan(scores[1]).all()


def test_offsets_beyond_32_bits(libraries: dict[str, Path], tmp_path: Path) -> None:
    """A sparse file as a memory-mapped float16 table of 2^31 + 2^20 elements: the rows past 2^31 are the right ones."""
    width, rows = 1 << 10, (1 << 21) + (1 << 10)
    table = np.memmap(tmp_path / "table.bin", np.float16, "w+", shape=(rows, width))
    for row in (0, rows // 2, rows - 1):
        table[row] = np.arange(width) % 7 + row % 5
    table.flush()
    tensor = TensorProto(
        name="table", data_type=TensorProto.FLOAT16, dims=[rows, width], data_location=TensorProto.EXTERNAL
    )
    tensor.external_data.add(key="location", value="table.bin")
    elements = {"table": TensorProto.FLOAT16, "addresses": TensorProto.INT64, "scores": TensorProto.FLOAT}
    proto = model(sparse_lookup.OPERATOR, elements, {"blocks": 2}, (tensor,), body=False)
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    feeds = {
        "addresses": np.array([[rows - 1, 0, 2 * rows - 1, rows + rows // 2]]),
        "scores": np.ones((1, 4, 1), np.float32),
    }
    expected = np.concatenate([table[rows - 1] + table[0], table[rows - 1] + table[rows // 2]]).astype(np.float32)
    for library in libraries.values():
        options = onnxruntime.SessionOptions()
        options.register_custom_ops_library(str(library))
        run = onnxruntime.InferenceSession(tmp_path / "model.onnx", options, providers=["CPUExecutionProvider"])
        np.testing.assert_array_equal(run.run(None, feeds)[0][0], expected)


def test_nodes_of_one_operator_may_differ_in_encoding(library: Path) -> None:
    """Each encoding brings its own body under its own overload; the kernels need none."""
    values, scores = normal(5, (9, 8), (2, 3, 2))
    feeds = {"addresses": ort_value(torch.tensor([[0, 8, 3], [4, 4, 1]])), "scores": ort_value(scores)}
    nodes, functions, inputs = [], [], []
    for number, encoding in enumerate(ENCODINGS):
        tables = {f"{name}.{encoding}": x for name, x in quantised(values, encoding).items()}
        feeds |= {name: ort_value(x) for name, x in tables.items()}
        inputs += [helper.make_tensor_value_info(n, ELEMENTS[x.dtype], list(x.shape)) for n, x in tables.items()]
        table, *scales = tables
        names = [table, "addresses", "scores", *scales]
        node = helper.make_node("SparseLookup", names, [encoding], domain="ai.ultramem", encoding=number)
        node.overload = encoding
        nodes.append(node)
        functions.append(sparse_lookup.OPERATOR.function_for(encoding, overload=encoding))
    inputs += [
        helper.make_tensor_value_info("addresses", TensorProto.INT64, [2, 3]),
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, [2, 3, 2]),
    ]
    outputs = [helper.make_tensor_value_info(encoding, TensorProto.FLOAT, None) for encoding in ENCODINGS]
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.ultramem", 1)]
    graph = helper.make_graph(nodes, "mixed", inputs, outputs)
    proto = helper.make_model(graph, functions=functions, opset_imports=opsets, ir_version=10)
    by_kernel, by_body = (session(proto, path).run_with_ort_values(None, feeds) for path in (library, None))
    for encoding, kernel, body in zip(ENCODINGS, by_kernel, by_body, strict=True):
        np.testing.assert_allclose(kernel.numpy(), body.numpy(), rtol=1e-5, atol=1e-5, err_msg=encoding)


def test_two_operators_share_a_graph(library: Path) -> None:
    """Nodes of all three operators in one model, each with its own attributes: retrieval, gate and lookup in a row."""
    nodes = [
        helper.make_node(
            "TuckerTopK", ["row", "col", "u", "v", "core"], ["scores", "index"], domain="ai.ultramem", k=3
        ),
        helper.make_node("SparseGate", ["pre", "index", "x"], ["gate"], domain="ai.ultramem", activation=2),
        helper.make_node("Unsqueeze", ["gate", "last"], ["gate3"]),
        helper.make_node("Mul", ["scores", "gate3"], ["weights"]),
        helper.make_node("SparseLookup", ["table", "index", "weights"], ["out"], domain="ai.ultramem", blocks=4),
    ]
    shapes = {
        "row": (2, 1, 2, 6),
        "col": (2, 1, 2, 6),
        "u": (1, 2),
        "v": (1, 2),
        "core": (2, 1, 2, 2),
        "pre": (9, 4),
        "x": (2, 4),
        "table": (9, 8),
    }
    inputs = dict(zip(shapes, normal(3, *shapes.values()), strict=True))
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()]
    last = helper.make_tensor("last", TensorProto.INT64, [1], [2])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "layer", values, [out], [last])
    functions = [o.OPERATOR.function for o in (tucker_topk, sparse_gate, sparse_lookup)]
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.ultramem", 1)]
    proto = helper.make_model(graph, functions=functions, opset_imports=opsets, ir_version=9)
    feeds = {n: x.numpy() for n, x in inputs.items()}
    kernel, body = (session(proto, path).run(None, feeds)[0] for path in (library, None))
    assert kernel.shape == (2, 32)
    np.testing.assert_allclose(kernel, body, rtol=1e-4, atol=1e-5)
