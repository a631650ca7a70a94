"""A small procedural world of 64x64 storybook avatars, completely described by booru-style tags.

Every picture is the head and shoulders of one friendly character.  A part of the picture is painted by one small
function, looked up by its tag; coordinates are picture pixels around the centre of the head (x right, y down).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from math import cos, radians, sin
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SIZE = 64
OVERSAMPLING = 4
MOST_OPTIONAL_TAGS = 4

Colour = tuple[int, int, int]
Points = Sequence[tuple[float, float]]


# ---------------------------------------------------------------------------------------------------- vocabulary


@dataclass(frozen=True)
class Tag:
    """A tag of the vocabulary; at most one tag of a group can be true of one picture."""

    name: str
    category: str
    group: str


# (group, category, how often the group is present: 1 means always, tags)
_VOCABULARY: tuple[tuple[str, str, str], ...] = (
    (
        "hair_color",
        "hair_color",
        "black_hair brown_hair blonde_hair red_hair blue_hair green_hair pink_hair white_hair",
    ),
    ("hair_style", "hair_style", "short_hair long_hair twintails side_ponytail double_bun curly_hair"),
    ("eyes", "eyes", "blue_eyes green_eyes brown_eyes purple_eyes closed_eyes"),
    ("expression", "expression", "smile open_mouth frown tongue_out surprised"),
    ("clothes", "clothes", "hoodie striped_shirt armor kimono overalls suit sweater"),
    (
        "background",
        "background",
        "night_sky sunset forest ocean snow checkered_background pink_background",
    ),
    ("eyewear", "eyewear", "glasses eyepatch domino_mask"),
    ("on_head", "headwear", "crown top_hat witch_hat beanie hair_bow headphones"),
    ("on_head", "animal_ears", "cat_ears rabbit_ears horns"),
    ("face", "face", "blush freckles beard"),
    ("neckwear", "neckwear", "scarf bowtie neck_bell"),
    ("companion", "companion", "balloon bird heart butterfly"),
)
TAGS: tuple[Tag, ...] = tuple(
    Tag(name, category, group) for group, category, names in _VOCABULARY for name in names.split()
)
CONFLICTS: frozenset[frozenset[str]] = frozenset({frozenset({"eyepatch", "closed_eyes"})})
OPTIONAL_GROUPS: Mapping[str, float] = {
    "eyewear": 0.36,
    "on_head": 0.68,
    "face": 0.36,
    "neckwear": 0.36,
    "companion": 0.42,
}
GROUPS: Mapping[str, tuple[Tag, ...]] = {
    group: tuple(tag for tag in TAGS if tag.group == group) for group in dict.fromkeys(tag.group for tag in TAGS)
}
_POSITION = {tag.name: position for position, tag in enumerate(TAGS)}


def _in_order(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(names), key=_POSITION.__getitem__))


def _allowed(name: str, chosen: Collection[str]) -> bool:
    return not any(frozenset({name, other}) in CONFLICTS for other in chosen)


def _pick(
    group: str, chosen: Collection[str], presence: float, rng: np.random.Generator, favour: Mapping[str, float]
) -> str | None:
    """One tag of the group, or None: with the chance 1 - presence, before favours are counted."""
    weights = [
        _allowed(tag.name, chosen)
        * presence
        / len(GROUPS[group])
        * float(np.prod([favour.get(key, 1.0) for key in {tag.name, tag.group, tag.category}]))
        for tag in GROUPS[group]
    ]
    weights.append(1.0 - presence)
    total = sum(weights)
    if total <= 0:
        raise ValueError(f"no tag of the group {group!r} is possible beside {sorted(chosen)}")
    position = int(np.searchsorted(np.cumsum(weights) / total, rng.random(), side="right"))
    return GROUPS[group][position].name if position < len(GROUPS[group]) else None


def complete(
    tags: Collection[str], rng: np.random.Generator, favour: Mapping[str, float] | None = None
) -> tuple[str, ...]:
    """The tags with every mandatory group that they leave open filled at random, in the order of TAGS."""
    unknown = set(tags) - set(_POSITION)
    if unknown:
        raise ValueError(f"unknown tags: {sorted(unknown)}")
    chosen = list(_in_order(tags))
    groups = [TAGS[_POSITION[name]].group for name in chosen]
    if len(groups) != len(set(groups)):
        raise ValueError(f"more than one tag of a group: {chosen}")
    for group in GROUPS:
        if group not in OPTIONAL_GROUPS and group not in groups:
            name = _pick(group, chosen, 1.0, rng, favour or {})
            assert name is not None
            chosen.append(name)
    return _in_order(chosen)


def sample_tags(rng: np.random.Generator, favour: Mapping[str, float] | None = None) -> tuple[str, ...]:
    """A complete description of one picture; favour multiplies the chance of tags, groups or categories, by name."""
    chosen = list(complete((), rng, favour))
    optional: list[str] = []
    for group, presence in OPTIONAL_GROUPS.items():
        name = _pick(group, chosen, presence, rng, favour or {})
        if name is not None:
            optional.append(name)
    while len(optional) > MOST_OPTIONAL_TAGS:
        optional.pop(int(rng.integers(len(optional))))
    return _in_order(chosen + optional)


def caption(tags: Collection[str], rng: np.random.Generator, fewest: int = 4) -> str:
    """Some of the tags (at least `fewest` of them, when there are so many), shuffled, as a line of plain words."""
    names = _in_order(tags)
    count = int(rng.integers(min(fewest, len(names)), len(names) + 1))
    return ", ".join(names[position].replace("_", " ") for position in rng.permutation(len(names))[:count])


# -------------------------------------------------------------------------------------------------------- colours

INK: Colour = (58, 38, 62)
WHITE: Colour = (255, 252, 246)
GOLD: Colour = (250, 198, 60)
RED: Colour = (222, 58, 66)
ROSE: Colour = (246, 140, 160)

HAIR_COLOURS: Mapping[str, Colour] = {
    "black_hair": (66, 60, 84),
    "brown_hair": (130, 80, 50),
    "blonde_hair": (250, 210, 98),
    "red_hair": (226, 58, 44),
    "blue_hair": (66, 122, 226),
    "green_hair": (82, 180, 92),
    "pink_hair": (250, 142, 190),
    "white_hair": (240, 240, 248),
}
EYE_COLOURS: Mapping[str, Colour] = {
    "blue_eyes": (50, 140, 250),
    "green_eyes": (56, 196, 84),
    "brown_eyes": (160, 92, 36),
    "purple_eyes": (172, 84, 236),
}
SKIN_COLOURS: tuple[Colour, ...] = ((255, 224, 200), (252, 210, 178), (236, 184, 144), (206, 148, 106), (166, 110, 78))


def mix(first: Colour, second: Colour, share: float) -> Colour:
    """The first colour with a share of the second."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


def darker(colour: Colour, share: float = 0.22) -> Colour:
    """A shadow of the colour, towards the ink."""
    return mix(colour, INK, share)


def lighter(colour: Colour, share: float = 0.35) -> Colour:
    """A highlight of the colour."""
    return mix(colour, WHITE, share)


def vary(colour: Colour, rng: np.random.Generator, amount: float = 9.0) -> Colour:
    """The colour with a slight random change of hue and brightness."""
    shift = rng.normal(0.0, amount * 0.6, 3) + rng.normal(0.0, amount * 0.6)
    red, green, blue = (int(min(255, max(0, a + min(16.0, max(-16.0, b))))) for a, b in zip(colour, shift, strict=True))
    return red, green, blue


# ------------------------------------------------------------------------------------------------------------ pen


@cache
def _spline(count: int, closed: bool, steps: int = 6) -> np.ndarray:
    """The matrix from control points to points of the Catmull-Rom curve through them."""
    rows = []
    for start in range(count if closed else count - 1):
        for t in np.arange(steps) / steps:
            weights = (-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2)
            row = np.zeros(count)
            for offset, weight in zip((-1, 0, 1, 2), weights, strict=True):
                place = start + offset
                row[place % count if closed else min(count - 1, max(0, place))] += weight / 2
            rows.append(row)
    if not closed:
        rows.append(np.eye(count)[-1])
    return np.array(rows)


_ANGLES = np.linspace(0.0, 2 * np.pi, 28, endpoint=False)
_CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)


class Pen:
    """Paints filled, outlined shapes, moved, scaled and tilted."""

    def __init__(
        self, image: Image.Image, centre: tuple[float, float], scale: float = 1.0, tilt: float = 0.0, line: float = 1.0
    ) -> None:
        self._draw = ImageDraw.Draw(image)
        c, s = cos(radians(tilt)) * scale * OVERSAMPLING, sin(radians(tilt)) * scale * OVERSAMPLING
        self._turn = np.array([[c, s], [-s, c]])
        self._centre = np.array(centre) * OVERSAMPLING
        self._line = line

    def _place(self, points: np.ndarray) -> list[float]:
        placed: list[float] = (points @ self._turn + self._centre).ravel().tolist()
        return placed

    def _fill(self, points: np.ndarray, fill: Colour, outline: bool) -> None:
        placed = self._place(points)
        if outline:
            self._draw.line(placed + placed[:4], INK, round(2 * self._line * OVERSAMPLING))
        self._draw.polygon(placed, fill)

    def polygon(self, points: Points, fill: Colour, outline: bool = True) -> None:
        """A shape with straight edges."""
        self._fill(np.array(points), fill, outline)

    def blob(self, points: Points, fill: Colour, outline: bool = True) -> None:
        """A shape with a smooth edge through the points."""
        self._fill(_spline(len(points), True) @ np.array(points), fill, outline)

    def oval(self, x: float, y: float, rx: float, ry: float, fill: Colour, outline: bool = True) -> None:
        """An ellipse."""
        if outline:
            self._draw.polygon(self._place(_CIRCLE * (rx + self._line, ry + self._line) + (x, y)), INK)
        self._draw.polygon(self._place(_CIRCLE * (rx, ry) + (x, y)), fill)

    def stroke(self, points: Points, colour: Colour, width: float) -> None:
        """A smooth line with round ends."""
        placed = self._place(_spline(len(points), False) @ np.array(points))
        self._draw.line(placed, colour, round(width * OVERSAMPLING))
        for x, y in (points[0], points[-1]):
            self.oval(x, y, width / 2, width / 2, colour, outline=False)


def mirrored(points: Points, side: float = -1.0) -> list[tuple[float, float]]:
    """The points, on the other side of the middle where side is -1."""
    return [(side * x, y) for x, y in points]


def symmetric(points: Points) -> list[tuple[float, float]]:
    """A closed shape of a right half, listed from the top to the bottom."""
    return [*points, *mirrored(points)[::-1]]


@dataclass(frozen=True)
class Look:
    """What the parts of one character share."""

    tags: frozenset[str]
    rng: np.random.Generator
    hair: Colour
    skin: Colour
    side: int  # +1: the companion is on the left and one-sided parts are on the right; -1: the other way round

    def shade(self, *colour: int) -> Colour:
        """A colour with the slight change that makes pictures differ."""
        red, green, blue = colour
        return vary((red, green, blue), self.rng)


Part = Callable[[Pen, Look], None]

# ----------------------------------------------------------------------------------------------------- background


def _gradient(image: Image.Image, top: Colour, bottom: Colour) -> None:
    ramp = np.linspace(np.array(top), np.array(bottom), image.height).astype(np.uint8)
    image.paste(Image.fromarray(np.repeat(ramp[:, None], image.width, axis=1)))


def _night_sky(image: Image.Image, pen: Pen, look: Look) -> None:
    _gradient(image, look.shade(34, 36, 98), look.shade(88, 78, 170))
    for left, top in ((-27, -16), (-18, -27), (-5, -28), (10, -29), (27, -8), (-28, 6), (28, 10), (21, -10), (-22, -6)):
        x, y = left + look.rng.uniform(-2, 2), top + look.rng.uniform(-2, 2)
        pen.polygon([(x, y - 2.4), (x + 1, y), (x, y + 2.4), (x - 1, y)], (255, 244, 190), False)
        pen.polygon([(x - 2.4, y), (x, y + 1), (x + 2.4, y), (x, y - 1)], (255, 244, 190), False)
    moon = [(17, -28), (22.5, -27.5), (26, -23), (25, -18), (20.5, -15.5), (16, -17.5), (20.5, -19.5), (21.5, -24)]
    pen.blob(mirrored(moon, look.side), (255, 240, 176), False)


def _sunset(image: Image.Image, pen: Pen, look: Look) -> None:
    _gradient(image, look.shade(232, 96, 122), look.shade(255, 206, 110))
    x = 19 * look.side + look.rng.uniform(-2, 2)
    pen.oval(x, -2, 13, 13, (255, 190, 96), False)
    pen.oval(x, -2, 9.5, 9.5, (255, 238, 160), False)
    for y, start in ((-22, -34), (-12, 4), (-16, -40)):
        pen.stroke([(start, y), (start + 22, y)], (252, 150, 130), 3)
    pen.blob([(-50, 12), (-24, 6), (0, 12), (24, 7), (50, 12), (50, 50), (-50, 50)], look.shade(140, 66, 118), False)


def _forest(image: Image.Image, pen: Pen, look: Look) -> None:
    _gradient(image, look.shade(206, 238, 190), look.shade(150, 210, 130))
    far, near = look.shade(106, 178, 104), look.shade(54, 134, 78)
    for left, top, colour in ((-15, -14, far), (15, -15, far), (-25, -8, near), (26, -7, near)):
        x, y = left + look.rng.uniform(-2, 2), top + look.rng.uniform(-3, 2)
        for step in (0, 9, 18):
            pen.polygon([(x, y - 12 + step), (x + 9, y + 4 + step), (x - 9, y + 4 + step)], colour, False)
    pen.blob([(-50, 22), (-22, 17), (0, 20), (22, 17), (50, 22), (50, 50), (-50, 50)], look.shade(92, 160, 78), False)


def _ocean(image: Image.Image, pen: Pen, look: Look) -> None:
    _gradient(image, look.shade(136, 212, 252), look.shade(214, 242, 252))
    x = 20 * look.side + look.rng.uniform(-2, 2)
    for dx, r in ((-5, 3.6), (0, 5), (5, 3.6)):
        pen.oval(x + dx, -21, r + 1, r, WHITE, False)
    pen.polygon([(-50, -6), (50, -6), (50, 50), (-50, 50)], look.shade(34, 132, 206), False)
    for y, phase in ((0, 0.0), (8, 5.0), (16, 0.0)):
        for start in range(-40, 40, 10):
            pen.stroke([(start + phase, y), (start + phase + 3, y - 2), (start + phase + 6, y)], (150, 220, 246), 1.8)


def _snow(image: Image.Image, pen: Pen, look: Look) -> None:
    _gradient(image, look.shade(138, 162, 196), look.shade(196, 210, 230))
    pen.blob([(-50, 8), (-24, 2), (0, 8), (24, 3), (50, 8), (50, 50), (-50, 50)], (240, 246, 255), False)
    for x, y in ((-26, -24), (-14, -28), (2, -29), (15, -27), (27, -22), (-27, -9), (-19, -16), (20, -14), (27, -6)):
        pen.oval(x + look.rng.uniform(-2, 2), y + look.rng.uniform(-2, 2), 1.8, 1.8, WHITE, False)


def _checkered(image: Image.Image, pen: Pen, look: Look) -> None:
    _gradient(image, look.shade(250, 238, 206), look.shade(250, 238, 206))
    colour, cell = look.shade(120, 204, 190), 10.7
    dx, dy = look.rng.uniform(-2, 2, 2)
    for row in range(-4, 4):
        for column in range(-4, 4):
            if (row + column) % 2:
                x, y = column * cell + dx, row * cell + dy
                pen.polygon([(x, y), (x + cell, y), (x + cell, y + cell), (x, y + cell)], colour, False)


def _pink(image: Image.Image, pen: Pen, look: Look) -> None:
    _gradient(image, look.shade(255, 186, 208), look.shade(255, 162, 194))


BACKGROUNDS: Mapping[str, Callable[[Image.Image, Pen, Look], None]] = {
    "night_sky": _night_sky,
    "sunset": _sunset,
    "forest": _forest,
    "ocean": _ocean,
    "snow": _snow,
    "checkered_background": _checkered,
    "pink_background": _pink,
}

# ------------------------------------------------------------------------------ companions, around their own centre


def _balloon(pen: Pen, look: Look) -> None:
    pen.stroke([(0, 8), (1.5, 13), (-1, 18), (1, 24)], INK, 1.2)
    pen.polygon([(0, 6), (2.5, 10), (-2.5, 10)], (190, 40, 50))
    pen.oval(0, 0, 6.6, 7.8, look.shade(236, 62, 66))
    pen.oval(-2.4, -3, 1.7, 2.3, (255, 196, 190), False)


def _bird(pen: Pen, look: Look) -> None:
    body = look.shade(64, 150, 240)
    pen.polygon(mirrored([(-4, 1), (-9.5, -3), (-9.5, 4)], look.side), darker(body))
    pen.polygon(mirrored([(5, -1.6), (10, 1), (5, 3)], look.side), (255, 168, 50))
    pen.oval(0, 0, 6.8, 6, body)
    pen.oval(1.5 * look.side, 2.6, 4, 3, WHITE, False)
    pen.blob(mirrored([(-5, -1), (-1, -1), (0, 3), (-4, 4)], look.side), darker(body), False)
    pen.oval(3 * look.side, -2, 1.3, 1.6, INK, False)


def _heart(pen: Pen, look: Look) -> None:
    colour = look.shade(250, 70, 130)
    half = [(0, -3.5), (2, -6.5), (5.5, -6.8), (7.8, -3.5), (6.6, 0.5), (3.4, 4.2), (0, 7.5)]
    pen.blob([*half, *mirrored(half[1:-1])[::-1]], colour)
    pen.oval(-3.8, -3, 1.7, 1.8, (255, 200, 220), False)


def _butterfly(pen: Pen, look: Look) -> None:
    colour = look.shade(255, 156, 40)
    for side in (-1, 1):
        pen.blob(mirrored([(0.5, 0), (3, -6.5), (7.5, -6.5), (7.5, -1.5), (3, 1)], side), colour)
        pen.blob(mirrored([(0.5, 0.5), (5.5, 1), (6, 5), (2.5, 6)], side), lighter(colour, 0.3))
        pen.oval(5 * side, -3.6, 1.6, 1.6, (255, 240, 190), False)
    pen.oval(0, 0, 1.3, 5, INK, False)


COMPANIONS: Mapping[str, Part] = {"balloon": _balloon, "bird": _bird, "heart": _heart, "butterfly": _butterfly}

# ----------------------------------------------------------------------------------------------------------- hair

_CAP_OUTSIDE = [(15.2, 3.0), (16.6, -4.0), (14.0, -12.0), (7.5, -16.6), (0.0, -17.8)]
_FRINGES = (
    [(-13, 0), (-10.5, -5), (-6, -4.6), (-3, -7), (1, -4.6), (5, -7), (8, -4.6), (11, -6), (13, 0)],
    [(-13, 0), (-11, -4.4), (-4, -5.4), (3, -8.6), (6, -10), (8, -7), (11, -4.6), (13, 0)],
    [(-13, 0), (-11.5, -4.6), (-6, -5), (0, -4.8), (6, -5), (11.5, -4.6), (13, 0)],
)


def _lock(pen: Pen, look: Look, side: float, points: Points, shine: Points) -> None:
    pen.blob(mirrored(points, side), look.hair)
    pen.stroke(mirrored(shine, side), lighter(look.hair), 1.8)


def _tail(pen: Pen, look: Look, side: float) -> None:
    """A bunch of hair at one side, with its ribbon."""
    points = [(14, -8), (19, -11.5), (24.5, -7), (26, 2), (24, 11), (20.5, 18), (19, 10), (17, 2), (14, -3)]
    _lock(pen, look, side, points, [(20, -7), (22.5, -2), (22.6, 5)])
    pen.oval(15.4 * side, -6.5, 2.4, 3, (110, 80, 210) if "red_hair" in look.tags else RED)


def _twintails(pen: Pen, look: Look) -> None:
    _tail(pen, look, 1)
    _tail(pen, look, -1)


def _side_ponytail(pen: Pen, look: Look) -> None:
    """One big tail, tied higher than twintails and with a ribbon of its own colour."""
    points = [(12, -12), (19, -18.5), (26, -14), (27.5, -3), (25, 7), (20.5, 14), (20, 3), (17.5, -4), (14, -7)]
    _lock(pen, look, look.side, points, [(20.5, -13.5), (23.6, -8), (23.8, 0)])
    pen.oval(15.6 * look.side, -10, 3, 3.8, (70, 206, 196))


def _long_back(pen: Pen, look: Look) -> None:
    half = [(0, -17), (10, -15), (17, -6), (18.5, 6), (19.5, 20), (17, 31), (6, 31)]
    pen.blob(symmetric(half), darker(look.hair))


def _long_front(pen: Pen, look: Look) -> None:
    for side in (-1, 1):
        points = [(13.2, -3), (16.8, -3), (18.6, 6), (20.4, 18), (18, 29), (14, 24), (13.6, 13), (14, 6)]
        _lock(pen, look, side, points, [(16, 5), (17, 13), (17.4, 21)])


def _double_bun(pen: Pen, look: Look) -> None:
    for side in (-1, 1):
        pen.oval(15.5 * side, -12.5, 6.2, 6.2, look.hair)
        pen.stroke(mirrored([(12.8, -14), (16, -16), (18.6, -13.4)], side), lighter(look.hair), 1.7)


_CURLS = tuple((16.5 * cos(radians(a)), 16 * sin(radians(a)) - 4) for a in range(-240, 61, 30))


def _curly_back(pen: Pen, look: Look) -> None:
    for x, y in _CURLS:
        pen.oval(x, y, 6.4, 6.4, INK, outline=True)
    for x, y in _CURLS:
        pen.oval(x, y, 6.4, 6.4, look.hair, outline=False)
    pen.oval(0, -5, 16, 15, look.hair, False)
    for x, y in _CURLS[1:-1:2]:
        pen.stroke([(x - 2.6, y + 0.8), (x - 1, y - 2.2), (x + 2.4, y - 1.8)], lighter(look.hair), 1.7)


def _cap(pen: Pen, look: Look) -> None:
    """The hair on top of the head, with one of some fringes and its shadow on the forehead."""
    fringe = mirrored(_FRINGES[int(look.rng.integers(len(_FRINGES)))], look.side)
    fringe = fringe if look.side == 1 else fringe[::-1]
    pen.blob([(x * 0.97, y + 1.8) for x, y in fringe] + [(12, -9), (-12, -9)], darker(look.skin, 0.2), False)
    pen.blob([*_CAP_OUTSIDE, *mirrored(_CAP_OUTSIDE[:-1])[::-1], *fringe], look.hair)
    pen.stroke([(-10.5, -8.5), (-7.5, -12), (-2.5, -13.8)], lighter(look.hair), 2.4)
    pen.oval(2, -14, 1.3, 1.2, lighter(look.hair), False)


def _curly_front(pen: Pen, look: Look) -> None:
    pen.oval(0, -6.2, 11.8, 4, darker(look.skin, 0.2), False)
    for x, y, r in ((-11.5, -6, 4.6), (11.5, -6, 4.6), (-4.2, -9.2, 5.2), (4.4, -9.2, 5.2)):
        pen.oval(x, y, r, r, look.hair)
    pen.oval(0, -12.5, 13.5, 5.5, look.hair, False)
    for x, y in ((-4.5, -11.5), (4.5, -11.5), (-11, -9)):
        pen.stroke([(x - 2.4, y + 1), (x - 0.4, y - 1.4), (x + 2.2, y)], lighter(look.hair), 1.7)


HAIR_BACKS: Mapping[str, Part] = {
    "twintails": _twintails,
    "side_ponytail": _side_ponytail,
    "long_hair": _long_back,
    "double_bun": _double_bun,
    "curly_hair": _curly_back,
}

# -------------------------------------------------------------------------------------------------------- clothes

_TORSO = [(5.5, 14.5), (12, 16.5), (18.5, 19.5), (21.5, 25), (22.5, 38)]


def _torso(pen: Pen, colour: Colour) -> None:
    pen.blob(symmetric([*_TORSO, (12, 42)]), colour)
    for side in (-1, 1):
        pen.stroke(mirrored([(13.8, 26), (14.6, 31), (14.6, 40)], side), darker(colour), 1.6)


def _neckline(pen: Pen, look: Look, depth: float = 19.5) -> None:
    pen.blob([(-5.5, 13), (5.5, 13), (4.5, depth - 1.5), (0, depth), (-4.5, depth - 1.5)], look.skin)


def _hoodie(pen: Pen, look: Look) -> None:
    colour = look.shade(46, 176, 158)
    _torso(pen, colour)
    pen.blob([(-13.5, 15), (-8, 13), (8, 13), (13.5, 15), (9, 20.5), (0, 23), (-9, 20.5)], darker(colour))
    pen.blob([(-6, 13), (6, 13), (4, 18), (0, 19.5), (-4, 18)], darker(look.skin, 0.12), False)
    for side in (-1, 1):
        pen.stroke([(4.5 * side, 21), (5 * side, 29)], WHITE, 1.8)


def _striped_shirt(pen: Pen, look: Look) -> None:
    _torso(pen, look.shade(250, 248, 244))
    colour = look.shade(44, 70, 160)
    for y, half_width in ((20, 18), (26, 21.2), (32, 21.8)):
        stripe = symmetric([(half_width, y), (half_width + 0.5, y + 3)])
        pen.polygon(stripe, colour, False)
    _neckline(pen, look, 18.6)


def _armor(pen: Pen, look: Look) -> None:
    steel = look.shade(164, 178, 196)
    _torso(pen, steel)
    pen.stroke([(0, 20), (0, 38)], darker(steel, 0.35), 1.6)
    pen.blob([(-8, 13), (8, 13), (9, 18), (0, 20), (-9, 18)], lighter(steel, 0.4))
    for side in (-1, 1):
        pen.oval(17.5 * side, 21, 6.4, 5.6, lighter(steel, 0.2))
        pen.oval(17.5 * side, 21.5, 2, 1.8, GOLD, False)
        pen.stroke(mirrored([(4, 24), (8, 26), (11, 25)], side), lighter(steel, 0.75), 2)


def _kimono(pen: Pen, look: Look) -> None:
    colour = look.shade(154, 70, 176)
    _torso(pen, colour)
    _neckline(pen, look, 21)
    for side in (-1, 1):
        for x, y in ((12, 21), (17.5, 25)):
            pen.oval(x * side, y, 1.7, 1.7, (255, 206, 226), False)
    for side in (look.side, -look.side):
        pen.stroke(mirrored([(-6.6, 13.4), (0, 19.6), (9, 29)], side), INK, 5.2)
        pen.stroke(mirrored([(-6.6, 13.4), (0, 19.6), (9, 29)], side), (255, 244, 232), 3.2)
    pen.polygon([(-15, 26), (15, 26), (15, 40), (-15, 40)], look.shade(244, 190, 66))


def _overalls(pen: Pen, look: Look) -> None:
    denim = look.shade(64, 108, 190)
    _torso(pen, look.shade(255, 214, 84))
    _neckline(pen, look, 18.6)
    for side in (-1, 1):
        pen.polygon(mirrored([(8, 15.5), (12, 16.5), (9.5, 25), (5.5, 25)], side), denim)
    pen.polygon([(-9.5, 22.5), (9.5, 22.5), (11.5, 40), (-11.5, 40)], denim)
    for side in (-1, 1):
        pen.oval(7 * side, 24.6, 1.7, 1.7, WHITE, False)


def _suit(pen: Pen, look: Look) -> None:
    cloth = look.shade(72, 74, 100)
    _torso(pen, cloth)
    pen.polygon([(-6.5, 13), (6.5, 13), (0, 30)], WHITE)
    for side in (-1, 1):
        pen.polygon(mirrored([(5, 13.5), (10, 15.5), (8.8, 22), (0.4, 30.5), (3, 21)], side), lighter(cloth, 0.16))
    pen.oval(-13 * look.side, 23, 2, 2, RED, False)


def _sweater(pen: Pen, look: Look) -> None:
    wool = look.shade(236, 124, 50)
    _torso(pen, wool)
    zigzag = [(x, 24.8 if step % 2 else 21.4) for step, x in enumerate(np.linspace(-17.5, 17.5, 9).tolist())]
    pen.stroke(zigzag, (255, 238, 206), 2.4)
    pen.stroke([(-14, 30), (14, 30)], (255, 238, 206), 2.4)
    pen.blob([(-7, 12), (7, 12), (7.8, 16), (6, 18.6), (-6, 18.6), (-7.8, 16)], lighter(wool, 0.2))


CLOTHES: Mapping[str, Part] = {
    "hoodie": _hoodie,
    "striped_shirt": _striped_shirt,
    "armor": _armor,
    "kimono": _kimono,
    "overalls": _overalls,
    "suit": _suit,
    "sweater": _sweater,
}


def _scarf(pen: Pen, look: Look) -> None:
    colour = look.shade(226, 54, 60)
    x = 5.5 * look.side
    pen.polygon([(x - 3.4, 18), (x + 3.4, 18), (x + 4.2, 29), (x - 3.4, 29)], darker(colour))
    pen.polygon([(x - 3.5, 24), (x + 3.8, 24), (x + 4, 26.5), (x - 3.5, 26.5)], WHITE, False)
    pen.blob([(-12, 13.5), (0, 12), (12, 13.5), (12.5, 18), (6, 20.8), (-6, 20.8), (-12.5, 18)], colour)
    for side in (-1, 1):
        pen.stroke([(7.6 * side, 14.5), (7.2 * side, 19.6)], WHITE, 2.2)


def _bowtie(pen: Pen, look: Look) -> None:
    colour = look.shade(240, 60, 150)
    for side in (-1, 1):
        pen.blob(mirrored([(0.5, 18), (5, 14.4), (8.6, 14.6), (8.6, 22), (5, 22.4), (0.5, 19.4)], side), colour)
    pen.oval(0, 18.6, 2, 2.4, lighter(colour, 0.3))


def _neck_bell(pen: Pen, look: Look) -> None:
    pen.stroke([(-7.5, 13.6), (0, 16.6), (7.5, 13.6)], INK, 5.2)
    pen.stroke([(-7.5, 13.6), (0, 16.6), (7.5, 13.6)], look.shade(60, 120, 230), 3.4)
    pen.oval(0, 20.2, 4.6, 4.4, look.shade(*GOLD))
    pen.stroke([(-3.6, 20.6), (3.6, 20.6)], INK, 1.2)
    pen.oval(0, 22.4, 1.2, 1.2, INK, False)
    pen.oval(-1.6, 18, 1.3, 1, WHITE, False)


NECKWEAR: Mapping[str, Part] = {"scarf": _scarf, "bowtie": _bowtie, "neck_bell": _neck_bell}

# ----------------------------------------------------------------------------------------------------------- face


def _head(pen: Pen, look: Look) -> None:
    for side in (-1, 1):
        pen.oval(14.6 * side, 2.5, 2.8, 3.4, look.skin)
        pen.oval(15 * side, 2.8, 1.3, 1.8, darker(look.skin), False)
    half = [(0, -14), (9, -12), (14.2, -4), (13.8, 4), (9.4, 10.8), (3.2, 13.4)]
    pen.blob([*half, *mirrored(half[1:])[::-1]], look.skin)


def _blush(pen: Pen, look: Look) -> None:
    for side in (-1, 1):
        pen.oval(9.4 * side, 8.2, 3.7, 2.5, mix(look.skin, (252, 66, 92), 0.74), False)


def _freckles(pen: Pen, look: Look) -> None:
    for side in (-1, 1):
        for x, y in ((6.9, 8.4), (10.9, 7.6), (9.2, 10.5)):
            pen.oval(x * side, y, 1.15, 1.15, mix(look.skin, (100, 32, 10), 0.8), False)


def _beard(pen: Pen, look: Look) -> None:
    right = [(0, 7.2), (4.8, 6.6), (8.4, 9.4), (13, 6.8), (12.4, 11), (8.6, 15), (4, 18.2), (0, 19)]
    pen.blob([*right, *mirrored(right[1:-1])[::-1]], look.hair)
    pen.oval(0, 10, 5.6, 3.1, look.skin, False)
    for side in (-1, 1):
        pen.stroke(mirrored([(2.4, 16), (5.6, 14.4)], side), lighter(look.hair), 1.6)


FACES: Mapping[str, Part] = {"blush": _blush, "freckles": _freckles, "beard": _beard}


def _open_eyes(pen: Pen, look: Look, iris: Colour) -> None:
    iris = vary(iris, look.rng)
    for side in (-1, 1):
        x = 6.4 * side
        pen.oval(x, 1, 3.9, 4.9, INK, False)
        pen.oval(x, 1.7, 3.3, 3.9, iris, False)
        pen.oval(x, 3.6, 2.2, 1.7, lighter(iris, 0.4), False)
        pen.oval(x, 1.2, 1.4, 2.0, INK, False)
        pen.oval(x - 1.3, -1, 1.3, 1.5, WHITE, False)


def _closed_eyes(pen: Pen, look: Look) -> None:
    for side in (-1, 1):
        x = 6.4 * side
        pen.stroke([(x - 3.8, 2.8), (x - 2, 0.4), (x + 2, 0.4), (x + 3.8, 2.8)], INK, 1.9)


EYES: Mapping[str, Part] = {
    **{name: partial(_open_eyes, iris=colour) for name, colour in EYE_COLOURS.items()},
    "closed_eyes": _closed_eyes,
}


def _smile(pen: Pen, look: Look) -> None:
    pen.stroke([(-4.6, 7.6), (-2.4, 9.8), (2.4, 9.8), (4.6, 7.6)], INK, 1.9)


def _open_mouth(pen: Pen, look: Look) -> None:
    pen.blob([(-4.6, 7.2), (0, 7.5), (4.6, 7.2), (3.4, 10.6), (0, 12), (-3.4, 10.6)], (150, 36, 50))
    pen.oval(0, 10.6, 2.3, 1.3, ROSE, False)
    pen.polygon([(-3.6, 7.1), (3.6, 7.1), (3.2, 8.5), (-3.2, 8.5)], WHITE, False)


def _frown(pen: Pen, look: Look) -> None:
    pen.stroke([(-4.6, 10.9), (-2.2, 8.6), (2.2, 8.6), (4.6, 10.9)], INK, 1.9)


def _tongue_out(pen: Pen, look: Look) -> None:
    pen.blob([(-0.8, 8.6), (4.2, 8.4), (4.2, 11.6), (1.7, 13.2), (-0.8, 11.6)], (250, 96, 124))
    pen.stroke([(-5, 7.4), (-2.4, 8.8), (2.4, 8.8), (5, 7.4)], INK, 1.9)


def _surprised(pen: Pen, look: Look) -> None:
    pen.oval(0, 9.8, 2.3, 2.9, (150, 36, 56))
    pen.oval(0, 11.4, 1.6, 1.1, ROSE, False)


EXPRESSIONS: Mapping[str, Part] = {
    "smile": _smile,
    "open_mouth": _open_mouth,
    "frown": _frown,
    "tongue_out": _tongue_out,
    "surprised": _surprised,
}


def _brows(pen: Pen, look: Look) -> None:
    """The eyebrows of a frown and of a surprise, over the fringe, as cartoons have them."""
    raised = [(3.4, -6.4), (6.4, -7.8), (9.4, -6.4)]
    shapes: Mapping[str, Points] = {"frown": [(3, -6.6), (9, -4.8)], "surprised": raised}
    for name, shape in shapes.items():
        if name in look.tags:
            for side in (-1, 1):
                pen.stroke(mirrored(shape, side), INK, 1.7)


def _glasses(pen: Pen, look: Look) -> None:
    frame = look.shade(16, 158, 156)
    for side in (-1, 1):
        x = 6.9 * side
        pen.stroke(mirrored([(12, 0), (15, -0.8)], side), frame, 2)
        ring = [(x + 5.6 * cos(a), 0.8 + 5.5 * sin(a)) for a in np.linspace(0, 2 * np.pi, 11).tolist()]
        pen.stroke(ring, frame, 2)
    pen.stroke([(-1.6, 0.4), (0, -0.2), (1.6, 0.4)], frame, 2)


def _eyepatch(pen: Pen, look: Look) -> None:
    x = 6.4 * look.side
    pen.stroke([(-14 * look.side, -7.5), (x, -2), (14.5 * look.side, 3)], (40, 34, 44), 2)
    pen.blob([(x - 5, -3.6), (x + 5, -3.6), (x + 5, 3), (x, 7), (x - 5, 3)], (40, 34, 44))
    pen.stroke([(x - 2.6, -1.2), (x + 0.6, -1.6)], (104, 92, 116), 1.6)


def _domino_mask(pen: Pen, look: Look) -> None:
    half = [(0, -3), (6, -5.6), (13.6, -5), (13.2, 3), (8, 6.8), (2.6, 5.2), (0, 3.6)]
    pen.blob([*half, *mirrored(half[1:-1])[::-1]], look.shade(104, 92, 196))


EYEWEAR: Mapping[str, Part] = {"glasses": _glasses, "eyepatch": _eyepatch}

# ---------------------------------------------------------------------------------------------------- on the head


def _crown(pen: Pen, look: Look) -> None:
    gold = look.shade(*GOLD)
    pen.polygon(symmetric([(0, -25.5), (4.2, -19.6), (10.8, -24), (9, -12.6)]), gold)
    pen.stroke([(-8, -13.6), (0, -13), (8, -13.6)], darker(gold), 2)
    for x, colour in ((-5.6, (70, 150, 250)), (0, RED), (5.6, (70, 150, 250))):
        pen.oval(x, -16.6, 1.7, 1.7, colour, False)


def _top_hat(pen: Pen, look: Look) -> None:
    felt = look.shade(62, 56, 78)
    pen.polygon([(-8.5, -13), (-9.5, -29.5), (9.5, -29.5), (8.5, -13)], felt)
    pen.polygon([(-8.6, -14), (-8.9, -19), (8.9, -19), (8.6, -14)], RED, False)
    pen.stroke([(-6.5, -27), (-6.2, -21.4)], lighter(felt), 2)
    pen.oval(0, -12.6, 15.5, 2.8, felt)


def _witch_hat(pen: Pen, look: Look) -> None:
    felt = look.shade(112, 68, 180)
    tip = [(9.5, -11), (6, -20), (5.5, -26), (11, -29.5), (3.5, -30.5), (-2.5, -26), (-7, -18), (-9.5, -11)]
    pen.blob(mirrored(tip, look.side), felt)
    pen.polygon([(-9, -12), (-8, -16.5), (7.6, -16.5), (9, -12)], (255, 150, 40), False)
    pen.oval(0, -11, 19, 3.2, felt)
    pen.stroke([(-15, -11.6), (-6, -12.6)], lighter(felt), 1.5)
    pen.polygon([(-2.6, -17), (2.6, -17), (2.6, -12.6), (-2.6, -12.6)], GOLD)


def _beanie(pen: Pen, look: Look) -> None:
    wool = look.shade(70, 130, 222)
    pen.oval(0, -25, 4.2, 4, WHITE)
    pen.blob(symmetric([(0, -22.6), (8, -21), (14.5, -14.5), (15.8, -8), (8, -8)]), wool)
    for x in (-6.5, 0, 6.5):
        pen.stroke([(x * 0.7, -19.5), (x * 1.2, -12)], lighter(wool), 2)
    brim = [(0.0, -13.4), (16.4, -12), (17, -8.6), (15.6, -6.6), (0, -7.8)]
    pen.blob([*brim, *mirrored(brim[1:-1])[::-1]], WHITE)


def _hair_bow(pen: Pen, look: Look) -> None:
    reddish = bool(look.tags & {"red_hair", "pink_hair", "brown_hair"})
    colour = look.shade(90, 190, 250) if reddish else look.shade(236, 60, 84)
    for side in (-1, 1):
        pen.blob(mirrored([(0, -18), (6, -24.5), (12, -24), (12.4, -13.5), (6, -12.5)], side), colour)
        pen.stroke(mirrored([(4, -18.2), (8, -18.8)], side), darker(colour), 1.7)
    pen.oval(0, -18, 3, 3.4, lighter(colour))


def _headphones(pen: Pen, look: Look) -> None:
    band = [(-16.5, 1), (-17, -10), (-10, -18.5), (0, -20.6), (10, -18.5), (17, -10), (16.5, 1)]
    pen.stroke(band, INK, 5)
    pen.stroke(band, (236, 238, 244), 3)
    for side in (-1, 1):
        pen.oval(16.6 * side, 2.4, 4.2, 6.2, look.shade(255, 106, 62))
        pen.oval(17 * side, 2.4, 1.8, 3.2, (255, 196, 160), False)


def _cat_ears(pen: Pen, look: Look) -> None:
    outside = [(3.6, -15.6), (8, -21), (13.6, -25.6), (15.2, -18), (14.6, -9.5), (9, -12)]
    for side in (-1, 1):
        pen.blob(mirrored(outside, side), look.hair)
        pen.blob(mirrored([(7.6, -16.4), (12.4, -21.6), (12.8, -13), (10, -13.6)], side), ROSE, False)


def _rabbit_ears(pen: Pen, look: Look) -> None:
    for side in (-1, 1):
        shape = [(3.4, -14), (2.8, -22), (6, -30.5), (10.6, -30), (12, -23), (9.6, -13)]
        pen.blob(mirrored(shape, side), (250, 246, 244))
        pen.blob(mirrored([(5.4, -16), (5.4, -22), (7.6, -27.6), (9.6, -23), (8.4, -16)], side), ROSE, False)


def _horns(pen: Pen, look: Look) -> None:
    bone = look.shade(236, 208, 160)
    shape = [(5, -12.5), (7.6, -19), (14, -21), (15.6, -28), (20.4, -21), (17.6, -14), (12, -9.6)]
    for side in (-1, 1):
        pen.blob(mirrored(shape, side), bone)
        pen.stroke(mirrored([(8, -14.6), (12.4, -11.8)], side), darker(bone, 0.35), 1.5)
        pen.stroke(mirrored([(11, -18.6), (15.4, -14.8)], side), darker(bone, 0.35), 1.5)


ON_HEADS: Mapping[str, Part] = {
    "crown": _crown,
    "top_hat": _top_hat,
    "witch_hat": _witch_hat,
    "beanie": _beanie,
    "hair_bow": _hair_bow,
    "headphones": _headphones,
    "cat_ears": _cat_ears,
    "rabbit_ears": _rabbit_ears,
    "horns": _horns,
}

# -------------------------------------------------------------------------------------------------------- picture


def _paint(table: Mapping[str, Part], pen: Pen, look: Look) -> None:
    for name, part in table.items():
        if name in look.tags:
            part(pen, look)


def _paint_character(image: Image.Image, look: Look) -> None:
    rng = look.rng
    neck = (32 + rng.uniform(-2, 2), 34.5 + rng.uniform(-1.2, 1.5))
    scale = rng.uniform(0.95, 1.03)
    body = Pen(image, neck, scale)
    head = Pen(image, neck, scale, rng.uniform(-4.5, 4.5))
    _paint(HAIR_BACKS, head, look)
    body.polygon([(-4.6, 8), (4.6, 8), (5.2, 18), (-5.2, 18)], darker(look.skin, 0.2))
    _paint(CLOTHES, body, look)
    body.blob([(-6.5, 10), (6.5, 10), (6, 14), (0, 15.6), (-6, 14)], darker(look.skin, 0.3), False)
    _paint(NECKWEAR, body, look)
    _head(head, look)
    if "long_hair" in look.tags:
        _long_front(head, look)
    _paint(FACES, head, look)
    (_curly_front if "curly_hair" in look.tags else _cap)(head, look)
    if "domino_mask" in look.tags:
        _domino_mask(head, look)
    _paint(EYES, head, look)
    _paint(EXPRESSIONS, head, look)
    _brows(head, look)
    _paint(EYEWEAR, head, look)
    _paint(ON_HEADS, head, look)


_ROWS, _COLUMNS = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) / SIZE - 0.5


def _lit(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The picture under a soft light from one side."""
    light = 1.02 + rng.uniform(-0.04, 0.03) - _COLUMNS * rng.uniform(-0.1, 0.14) - _ROWS * rng.uniform(0.04, 0.14)
    pixels = np.asarray(image, dtype=np.float32) * light[:, :, None]
    return Image.fromarray(np.clip(pixels + 0.5, 0, 255).astype(np.uint8))


def draw(tags: Collection[str], rng: np.random.Generator) -> Image.Image:
    """The RGB picture of the tags; mandatory parts that they leave open are chosen at random."""
    names = frozenset(complete(tags, rng))
    hair = next(colour for name, colour in HAIR_COLOURS.items() if name in names)
    skin = SKIN_COLOURS[int(rng.integers(len(SKIN_COLOURS)))]
    look = Look(names, rng, vary(hair, rng), vary(skin, rng, 5.0), int(rng.choice((-1, 1))))
    image = Image.new("RGB", (SIZE * OVERSAMPLING, SIZE * OVERSAMPLING))
    middle = Pen(image, (SIZE / 2, SIZE / 2))
    for name, background in BACKGROUNDS.items():
        if name in names:
            background(image, middle, look)
    place = (32 - look.side * rng.uniform(21, 22.5), rng.uniform(10.5, 13))
    _paint(COMPANIONS, Pen(image, place, rng.uniform(0.95, 1.08), rng.uniform(-10, 10)), look)
    _paint_character(image, look)
    return _lit(image.reduce(OVERSAMPLING), rng)


# ---------------------------------------------------------------------------------------------------------- sheet


def contact_sheet(seed: int = 0, columns: int = 10, rows: int = 6, zoom: int = 2) -> Image.Image:
    """Random avatars, then one example of every tag in the order of TAGS."""
    rng = np.random.default_rng(seed)
    pictures = [draw(sample_tags(rng), rng) for _ in range(columns * rows)] + [draw([tag.name], rng) for tag in TAGS]
    step = SIZE * zoom + 2
    sheet = Image.new("RGB", (columns * step, -(-len(pictures) // columns) * step), "white")
    for position, picture in enumerate(pictures):
        large = picture.resize((SIZE * zoom, SIZE * zoom), Image.Resampling.NEAREST)
        sheet.paste(large, (position % columns * step, position // columns * step))
    return sheet


def main() -> None:
    """Write the contact sheet."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sheet", type=Path, required=True, metavar="FILE.png", help="where to write the sheet")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    contact_sheet(arguments.seed).save(arguments.sheet)
    print(f"{len(TAGS)} tags; wrote {arguments.sheet}")


if __name__ == "__main__":
    main()
