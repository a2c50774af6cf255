import pytest
from hypothesis import given
from offload.errors import InputError
from offload.graph.model import Graph
from offload.planning.cut import all_cloud, all_local, cut_after, cut_at

from tests.toolkit.graphs import closed_sets, graph_of, graphs

DIAMOND = graph_of([(0, 1), (0, 2), (1, 3), (2, 3)], 4)


def test_local_sends_nothing_and_cloud_sends_the_input() -> None:
    assert all_local(DIAMOND).uploads == ()
    assert all_local(DIAMOND).downloads == ()
    assert all_cloud(DIAMOND).uploads == ("x",)
    assert all_cloud(DIAMOND).downloads == ("t3",)


def test_cut_after_keeps_just_what_the_tensors_need() -> None:
    cut = cut_after(DIAMOND, ["t1"])
    assert cut.device == {0, 1}
    assert cut.uploads == ("t0", "t1")  # layer 2 needs t0, so the server lacks it too
    assert cut_after(DIAMOND, ["t1", "t2"]).uploads == ("t1", "t2")
    assert cut_after(DIAMOND, ["x"]) == all_cloud(DIAMOND)


def test_unknown_tensor_names_the_nearest() -> None:
    with pytest.raises(InputError, match=r"no tensor 't9'.*did you mean"):
        cut_after(DIAMOND, ["t9"])


def test_open_set_is_refused() -> None:
    with pytest.raises(InputError, match="'l1' cannot run on the device without 'l0'"):
        cut_at(DIAMOND, {1})


@given(graphs())
def test_every_tensor_the_server_needs_is_sent_or_made_there(graph: Graph) -> None:
    for device in closed_sets(graph):
        cut = cut_at(graph, device)
        rest = set(range(len(graph.layers))) - device
        made = {name for layer in rest for name in graph.layers[layer].outputs}
        needed = {name for layer in rest for name in graph.layers[layer].inputs}
        assert set(cut.uploads) == needed - made
        assert set(cut.downloads) == made & set(graph.outputs)
