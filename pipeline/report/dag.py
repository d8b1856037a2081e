"""The pipeline as a picture: a layered drawing for wide screens, a rail of stages for narrow ones and long chains."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from kdpipe.pipeline.report.svg import element, join, number, picture, shorten

NODE_WIDTH, NODE_HEIGHT = 148.0, 50.0
COLUMN_GAP, ROW_GAP = 44.0, 16.0
RAIL_ROW = 46.0
WIDEST = 1180.0


@dataclass(frozen=True)
class Node:
    """A stage to draw.

    Args:
        name: unique.
        note: the second line: what kind of stage, how long it took.
        status: ran, cached, failed, skipped, or another word for none of them.
        needs: names of the stages whose outputs it takes; unknown ones are not drawn.
        link: the address to open on a click, or None.
    """

    name: str
    note: str
    status: str
    needs: tuple[str, ...] = ()
    link: str | None = None


def topological(nodes: Sequence[Node]) -> list[Node]:
    """Return the nodes with every one after those it needs; in a cycle the given order decides."""
    by_name = {node.name: node for node in nodes}
    placed: dict[str, Node] = {}
    waiting = list(by_name.values())
    while waiting:
        ready = [node for node in waiting if all(need in placed or need not in by_name for need in node.needs)]
        chosen = ready or waiting[:1]
        placed.update((node.name, node) for node in chosen)
        waiting = [node for node in waiting if node.name not in placed]
    return list(placed.values())


def layers(nodes: Sequence[Node]) -> dict[str, int]:
    """Return each node's layer: one more than the deepest of those it needs, and 0 for those that need nothing."""
    depth: dict[str, int] = {}
    for node in topological(nodes):
        depth[node.name] = max((depth[need] + 1 for need in node.needs if need in depth), default=0)
    return depth


def arrange(nodes: Sequence[Node]) -> list[list[str]]:
    """Return the columns of a layered drawing (Sugiyama's method: dummy nodes and barycentre sweeps).

    An edge that spans several layers passes through dummy nodes, named `need>node@layer`, so that no box covers it.
    """
    depth = layers(nodes)
    columns: list[list[str]] = [[] for _ in range(max(depth.values(), default=-1) + 1)]
    before: dict[str, list[str]] = {}
    after: dict[str, list[str]] = {}
    for node in topological(nodes):
        columns[depth[node.name]].append(node.name)
    for node in topological(nodes):
        for need in dict.fromkeys(node.needs):
            if need in depth and depth[need] < depth[node.name]:
                path = [need, *dummies(need, node.name, depth), node.name]
                for layer, name in enumerate(path[1:-1], depth[need] + 1):
                    columns[layer].append(name)
                for left, right in itertools.pairwise(path):
                    after.setdefault(left, []).append(right)
                    before.setdefault(right, []).append(left)
    for _ in range(4):
        for neighbours, order in ((before, columns[1:]), (after, columns[-2::-1])):
            rank = {name: index - len(column) / 2 for column in columns for index, name in enumerate(column)}
            for column in order:
                column.sort(key=lambda name: _barycentre(name, neighbours, rank))
                rank.update({name: index - len(column) / 2 for index, name in enumerate(column)})
    return columns


def dummies(need: str, name: str, depth: dict[str, int]) -> list[str]:
    """Return the names of the dummy nodes on the edge from `need` to `name`."""
    return [f"{need}>{name}@{layer}" for layer in range(depth[need] + 1, depth[name])]


def _barycentre(name: str, neighbours: dict[str, list[str]], rank: dict[str, float]) -> float:
    """Return the mean rank of the neighbours, or the node's own where it has none."""
    own = neighbours.get(name)
    return sum(rank[other] for other in own) / len(own) if own else rank[name]


def layered(nodes: Sequence[Node]) -> Markup | None:
    """Return the drawing with the data flowing from left to right, or None where it would not fit on a page."""
    columns = arrange(nodes)
    if not columns:
        return None
    width = len(columns) * (NODE_WIDTH + COLUMN_GAP) - COLUMN_GAP + 4
    if width > WIDEST or max(map(len, columns)) > 14:
        return None
    known = {node.name: node for node in nodes}
    heights = [_column_height(column, known) for column in columns]
    height = max(heights) + 4
    centre: dict[str, float] = {}
    for column, own_height in zip(columns, heights, strict=True):
        y = (height - own_height) / 2
        for name in column:
            centre[name] = y + _height(name, known) / 2
            y += _height(name, known) + ROW_GAP
    left = {name: 2 + index * (NODE_WIDTH + COLUMN_GAP) for index, column in enumerate(columns) for name in column}
    depth = layers(nodes)
    edges = [
        _edge([need, *dummies(need, node.name, depth), node.name], left, centre, node.status)
        for node in nodes
        for need in dict.fromkeys(node.needs)
        if need in depth and depth[need] < depth[node.name]
    ]
    boxes = [_box(node, left[node.name], centre[node.name] - NODE_HEIGHT / 2) for node in topological(nodes)]
    return picture(width, height, _title(nodes), *edges, *boxes, class_="dag")


def _title(nodes: Sequence[Node]) -> str:
    return "Pipeline: " + "; ".join(
        f"{node.name} ({node.status})" + (f" from {', '.join(node.needs)}" if node.needs else "") for node in nodes[:60]
    )


def _height(name: str, known: dict[str, Node]) -> float:
    return NODE_HEIGHT if name in known else 6.0


def _column_height(column: Iterable[str], known: dict[str, Node]) -> float:
    return sum(_height(name, known) + ROW_GAP for name in column) - ROW_GAP


def _edge(path: list[str], left: dict[str, float], centre: dict[str, float], status: str) -> Markup:
    """Return the curve through a path of nodes: horizontal through each, a smooth S between two."""
    x, y = left[path[0]] + NODE_WIDTH, centre[path[0]]
    commands = [f"M{number(x)} {number(y)}"]
    for name in path[1:]:
        to_x, to_y = left[name], centre[name]
        bend = (to_x - x) / 2
        commands.append(
            f"C{number(x + bend)} {number(y)} {number(to_x - bend)} {number(to_y)} {number(to_x)} {number(to_y)}"
        )
        x, y = to_x, to_y
        if name != path[-1]:
            x += NODE_WIDTH
            commands.append(f"H{number(x)}")
    tip = f"M{number(x - 6)} {number(y - 4)}L{number(x - 0.5)} {number(y)}L{number(x - 6)} {number(y + 4)}"
    return element("path", d="".join(commands) + tip, fill="none", class_=f"edge {css_status(status)}")


def css_status(status: str) -> str:
    """Return the class of a status: unknown words share one."""
    return f"is-{status}" if status in {"ran", "cached", "failed", "skipped"} else "is-other"


def _box(node: Node, x: float, y: float) -> Markup:
    body = [
        element("title", f"{node.name}: {node.status}, {node.note}"),
        element("rect", x=x, y=y, width=NODE_WIDTH, height=NODE_HEIGHT, rx=9, class_="box"),
        status_mark(node.status, x + 16, y + 18),
        element("text", shorten(node.name, 16), x=x + 29, y=y + 22, class_="name"),
        element("text", shorten(node.note, 24), x=x + 12, y=y + 40, class_="note"),
    ]
    group = element("g", *body, class_=f"node {css_status(node.status)}")
    return element("a", group, href=node.link) if node.link else group


def status_mark(status: str, x: float, y: float) -> Markup:
    """Return a small sign of a status, told apart by its shape and not by its colour alone."""
    sign = {
        "ran": "M-3 .2L-.8 2.5L3.2 -2.3",
        "cached": "M-2.6 -1.6H2.6M-2.6 1.6H2.6",
        "failed": "M-2.4 -2.4L2.4 2.4M2.4 -2.4L-2.4 2.4",
        "skipped": "M-2.6 0H2.6",
    }.get(status, "M0 -2.5V.8M0 2.4V2.6")
    return element(
        "g",
        element("circle", r=6.5, class_="disc"),
        element("path", d=sign, fill="none", class_="sign"),
        transform=f"translate({number(x)} {number(y)})",
        class_=f"mark {css_status(status)}",
    )


def rail(nodes: Sequence[Node]) -> Markup | None:
    """Return the drawing with one stage a row and the edges as arcs on their left: any number of stages fits."""
    order = topological(nodes)
    if not order:
        return None
    row = {node.name: index for index, node in enumerate(order)}
    spans = [row[node.name] - row[need] for node in order for need in node.needs if need in row]
    reach = max([span for span in spans if span > 1], default=1)
    lane = 14 + min(64.0, 9.0 * (reach - 1) ** 0.6 + 6) if reach > 1 else 14.0
    width, height = 358.0, len(order) * RAIL_ROW + 4

    def y_of(name: str) -> float:
        return 2 + (row[name] + 0.5) * RAIL_ROW

    edges = []
    for node in order:
        for need in dict.fromkeys(node.needs):
            if need not in row or row[need] >= row[node.name]:
                continue
            top, bottom, span = y_of(need), y_of(node.name), row[node.name] - row[need]
            bulge = 0.0 if span == 1 else (lane - 12) * min(1.0, 0.35 + 0.65 * (span - 1) / max(1, reach - 1)) * 4 / 3
            path = (
                f"M{number(lane)} {number(top)}C{number(lane - bulge)} {number(top + 12)} "
                f"{number(lane - bulge)} {number(bottom - 12)} {number(lane)} {number(bottom)}"
            )
            edges.append(element("path", d=path, fill="none", class_=f"edge {css_status(node.status)}"))
    rows = []
    for node in order:
        y = y_of(node.name)
        group = element(
            "g",
            element("title", f"{node.name}: {node.status}, {node.note}"),
            element("rect", x=lane - 10, y=y - 20, width=width - lane + 8, height=40, rx=8, class_="hit"),
            status_mark(node.status, lane, y),
            element("text", shorten(node.name, 34), x=lane + 16, y=y - 3, class_="name"),
            element("text", shorten(node.note, 44), x=lane + 16, y=y + 13, class_="note"),
            class_=f"node {css_status(node.status)}",
        )
        rows.append(element("a", group, href=node.link) if node.link else group)
    return picture(width, height, _title(nodes), join(edges), join(rows), class_="dag rail")
