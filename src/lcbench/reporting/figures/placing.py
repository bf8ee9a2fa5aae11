"""Where labels go so that none covers a marker or another label, and no leader line runs through either.

Pure geometry in points (1/72 inch): every label has some hundred places around its point; a local search moves one
label after the other to the place that costs least beside all others, from a few orders, until nothing collides. It
draws no random numbers, so the same picture comes out the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

Box = tuple[float, float, float, float]  # left, bottom, right, top
Segment = tuple[float, float, float, float]  # x and y of its two ends

_RINGS = (7, 11, 17, 25, 35, 47, 61, 77, 95, 116, 140, 168, 200, 240)
_NO_LEADER = 13  # a label nearer than this needs no line to its point
_DIRECTIONS = 24
_RIM_ACROSS, _RIM_UP = 4.0, 1.5  # free space between labels
_SWEEPS = 25
_ORDERS = 6
_PUSHES, _ALTERNATIVES = 80, 12
_MANY = 20  # of more labels only two orders are tried and none is pushed: each takes a second

# What a collision costs, above any sum of the wishes below it.
_COLLISION = 1e5
_HIDDEN = 10 * _COLLISION  # a text on a marker; a leader at least runs below it
_CROSSING = 400.0  # two leaders cross
_COVERED = 25.0  # a place on a line or an interval that a label hides


@dataclass(frozen=True)
class Wanted:
    """A label to be placed.

    Attributes:
        at: its point. width, height: of its text. radius: of the marker at its point.
    """

    at: tuple[float, float]
    width: float
    height: float
    radius: float = 6.0


@dataclass(frozen=True)
class Place:
    """Where a label goes. ``leader``: the line from the marker's rim to the label, None where it stands close by."""

    box: Box
    leader: Segment | None


@dataclass(frozen=True)
class Placed:
    """All labels. ``collisions``: how many pairs of label, marker and leader cover each other all the same."""

    places: tuple[Place, ...]
    collisions: int


def place(
    labels: Sequence[Wanted],
    inside: Box,
    *,
    markers: Sequence[tuple[float, float]] = (),
    marker_radius: float = 6.0,
    faint: Sequence[tuple[float, float]] = (),
) -> Placed:
    """Places for ``labels`` inside of a box.

    Args:
        markers: further markers, without a label, that must stay free.
        faint: places along lines that a label covers only where it must.
    """
    if not labels:
        return Placed((), 0)
    search = _Search(labels, inside, markers, marker_radius, faint)
    return search.best()


class _Search:
    def __init__(
        self,
        labels: Sequence[Wanted],
        inside: Box,
        markers: Sequence[tuple[float, float]],
        marker_radius: float,
        faint: Sequence[tuple[float, float]],
    ) -> None:
        import numpy as np

        self.labels = labels
        circles = [(*label.at, label.radius) for label in labels] + [(*at, marker_radius) for at in markers]
        self.circles = np.array(circles, dtype=float).reshape(-1, 3)
        points = np.array(faint, dtype=float).reshape(-1, 2)
        self.boxes: list[NDArray[Any]] = []
        self.leaders: list[NDArray[Any]] = []
        self.alone: list[NDArray[Any]] = []  # what each place costs without the other labels
        for index, label in enumerate(labels):
            boxes, leaders, wish = _candidates(label)
            others = np.delete(self.circles, index, axis=0)
            cost = wish + _HIDDEN * (_outside(boxes, inside) + _on_circles(boxes, others))
            cost += _COLLISION * _through_circles(leaders, others, label)
            cost += _COVERED * _points_in(boxes, points)
            self.boxes.append(boxes)
            self.leaders.append(leaders)
            self.alone.append(cost)

    def best(self) -> Placed:
        """The cheapest of the searches from several orders."""
        found: tuple[float, list[int]] | None = None
        for order in self._orders():
            cost, chosen = self._settle(order)
            if found is None or cost < found[0]:
                found = (cost, chosen)
            if cost < _COLLISION / 2:
                break
        assert found is not None
        cost, chosen = self._pushed(*found)
        places = []
        for index, which in enumerate(chosen):
            leader = self.leaders[index][which]
            line = None if math.isnan(leader[0]) else (leader[0], leader[1], leader[2], leader[3])
            box = self.boxes[index][which]
            places.append(Place((box[0], box[1], box[2], box[3]), line))
        return Placed(tuple(places), round(cost / _COLLISION))

    def _orders(self) -> list[list[int]]:
        """The most crowded first; then the same turned, so that others begin."""
        at = [label.at for label in self.labels]
        crowd = [sum(math.dist(a, b) < 60 for b in at) for a in at]
        first = sorted(range(len(at)), key=lambda i: -crowd[i])
        if len(first) > _MANY:
            return [first, sorted(first, key=lambda i: -at[i][1])]
        turn = max(1, len(first) // _ORDERS)
        orders = [first[k:] + first[:k] for k in range(0, len(first), turn)]
        return [*orders, first[::-1], sorted(first, key=lambda i: -at[i][1]), sorted(first, key=lambda i: at[i][0])]

    def _pushed(self, cost: float, chosen: list[int]) -> tuple[float, list[int]]:
        """Labels that still collide take one of their best places whoever stands there; the others make room."""
        tried: set[tuple[int, int]] = set()
        for _ in range(_PUSHES if len(chosen) <= _MANY else 0):
            if cost < _COLLISION / 2:
                break
            now = dict(enumerate(chosen))
            hit = [i for i in now if self._costs(i, now)[now[i]] > _COLLISION / 2]
            places = ((i, int(k)) for i in hit for k in self.alone[i].argsort()[:_ALTERNATIVES] if k != now[i])
            push = next((one for one in places if one not in tried), None)
            if push is None:
                break
            tried.add(push)
            index, spot = push
            rest = [i for i in now if i != index]
            # Those that stand in the way choose first, once the pushing one has its place.
            rest.sort(key=lambda i: -float(self._costs(i, {**now, index: spot})[now[i]]))
            other = self._settle([*rest, index], {**now, index: spot})
            if other[0] < cost:
                cost, chosen = other
                tried.clear()
        return cost, chosen

    def _settle(self, order: Sequence[int], start: dict[int, int] | None = None) -> tuple[float, list[int]]:
        chosen = dict(start or {})
        for index in order if start is None else ():
            chosen[index] = int(self._costs(index, chosen).argmin())
        for _ in range(_SWEEPS):
            moved = False
            for index in order:
                costs = self._costs(index, chosen)
                least = int(costs.argmin())
                if costs[least] < costs[chosen[index]] - 1e-9:
                    chosen[index], moved = least, True
            if not moved:
                break
        total = 0.0
        for index in order:
            pair = float(self._costs(index, chosen)[chosen[index]])
            own = float(self.alone[index][chosen[index]])
            total += own + (pair - own) / 2  # every pair is met twice
        return total, [chosen[index] for index in range(len(order))]

    def _costs(self, index: int, chosen: dict[int, int]) -> NDArray[Any]:
        """Of every place of a label, beside where the others are now."""
        import numpy as np

        others = [i for i in chosen if i != index]
        cost: NDArray[Any] = self.alone[index].copy()
        if not others:
            return cost
        boxes = np.array([self.boxes[i][chosen[i]] for i in others])
        leaders = np.array([self.leaders[i][chosen[i]] for i in others])
        mine, lines = self.boxes[index], self.leaders[index]
        cut = _cuts(lines, boxes) | _cuts(leaders, mine).T
        cost += (
            _HIDDEN * _overlaps(mine, boxes).sum(1)
            + _COLLISION * cut.sum(1)
            + _CROSSING * _crossings(lines, leaders).sum(1)
        )
        return cost


def _candidates(label: Wanted) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Boxes (K, 4), leaders (K, 4; NaN where none is needed) and what a reader would rather not have (K)."""
    import numpy as np

    boxes, leaders, wishes = [], [], []
    x, y = label.at
    half, tall = label.width / 2, label.height / 2
    for ring in _RINGS:
        for step in range(_DIRECTIONS):
            angle = 2 * math.pi * step / _DIRECTIONS
            across, up = math.cos(angle), math.sin(angle)
            reach = max(ring, label.radius + 2)
            # The centre such that the box's nearest edge is about ``reach`` away, whatever its shape.
            cx = x + across * reach + half * _soft(across)
            cy = y + up * reach + tall * _soft(up)
            box = (cx - half, cy - tall, cx + half, cy + tall)
            end = (min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3]))
            far = math.dist((x, y), end)
            wish = 3.0 * ring + (0 if across > 0.9 else 3 if abs(up) > 0.9 else 6)
            if far <= _NO_LEADER:
                line = (math.nan,) * 4
            else:
                # Text reads best when its leader comes to the middle of a side.
                end = (end[0], cy) if end[0] in (box[0], box[2]) and abs(end[1] - cy) < tall else end
                start = label.radius / far
                line = (x + (end[0] - x) * start, y + (end[1] - y) * start, *end)
                wish += 25
            boxes.append(box)
            leaders.append(line)
            wishes.append(wish)
    return np.array(boxes), np.array(leaders), np.array(wishes, dtype=float)


def _soft(share: float) -> float:
    """-1 or 1 away from the middle: a label stands beside or above its point, seldom half of both."""
    return max(-1.0, min(1.0, 1.6 * share))


def _outside(boxes: NDArray[Any], inside: Box) -> NDArray[Any]:
    return (
        (boxes[:, 0] < inside[0]) | (boxes[:, 1] < inside[1]) | (boxes[:, 2] > inside[2]) | (boxes[:, 3] > inside[3])
    ).astype(float)


def _on_circles(boxes: NDArray[Any], circles: NDArray[Any]) -> NDArray[Any]:
    """How many markers each box touches."""
    import numpy as np

    x = np.clip(circles[None, :, 0], boxes[:, None, 0], boxes[:, None, 2]) - circles[None, :, 0]
    y = np.clip(circles[None, :, 1], boxes[:, None, 1], boxes[:, None, 3]) - circles[None, :, 1]
    return np.asarray((x * x + y * y < circles[None, :, 2] ** 2).sum(1), dtype=float)


def _through_circles(lines: NDArray[Any], circles: NDArray[Any], label: Wanted) -> NDArray[Any]:
    """How many markers each leader runs through; not those that its own marker covers anyway."""
    import numpy as np

    apart = np.hypot(circles[:, 0] - label.at[0], circles[:, 1] - label.at[1]) > label.radius
    seen = circles[apart]
    start, along = lines[:, None, :2], lines[:, None, 2:] - lines[:, None, :2]
    length = np.maximum((along**2).sum(-1), 1e-9)
    share = np.clip(((seen[None, :, :2] - start) * along).sum(-1) / length, 0, 1)
    near = start + share[..., None] * along - seen[None, :, :2]
    with np.errstate(invalid="ignore"):
        return np.asarray((np.hypot(near[..., 0], near[..., 1]) < 0.75 * seen[None, :, 2]).sum(1), dtype=float)


def _points_in(boxes: NDArray[Any], points: NDArray[Any]) -> NDArray[Any]:
    import numpy as np

    x, y = points[None, :, 0], points[None, :, 1]
    within = (x > boxes[:, None, 0]) & (x < boxes[:, None, 2]) & (y > boxes[:, None, 1]) & (y < boxes[:, None, 3])
    return np.asarray(within.sum(1), dtype=float)


def _overlaps(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """(K, M): whether boxes cover each other or stand closer than the rim."""
    import numpy as np

    wide = np.minimum(a[:, None, 2], b[None, :, 2]) - np.maximum(a[:, None, 0], b[None, :, 0])
    high = np.minimum(a[:, None, 3], b[None, :, 3]) - np.maximum(a[:, None, 1], b[None, :, 1])
    return np.asarray((wide > -_RIM_ACROSS) & (high > -_RIM_UP))


def _cuts(lines: NDArray[Any], boxes: NDArray[Any]) -> NDArray[Any]:
    """(K, M): whether a line runs through a box (Liang and Barsky's clipping)."""
    import numpy as np

    x, y = lines[:, None, 0], lines[:, None, 1]
    dx, dy = lines[:, None, 2] - x, lines[:, None, 3] - y
    enter, leave = np.zeros((len(lines), len(boxes))), np.ones((len(lines), len(boxes)))
    with np.errstate(divide="ignore", invalid="ignore"):
        for step, begin, low, high in (
            (dx, x, boxes[None, :, 0], boxes[None, :, 2]),
            (dy, y, boxes[None, :, 1], boxes[None, :, 3]),
        ):
            # A line along the other axis never enters unless it lies inside.
            step = np.where(np.abs(step) < 1e-9, 1e-9, step)
            a, b = (low - 1 - begin) / step, (high + 1 - begin) / step
            enter, leave = np.maximum(enter, np.minimum(a, b)), np.minimum(leave, np.maximum(a, b))
        return np.asarray(enter < leave)  # NaN: no line


def _crossings(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """(K, M): whether two lines cross."""
    import numpy as np

    def side(p: NDArray[Any], q: NDArray[Any], r: NDArray[Any]) -> NDArray[Any]:
        turned = (q[..., 0] - p[..., 0]) * (r[..., 1] - p[..., 1]) - (q[..., 1] - p[..., 1]) * (r[..., 0] - p[..., 0])
        return np.asarray(turned)

    p, q, r, s = a[:, None, :2], a[:, None, 2:], b[None, :, :2], b[None, :, 2:]
    with np.errstate(invalid="ignore"):
        return np.asarray((side(p, q, r) * side(p, q, s) < 0) & (side(r, s, p) * side(r, s, q) < 0))
