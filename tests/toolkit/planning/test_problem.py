import pytest
from offload.errors import InputError
from offload.planning.cut_costs import Costs
from offload.planning.problem import Constraints, Objective, PlanningProblem, Power
from offload.units import parse_bytes, parse_energy_j

from tests.toolkit.graphs import graph_of

GRAPH = graph_of([(0, 1), (2, 3), (1, 3)], 4)
COSTS = Costs((1.0,) * 4, (0.1,) * 4, {}, {}, {})


def test_keeping_the_input_pins_its_readers() -> None:
    assert PlanningProblem(GRAPH, COSTS, Constraints(keep_input=True)).pinned == {0, 2}
    assert PlanningProblem(GRAPH, COSTS, Constraints(pin_device=2)).pinned == {0, 1}


def test_constraints_that_make_no_sense_are_refused() -> None:
    with pytest.raises(InputError, match="5 layers cannot be pinned: the model has 4"):
        PlanningProblem(GRAPH, COSTS, Constraints(pin_device=5))
    with pytest.raises(InputError, match="objective 'speed' is not known: use one of latency"):
        Objective.parse("speed")
    with pytest.raises(InputError, match="give --power"):
        Constraints(Objective.ENERGY)


def test_quantities_are_read_in_their_units() -> None:
    assert parse_bytes("64 MB") == 64e6
    assert parse_bytes("1.5GB") == 1.5e9
    assert parse_energy_j("250 mJ") == pytest.approx(0.25)
    assert Power.parse("2,3.5,0.8") == Power(2.0, 3.5, 0.8)
    for parse, wrong in ((parse_bytes, "64"), (parse_energy_j, "1 W"), (Power.parse, "1,2")):
        with pytest.raises(InputError, match="is not understood"):
            parse(wrong)
