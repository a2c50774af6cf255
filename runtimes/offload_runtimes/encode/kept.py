"""Catalogues that were measured before, kept in the user's cache: nothing is measured twice."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from offload.encoding.catalogue import Catalogue
from offload.encoding.encoding import Encoding
from offload.errors import InputError
from offload.files import read_object, write_text
from offload.graph.load import Model
from offload.graph.model import Graph, Tensor

from offload_runtimes.encode.calibration import Calibration
from offload_runtimes.encode.sizes import catalogue_of
from offload_runtimes.engine import EngineOptions
from offload_runtimes.planning.measure import cache_folder, machine_name

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

    Args:
        model: from a file.
        graph: its layers.
        calibration: the inputs.
        allowed: encodings to measure.
        options: how onnxruntime runs.
        types: types of tensors that shape inference can't follow.
        progress: called with a phrase before each step.
        again: measure even when a catalogue is there.

    Raises:
        InputError: the model refuses an input.
    """
    wanted = tuple(allowed)
    path = catalogue_path(graph, calibration, wanted, options)
    if path.is_file() and not again:
        try:
            return Catalogue.from_json(read_object(path, "catalogue", "offload split --again"))
        except InputError:
            progress("an older catalogue of encodings doesn't fit: measuring again")
    found = catalogue_of(model, graph, calibration, wanted, options, types, progress)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(found.to_json()))
    return found


def catalogue_path(
    graph: Graph, calibration: Calibration, allowed: Iterable[Encoding], options: EngineOptions
) -> Path:
    """Where the catalogue is kept: one file a model, calibration, set of encodings and machine."""
    asked = (machine_name(), options, sorted(graph.producer), sorted(e.name for e in allowed))
    data = hashlib.sha256(repr(asked).encode())
    for feeds in calibration.feeds:
        for name, array in sorted(feeds.items()):
            data.update(repr((name, array.dtype.str, array.shape)).encode())
            data.update(array.tobytes())
    name = f"{graph.digest[:16]}-{data.hexdigest()[:16]}.json"
    return cache_folder() / "encodings" / name
