"""What every drawing of a report has to keep to, whoever draws it: texts apart, shapes on the page, no red and no green."""

import re

from reports.drawing import text_width
from tests.reports.test_figures import FONT, SVG, drawn
from tests.reports.test_figures import points as corners


def boxes(tree, **wanted):
    """Rectangles with these attributes, as (x, y, width, height)."""
    found = [shape for shape in tree.iter(f"{SVG}rect") if all(shape.get(key) == value for key, value in wanted.items())]
    return [tuple(float(shape.get(key)) for key in ("x", "y", "width", "height")) for shape in found]


def check_texts(pictures):
    for picture in pictures:
        tree, taken = drawn(picture), []
        for text in tree.iter(f"{SVG}text"):
            if text.get("transform"):
                continue
            size = float(text.get("font-size"))
            x, y, room = float(text.get("x")), float(text.get("y")), text_width(text.text, size, bold=bool(text.get("font-weight")))
            left = x - {"end": room, "middle": room / 2}.get(text.get("text-anchor"), 0)
            assert left >= -1, (picture.name, text.text)
            assert left + room <= picture.drawing.width + 1, (picture.name, text.text)
            assert size <= y <= picture.drawing.height, (picture.name, text.text)
            for words, other_left, other_right, other_y in taken:
                apart = abs(y - other_y) > 9 or left > other_right - 2 or left + room < other_left + 2
                assert apart, (picture.name, text.text, words)
            taken.append((text.text, left, left + room, y))


def check_shapes(pictures):
    for picture in pictures:
        tree, width, height = drawn(picture), picture.drawing.width, picture.drawing.height
        spots = [spot for shape in tree.iter() if shape.get("points") for spot in corners(shape)]
        spots += [(float(line.get(f"x{i}")), float(line.get(f"y{i}"))) for line in tree.iter(f"{SVG}line") for i in (1, 2)]
        spots += [spot for x, y, w, h in boxes(tree) for spot in ((x, y), (x + w, y + h))]
        assert all(-0.01 <= x <= width + 0.01 and -0.01 <= y <= height + 0.01 for x, y in spots), picture.name


def check_colours(pictures):
    used = {colour for picture in pictures for colour in re.findall('(?:fill|stroke)="#([0-9a-f]{6})"', picture.svg(FONT))}
    for colour in used:
        red, green, blue = (int(colour[i : i + 2], 16) for i in (0, 2, 4))
        assert blue >= max(red, green), colour
