"""Catalogues of encodings, measured once."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from offload.costs.encoding_table import Catalogue
from offload.costs.encodings import Encoding
from offload.graph.load import Model
from offload.graph.model import Graph, Tensor
from offload.records import read_object

from offload_runtimes.cache import feeds_digest, kept
from offload_runtimes.encode.calibration import Calibration
from offload_runtimes.encode.sizes import catalogue_of
from offload_runtimes.engine import EngineOptions
from offload_runtimes.planning.measure import machine_name

Progress = Callable[[str], None]


def kept_catalogue(
    model: Model,
    graph: Graph,
    calibration: Calibration,
    allowed: Iterable[Encoding],
    options: EngineOptions,
    types: Mapping[str, Tensor] | None = None,
    progress: Progress = lambda _: None,
    *,
    again: bool = False,
) -> Catalogue:
    """As `catalogue_of`, measured once for a model, its calibration, encodings and this machine.

    With `again` it is measured even when a catalogue is there.
    """
    wanted = tuple(allowed)

    def measured() -> Catalogue:
        return catalogue_of(model, graph, calibration, wanted, options, types, progress)

    path = catalogue_path(graph, calibration, wanted, options)
    return kept(path, _read, measured, again=again, progress=progress)


def _read(path: Path) -> Catalogue:
    return Catalogue.from_json(read_object(path, "catalogue", "offload split --again"))


def catalogue_path(
    graph: Graph, calibration: Calibration, allowed: Iterable[Encoding], options: EngineOptions
) -> Path:
    """The cache's file for a catalogue: one a model, calibration, set of encodings and machine."""
    asked = (machine_name(), options, sorted(graph.producer), sorted(e.name for e in allowed))
    data = hashlib.sha256((repr(asked) + feeds_digest(calibration.feeds)).encode())
    name = f"{graph.digest[:16]}-{data.hexdigest()[:16]}.json"
    return Path("encodings") / name
