"""The layers of a bundle's model, with the seconds of each on both sides: `graph.json`.

Pictures need them, running does not: a deployment leaves the file out.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from offload.errors import InputError
from offload.graph.model import Graph
from offload.planning.plan import Side
from offload.records import fields_to_json, read_object, read_version

GRAPH = "graph.json"
_FORMAT = 1


@dataclass(frozen=True)
class TimedGraph:
    """A graph and the seconds of its layers.

    Attributes:
        graph: the layers and the tensors between them.
        seconds: of each layer, in the graph's order, by side; no entry where nothing was measured.
    """

    graph: Graph
    seconds: Mapping[Side, tuple[float, ...]] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write to a file."""
        path.write_text(json.dumps({"format": _FORMAT, **fields_to_json(self)}))

    def __post_init__(self) -> None:
        if any(len(seconds) != len(self.graph.layers) for seconds in self.seconds.values()):
            raise InputError("a timed graph must have the seconds of each layer")


def read_layers(folder: Path) -> TimedGraph:
    """The layers of the model of a bundle.

    Raises:
        InputError: the bundle has none: an older version made it, or it is a deployed one.
    """
    path = folder / GRAPH
    remedy = "take the bundle that `offload split` wrote, or make it again"
    if not path.is_file():
        raise InputError(f"{folder} has no {GRAPH}, which holds the layers: {remedy}")
    value = read_object(path, "list of layers", "offload split -o")
    return read_version(TimedGraph, value, _FORMAT, name=GRAPH, remedy=remedy)
