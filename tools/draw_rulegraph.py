"""Draw Snakemake's rule graph as an SVG file, without Graphviz.

Reads `snakemake --rulegraph dot` from standard input. Rules stand in layers, inputs
above what uses them; an edge that others already imply is left out, and the order in a
layer follows the neighbours' (the barycentre heuristic of Sugiyama et al. 1981). The
same graph gives the same bytes.
"""

import re
import sys
from itertools import pairwise
from pathlib import Path

import networkx as nx

SCRIPTS = Path(__file__).resolve().parents[1] / "workflow/scripts"
NODE = re.compile(r'^\s*(\d+)\[label = "([^"]+)"')
EDGE = re.compile(r"^\s*(\d+) -> (\d+)")
BOX_HEIGHT, LAYER_HEIGHT, GAP, LETTER_WIDTH, MARGIN = 26, 62, 14, 7.2, 10


def read_dot(text: str) -> nx.DiGraph:
    """The graph of rule names in Snakemake's dot text, edges from input to user.

    Raises:
        ValueError: If the text holds no rule.
    """
    lines = text.splitlines()
    names = {m[1]: m[2] for m in map(NODE.match, lines) if m}
    if not names:
        raise ValueError("no rule graph on standard input")
    graph = nx.DiGraph()
    graph.add_nodes_from(sorted(names.values()))
    edges = {(names[m[1]], names[m[2]]) for m in map(EDGE.match, lines) if m}
    graph.add_edges_from(sorted(edge for edge in edges if edge[0] != edge[1]))
    return nx.transitive_reduction(graph)


def place(graph: nx.DiGraph) -> tuple[dict, list[list]]:
    """Centres (x, y) of all nodes, and the paths of edges as lists of nodes.

    An edge over several layers gets a narrow node (a tuple) in each layer between.
    """
    layer = {
        node: depth
        for depth, nodes in enumerate(nx.topological_generations(graph))
        for node in nodes
    }
    rows: list[list] = [[] for _ in range(max(layer.values()) + 1)]
    for node in sorted(layer):
        rows[layer[node]].append(node)
    paths = []
    for start, end in sorted(graph.edges):
        between = [(start, end, d) for d in range(layer[start] + 1, layer[end])]
        for waypoint in between:
            rows[waypoint[2]].append(waypoint)
        paths.append([start, *between, end])
    above: dict = {}
    below: dict = {}
    for path in paths:
        for upper, lower in pairwise(path):
            above.setdefault(lower, []).append(upper)
            below.setdefault(upper, []).append(lower)
    for sweep in range(24):
        order, neighbours = (rows, above) if sweep % 2 == 0 else (rows[::-1], below)
        for row in order:
            _sort_row(row, rows, neighbours)
    total = max(sum(_width(n) + GAP for n in row) for row in rows)
    centres = {}
    for depth, row in enumerate(rows):
        x = MARGIN + (total - sum(_width(n) + GAP for n in row)) / 2
        for node in row:
            centres[node] = (x + _width(node) / 2, MARGIN + depth * LAYER_HEIGHT)
            x += _width(node) + GAP
    return centres, paths


def _sort_row(row: list, rows: list[list], neighbours: dict) -> None:
    """Order a row by the mean relative position of its neighbours."""
    where = {n: (i + 0.5) / len(r) for r in rows for i, n in enumerate(r)}

    def barycentre(node: object) -> float:
        near = neighbours.get(node) or [node]
        return sum(where[other] for other in near) / len(near)

    row.sort(key=barycentre)


def _width(node: str | tuple) -> float:
    return LETTER_WIDTH * len(node) + 18 if isinstance(node, str) else 8


def draw(graph: nx.DiGraph) -> str:
    """The graph as SVG text."""
    centres, paths = place(graph)
    width = max(x + _width(n) / 2 for n, (x, _) in centres.items()) + MARGIN
    height = max(y for _, y in centres.values()) + BOX_HEIGHT + MARGIN
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}">',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        '<g fill="none" stroke="#8a96a3" stroke-width="1.3">',
    ]
    for path in paths:
        x, y = centres[path[0]]
        curve = f"M{x:.1f},{y + BOX_HEIGHT:.1f}"
        y += BOX_HEIGHT
        for node in path[1:]:
            to_x, to_y = centres[node]
            middle = (y + to_y) / 2
            curve += f" C{x:.1f},{middle:.1f} {to_x:.1f},{middle:.1f} "
            curve += f"{to_x:.1f},{to_y:.1f}"
            x, y = to_x, to_y
            if not isinstance(node, str):
                y += BOX_HEIGHT
                curve += f" V{y:.1f}"
        parts.append(f'<path d="{curve}"/>')
    parts.append('</g>\n<g font-family="monospace" font-size="12" fill="#1f2933">')
    for node in graph.nodes:
        x, y = centres[node]
        left = x - _width(node) / 2
        parts.append(
            f'<rect x="{left:.1f}" y="{y:.1f}" width="{_width(node):.1f}" rx="6" '
            f'height="{BOX_HEIGHT}" fill="#e8f0fa" stroke="#4a78b5"/>'
            f'<text x="{x:.1f}" y="{y + 17:.1f}" text-anchor="middle">{node}</text>'
        )
    return "\n".join([*parts, "</g>", "</svg>"]) + "\n"


if __name__ == "__main__":
    try:
        svg = draw(read_dot(sys.stdin.read()))
    except ValueError as error:
        sys.exit(f"error: {error}")
    sys.path.insert(0, str(SCRIPTS))
    from prefdistill.storage.whole_files import write_text

    write_text(sys.argv[1], svg)
    print(f"drawn: {sys.argv[1]}")
