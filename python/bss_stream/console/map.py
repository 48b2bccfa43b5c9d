"""Where stations stand, a drawing for each region: true to directions, none over another."""

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

WIDTH: Final = 620
HEIGHT_MAX: Final = 420
HEIGHT_MIN: Final = 240
MARGIN: Final = 26
APART: Final = 30
"""Between the middles of two stations, in units of the drawing."""
ROUNDS: Final = 60


REGION_KM: Final = 60.0
"""Stations further apart than this, without others between them, are of different regions."""

_KM_PER_DEGREE: Final = 111.2


class Spot(NamedTuple):
    """A station's place on the drawing."""

    x: float
    y: float


class Plane(NamedTuple):
    """The drawing's size, and a spot for each station, in their order."""

    width: int
    height: int
    spots: list[Spot]


def regions(places: Sequence[tuple[float, float]]) -> list[list[int]]:
    """The numbers of the places (latitude, longitude) of each region, the largest first."""
    left = set(range(len(places)))
    found: list[list[int]] = []
    while left:
        region = [min(left)]
        left.discard(region[0])
        for one in region:  # It grows as neighbours are found.
            near = sorted(other for other in left if _km(places[one], places[other]) <= REGION_KM)
            region += near
            left.difference_update(near)
        found.append(sorted(region))
    return sorted(found, key=lambda region: (-len(region), region))


def middle(places: Sequence[tuple[float, float]]) -> int:
    """The number of the place that is nearest to all others' middle."""
    lat = sum(place[0] for place in places) / len(places)
    lon = sum(place[1] for place in places) / len(places)
    return min(range(len(places)), key=lambda number: _km(places[number], (lat, lon)))


def _km(one: tuple[float, float], other: tuple[float, float]) -> float:
    """Nearly: a drawing needs no more."""
    lat = math.radians((one[0] + other[0]) / 2)
    return _KM_PER_DEGREE * math.hypot(one[0] - other[0], (one[1] - other[1]) * math.cos(lat))


def plane(places: Sequence[tuple[float, float]]) -> Plane:
    """Latitudes and longitudes on a plane; stations that would overlap are moved apart."""
    if not places:
        return Plane(WIDTH, HEIGHT_MIN, [])
    mean_lat = math.radians(sum(lat for lat, _ in places) / len(places))
    xs = [lon * math.cos(mean_lat) for _, lon in places]
    ys = [-lat for lat, _ in places]
    wide, high = max(xs) - min(xs), max(ys) - min(ys)
    inner = WIDTH - 2 * MARGIN
    if wide > 0 and high > 0:
        scale = min(inner / wide, (HEIGHT_MAX - 2 * MARGIN) / high)
    else:
        scale = inner / (wide or high or 1)
    height = int(min(max(high * scale + 2 * MARGIN, HEIGHT_MIN), HEIGHT_MAX))
    # In the middle of what is left over.
    left = (WIDTH - wide * scale) / 2
    top = (height - high * scale) / 2
    spots = [
        [left + (x - min(xs)) * scale, top + (y - min(ys)) * scale]
        for x, y in zip(xs, ys, strict=True)
    ]
    _move_apart(spots, height)
    return Plane(WIDTH, height, [Spot(round(x, 1), round(y, 1)) for x, y in spots])


def _move_apart(spots: list[list[float]], height: int) -> None:
    for _ in range(ROUNDS):
        moved = False
        for number, one in enumerate(spots):
            for other in spots[:number]:
                dx, dy = one[0] - other[0], one[1] - other[1]
                apart = math.hypot(dx, dy)
                if apart >= APART:
                    continue
                if apart == 0:
                    # Always the same way: a page that is drawn again must not jump.
                    dx, dy, apart = math.cos(number), math.sin(number), 1.0
                push = (APART - apart) / 2 / apart
                one[0] += dx * push
                one[1] += dy * push
                other[0] -= dx * push
                other[1] -= dy * push
                moved = True
        for spot in spots:
            spot[0] = min(max(spot[0], MARGIN), WIDTH - MARGIN)
            spot[1] = min(max(spot[1], MARGIN), height - MARGIN)
        if not moved:
            return
