"""The replay of a graph's order, on a graph by hand, and the reading of types."""

from benchmarks.kernels import Node, _bytes
from benchmarks.liveness import as_soon_as_ready, lives


def test_tensors_live_from_their_kernel_to_the_last_that_reads_them():
    nodes = {
        "g%0": Node("MatMul", "", [], (100,)),
        "g%1": Node("Reshape", "", ["g%0"], (100,)),  # a view of it
        "g%2": Node("Mul", "", ["g%1"], (10,)),
        "g%3": Node("Depend", "", ["g%2", "g%0"], (10,)),  # orders, and reads nothing
        "g%4": Node("Assign", "", ["p", "g%3"], (10,)),  # in place
        "g%5": Node("Add", "", [], (1,)),
        "g%6": Node("MakeTuple", "", ["g%5", "g%3"], (0,)),
        "g%7": Node("Return", "", ["g%6"], (0,)),
        "h%0": Node("Mul", "", [], (10**6,)),  # a smaller graph
    }
    assert lives(nodes) == [100, 100, 110, 10, 10, 11, 11, 11]


def test_a_tensor_that_nobody_reads_is_let_go_at_once():
    assert lives({"g%0": Node("Mul", "", [], (5,)), "g%1": Node("Mul", "", [], (7,))}) == [5, 7]


def test_a_gradient_of_weights_is_made_when_its_inputs_are_there():
    nodes = {
        "g%0": Node("MatMul", "", [], (10,)),
        "g%1": Node("MatMul", "", ["g%0"], (10,)),  # of the layer's input
        "g%2": Node("MatMul", "", ["g%1"], (10,)),  # of the next one's
        "g%3": Node("MatMul", "", ["g%0"], (1,)),  # of the weights, listed where it is wanted
        "g%4": Node("MatMul", "", ["g%1"], (1,)),
        "g%5": Node("Concat", "", ["g%3", "g%4", "g%2"], (2,)),
        "g%6": Node("Return", "", ["g%5"]),
    }
    assert lives(nodes) == [10, 20, 30, 31, 22, 14, 2]
    order = as_soon_as_ready(nodes)
    assert list(order) == ["g%0", "g%1", "g%3", "g%2", "g%4", "g%5", "g%6"]
    assert lives(order) == [10, 20, 21, 21, 22, 14, 2]


def test_outputs_of_one_kernel_live_apart():
    nodes = {
        "g%0": Node("GroupNorm", "", [], (100, 3)),
        "g%1": Node("TupleGetItem", "", ["g%0"], (100,), 0),
        "g%2": Node("TupleGetItem", "", ["g%0"], (3,), 1),
        "g%3": Node("SiLU", "", ["g%1"], (10,)),
        "g%4": Node("Mul", "", ["g%2"], (1,)),
        "g%5": Node("Return", "", ["g%4"]),
    }
    assert lives(nodes) == [103, 103, 103, 113, 4, 1]


def test_bytes_of_a_nodes_outputs():
    def of(made):
        return _bytes(f"      : (<Tensor[Float32], (9, 9)>, <Float32, NoShape>) -> (<{made}>)")

    assert of("Tensor[Float16], (4, 8)") == (64,)
    assert of("Tensor[Float32], ()") == (4,)
    assert of("Tuple[Tensor[Float32]*3], TupleShape((8, 64), (8), (2, 2))") == (2048, 32, 16)
    assert of("Tuple[Tensor[Float16],Tensor[Bool]], TupleShape((4, 8), (3))") == (64, 3)
