"""The pipeline as a picture: a layered drawing for wide screens, a rail of stages for narrow ones and long chains."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from kdpipe.pipeline.report.svg import columns, element, join, number, picture, shorten, two_lines

WIDTHS = (132.0, 176.0)
COLUMN_GAP, ROW_GAP = 36.0, 16.0
LINE = 15.0
NAME_LETTER, NOTE_LETTER = 8.6, 5.9
RAIL_ROW = 46.0
WIDEST = 1160.0


@dataclass(frozen=True)
class Node:
    """A stage to draw.

    Args:
        name: unique.
        note: the second line: what kind of stage.
        time: how long it took, or empty.
        status: ran, cached, failed, skipped, or another word for none of them.
        needs: names of the stages whose outputs it takes; unknown ones are not drawn.
        link: the address to open on a click, or None.
    """

    name: str
    note: str
    status: str
    needs: tuple[str, ...] = ()
    time: str = ""
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


def reduced(nodes: Sequence[Node]) -> list[Node]:
    """Return the nodes without the needs that follow from others (the transitive reduction), unknown ones or cycles."""
    above: dict[str, set[str]] = {}
    found = []
    for node in topological(nodes):
        needs = [need for need in dict.fromkeys(node.needs) if need in above]
        implied = set().union(*(above[need] for need in needs)) if needs else set()
        above[node.name] = implied.union(needs)
        found.append(replace(node, needs=tuple(need for need in needs if need not in implied)))
    return found


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


@dataclass(frozen=True)
class Box:
    """The size of all boxes of a drawing."""

    width: float
    height: float

    @property
    def name_columns(self) -> int:
        """How many columns of a name fit beside the mark."""
        return int((self.width - 34) / NAME_LETTER)

    @property
    def note_columns(self) -> int:
        """How many columns of a note fit."""
        return int((self.width - 18) / NOTE_LETTER)


def layered(nodes: Sequence[Node]) -> Markup | None:
    """Return the drawing with the data flowing from left to right, or None where it would not fit on a page."""
    nodes = reduced(nodes)
    ranks = arrange(nodes)
    if not ranks or max(map(len, ranks)) > 14:
        return None
    room = (WIDEST - 4 - (len(ranks) - 1) * COLUMN_GAP) / len(ranks)
    if room < WIDTHS[0]:
        return None
    box = Box(min(room, WIDTHS[1]), 50.0)
    if any(len(two_lines(node.name, box.name_columns)) > 1 for node in nodes):
        box = Box(box.width, box.height + LINE)
    width = 4 + len(ranks) * (box.width + COLUMN_GAP) - COLUMN_GAP
    boxed = {node.name for node in nodes}
    tall = {name: box.height if name in boxed else 6.0 for column in ranks for name in column}
    heights = [sum(tall[name] + ROW_GAP for name in column) - ROW_GAP for column in ranks]
    height = max(heights) + 4
    centre: dict[str, float] = {}
    left: dict[str, float] = {}
    for index, (column, own_height) in enumerate(zip(ranks, heights, strict=True)):
        y = (height - own_height) / 2
        for name in column:
            left[name], centre[name] = 2 + index * (box.width + COLUMN_GAP), y + tall[name] / 2
            y += tall[name] + ROW_GAP
    depth = layers(nodes)
    edges = [
        _edge([need, *dummies(need, node.name, depth), node.name], left, centre, box.width, node.status)
        for node in nodes
        for need in node.needs
    ]
    boxes = [_box(node, left[node.name], centre[node.name] - box.height / 2, box) for node in nodes]
    return picture(width, height, _title(nodes), *edges, *boxes, class_="dag")


def _title(nodes: Sequence[Node]) -> str:
    return "Pipeline: " + "; ".join(
        f"{node.name} ({node.status})" + (f" from {', '.join(node.needs)}" if node.needs else "") for node in nodes[:60]
    )


def _edge(path: list[str], left: dict[str, float], centre: dict[str, float], width: float, status: str) -> Markup:
    """Return the curve through a path of nodes: horizontal through each, a smooth S between two."""
    x, y = left[path[0]] + width, centre[path[0]]
    commands = [f"M{number(x)} {number(y)}"]
    for name in path[1:]:
        to_x, to_y = left[name], centre[name]
        bend = (to_x - x) / 2
        commands.append(
            f"C{number(x + bend)} {number(y)} {number(to_x - bend)} {number(to_y)} {number(to_x)} {number(to_y)}"
        )
        x, y = to_x, to_y
        if name != path[-1]:
            x += width
            commands.append(f"H{number(x)}")
    tip = f"M{number(x - 6)} {number(y - 4)}L{number(x - 0.5)} {number(y)}L{number(x - 6)} {number(y + 4)}"
    return element("path", d="".join(commands) + tip, fill="none", class_=f"edge {css_status(status)}")


def css_status(status: str) -> str:
    """Return the class of a status: unknown words share one."""
    return f"is-{status}" if status in {"ran", "cached", "failed", "skipped"} else "is-other"


def note_of(node: Node, width: int) -> str:
    """Return the second line: the kind of stage, cut where it must be, and the time, whole."""
    if not node.time:
        return shorten(node.note, width)
    room = max(3, width - len(node.time) - 3)
    kind = node.note if columns(node.note) <= room else node.note[: room - 1] + "…"
    return f"{kind} · {node.time}"


def _box(node: Node, x: float, y: float, box: Box) -> Markup:
    lines = two_lines(node.name, box.name_columns)
    top = y + (box.height - 50 - LINE * (len(lines) - 1)) / 2
    body = [
        element("title", f"{node.name}: {node.status}, {node.note} {node.time}"),
        element("rect", x=x, y=y, width=box.width, height=box.height, rx=9, class_="box"),
        status_mark(node.status, x + 16, top + 17),
        *[element("text", line, x=x + 29, y=top + 22 + LINE * row, class_="name") for row, line in enumerate(lines)],
        element("text", note_of(node, box.note_columns), x=x + 12, y=top + 40 + LINE * (len(lines) - 1), class_="note"),
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
    order = reduced(nodes)
    if not order:
        return None
    row = {node.name: index for index, node in enumerate(order)}
    spans = [row[node.name] - row[need] for node in order for need in node.needs]
    reach = max([span for span in spans if span > 1], default=1)
    lane = 14 + min(64.0, 9.0 * (reach - 1) ** 0.6 + 6) if reach > 1 else 14.0
    width, height = 358.0, len(order) * RAIL_ROW + 4

    def y_of(name: str) -> float:
        return 2 + (row[name] + 0.5) * RAIL_ROW

    edges = []
    for node in order:
        for need in node.needs:
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
            element("title", f"{node.name}: {node.status}, {node.note} {node.time}"),
            element("rect", x=lane - 10, y=y - 20, width=width - lane + 8, height=40, rx=8, class_="hit"),
            status_mark(node.status, lane, y),
            element("text", shorten(node.name, 34), x=lane + 16, y=y - 3, class_="name"),
            element("text", note_of(node, 44), x=lane + 16, y=y + 13, class_="note"),
            class_=f"node {css_status(node.status)}",
        )
        rows.append(element("a", group, href=node.link) if node.link else group)
    return picture(width, height, _title(nodes), join(edges), join(rows), class_="dag rail")
