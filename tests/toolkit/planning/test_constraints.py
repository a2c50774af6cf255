import pytest
from offload.errors import InputError
from offload.planning.constraints import Objective, PlanRequest, Power, constraints_of
from offload.units import parse_bytes, parse_energy_j

from tests.toolkit.graphs import graph_of

GRAPH = graph_of([(0, 1), (2, 3), (1, 3)], 4)


def test_keeping_the_input_pins_its_readers() -> None:
    assert constraints_of(PlanRequest(keep_input=True), GRAPH).pinned == {0, 2}
    assert constraints_of(PlanRequest(pin_device=2), GRAPH).pinned == {0, 1}


def test_wishes_that_make_no_sense_are_refused() -> None:
    with pytest.raises(InputError, match="5 layers cannot be pinned: the model has 4"):
        constraints_of(PlanRequest(pin_device=5), GRAPH)
    with pytest.raises(InputError, match="objective 'speed' is not known: use one of latency"):
        constraints_of(PlanRequest("speed"), GRAPH)
    with pytest.raises(InputError, match="give --power"):
        constraints_of(PlanRequest(Objective.ENERGY.value), GRAPH)


def test_quantities_are_read_in_their_units() -> None:
    assert parse_bytes("64 MB") == 64e6
    assert parse_bytes("1.5GB") == 1.5e9
    assert parse_energy_j("250 mJ") == pytest.approx(0.25)
    assert Power.parse("2,3.5,0.8") == Power(2.0, 3.5, 0.8)
    for parse, wrong in ((parse_bytes, "64"), (parse_energy_j, "1 W"), (Power.parse, "1,2")):
        with pytest.raises(InputError, match="is not understood"):
            parse(wrong)
