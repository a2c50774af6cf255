"""Probes are repeated until their samples fit a link."""

from collections.abc import Iterator

import pytest
from offload.costs.link_fit import Sample, fit_link
from offload.errors import InputError
from offload_runtimes.measure.probe import until_steady

SIZES = (1_000, 10_000, 100_000)
STEADY = [Sample(size, size * 1e-6, size * 1e-6) for size in SIZES]
UNSTEADY = [Sample(size, 1e-2, 1e-2) for size in SIZES]


def test_a_second_probe_adds_to_an_unsteady_one() -> None:
    probes: Iterator[list[Sample]] = iter([UNSTEADY, STEADY * 2, STEADY])
    samples = until_steady(lambda: next(probes))
    assert samples == [*UNSTEADY, *STEADY, *STEADY]
    assert fit_link(samples).up_bps == pytest.approx(8e6)


def test_three_unsteady_probes_are_an_error() -> None:
    probes = iter([UNSTEADY] * 3)
    with pytest.raises(InputError, match="not slower"):
        until_steady(lambda: next(probes))
    assert not list(probes)
