"""Lay out a directed acyclic graph in rows, from top to bottom, with few crossings."""

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

from grandalf.graphs import Edge, Graph, Vertex
from grandalf.layouts import SugiyamaLayout

Point: TypeAlias = tuple[float, float]

_GAP = 18.0
_ROW_GAP = 30.0
_BEND_WIDTH = 8.0  # room that an edge takes in a row that it passes
_ROUNDS = 4


@dataclass(frozen=True)
class Drawing:
    """Where the boxes are, and which points each edge passes.

    Attributes:
        centres: of the boxes.
        routes: from box to box, the point in each row that the edge passes, the ends included.
        width: of the whole.
        height: of the whole.
    """

    centres: Mapping[Hashable, Point]
    routes: Mapping[tuple[Hashable, Hashable], tuple[Point, ...]]
    width: float
    height: float


class _View:
    """The attributes that grandalf reads from a vertex and writes to it."""

    def __init__(self, width: float, height: float) -> None:
        self.w, self.h, self.xy = width, height, (0.0, 0.0)


class _Route:
    """Takes the path of an edge from grandalf."""

    def __init__(self) -> None:
        self.points: tuple[Point, ...] = ()

    def setpath(self, points: Iterable[Point]) -> None:
        self.points = tuple(points)


def layered(
    sizes: Mapping[Hashable, tuple[float, float]],
    edges: Iterable[tuple[Hashable, Hashable]],
) -> Drawing:
    """Lay out boxes in rows so that each edge goes down; components stand side by side.

    Sugiyama's method with the coordinates of Brandes and Köpf (2001), by the grandalf library;
    O(rows + bends) per round and a few rounds, where an edge has a bend in each row it passes.

    Args:
        sizes: width and height of each box.
        edges: between different boxes, without cycles; doubles count once.
    """
    vertices = {}
    for key, size in sizes.items():
        vertices[key] = Vertex(key)
        vertices[key].view = _View(*size)
    links = [Edge(vertices[a], vertices[b]) for a, b in dict.fromkeys(edges)]
    for link in links:
        link.view = _Route()
    graph = Graph(list(vertices.values()), links)
    left = height = 0.0
    centres: dict[Hashable, Point] = {}
    routes: dict[tuple[Hashable, Hashable], tuple[Point, ...]] = {}
    for component in graph.C:
        sugiyama = SugiyamaLayout(component)
        sugiyama.xspace, sugiyama.yspace, sugiyama.dw = _GAP, _ROW_GAP, _BEND_WIDTH
        sugiyama.init_all(inverted_edges=[], optimize=True)
        sugiyama.draw(_ROUNDS)
        _separate(sugiyama)
        boxes = [(v.view.xy, v.view.w, v.view.h) for row in sugiyama.layers for v in row]
        start = min(x - width / 2 for (x, _), width, _ in boxes)
        shift = left - start
        for vertex in component.V():
            x, y = vertex.view.xy
            centres[vertex.data] = x + shift, y
        for link in component.E():
            points = tuple((x + shift, y) for x, y in link.view.points)
            routes[link.v[0].data, link.v[1].data] = points
        left = max(x + shift + width / 2 for (x, _), width, _ in boxes) + 2 * _GAP
        height = max(height, *(y + tall / 2 for (_, y), _, tall in boxes))
    return Drawing(centres, routes, max(left - 2 * _GAP, 0.0), height)


def _separate(sugiyama: Any) -> None:
    """Push boxes of a row apart where they overlap, and draw the edges again.

    The coordinates of grandalf are those of the paper before its erratum (Brandes et al. 2020):
    in rare cases two boxes of a row overlap.
    """
    for row in sugiyama.layers:
        boxes = sorted((v.view for v in row), key=lambda view: view.xy[0])
        for before, view in pairwise(boxes):
            least = before.xy[0] + (before.w + view.w) / 2 + _GAP / 2
            view.xy = max(view.xy[0], least), view.xy[1]
    sugiyama.draw_edges()
