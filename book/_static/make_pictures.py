"""Draw the cover and the favicon: dots on a grid, of which few are lit.

Run it as ``python book/_static/make_pictures.py``; it writes ``cover.svg`` and ``favicon.svg`` beside itself.
The colours, one for each part of the book, are those of Okabe and Ito, lightened for the dark ground.
"""

import random
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
NIGHT, DIM = "#14182b", "#2b3152"
PARTS = ("#56B4E9", "#E69F00", "#2ec79b", "#F0E442", "#f08a4b", "#CC79A7")

# Letters on five columns and seven rows, as on an old display board.
LETTERS = {
    "S": (".####", "#....", "#....", ".###.", "....#", "....#", "####."),
    "P": ("####.", "#...#", "#...#", "####.", "#....", "#....", "#...."),
    "A": (".###.", "#...#", "#...#", "#####", "#...#", "#...#", "#...#"),
    "R": ("####.", "#...#", "#...#", "####.", "#.#..", "#..#.", "#...#"),
    "E": ("#####", "#....", "#....", "####.", "#....", "#....", "#####"),
}
STEP, RADIUS = 10, 3.4


def lit_dots(word: str, left: int, top: int) -> Iterator[tuple[int, int, str]]:
    """Column, row and colour of the dots that spell ``word``, one colour a letter."""
    for number, letter in enumerate(word):
        for row, line in enumerate(LETTERS[letter]):
            for column, mark in enumerate(line):
                if mark == "#":
                    yield left + 6 * number + column, top + row, PARTS[number % len(PARTS)]


def dot(column: int, row: int, color: str, opacity: float = 1.0) -> str:
    """One dot of the grid as an SVG circle."""
    x, y = STEP * column + STEP // 2, STEP * row + STEP // 2
    faint = f' opacity="{opacity:.2g}"' if opacity < 1 else ""
    return f'<circle cx="{x}" cy="{y}" r="{RADIUS}" fill="{color}"{faint}/>'


def svg(columns: int, rows: int, body: list[str], title: str, corner: int) -> str:
    """A picture of ``columns`` by ``rows`` grid cells on a dark card."""
    width, height = STEP * columns, STEP * rows
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        f"<title>{title}</title>",
        f'<rect width="{width}" height="{height}" rx="{corner}" fill="{NIGHT}"/>',
        *body,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def cover() -> str:
    """The word SPARSE in lit dots on a field of dark ones, "reproduced" written below."""
    columns, rows = 41, 17
    lit = {(column, row): color for column, row, color in lit_dots("SPARSE", 3, 3)}
    draw = random.Random(40)
    body = []
    for row in range(1, rows - 1):
        for column in range(1, columns - 1):
            if (column, row) in lit:
                body.append(dot(column, row, lit[column, row]))
            elif not (row > 10 and 2 < column < 38):
                body.append(dot(column, row, DIM, draw.uniform(0.35, 1)))
    body.append(
        '<text x="36" y="149" font-family="ui-monospace, \'DejaVu Sans Mono\', Menlo, Consolas, monospace" '
        'font-size="33" textLength="328" lengthAdjust="spacing" fill="#dfe4f5">reproduced</text>'
    )
    return svg(columns, rows, body, "Sparse, reproduced", 14)


def favicon() -> str:
    """The letter S of the cover."""
    lit = [dot(column + 1, row, PARTS[row % len(PARTS)]) for column, row, _ in lit_dots("S", 1, 1)]
    return svg(9, 9, lit, "S", 18)


if __name__ == "__main__":
    (HERE / "cover.svg").write_text(cover(), encoding="utf-8")
    (HERE / "favicon.svg").write_text(favicon(), encoding="utf-8")
