"""One style and one colour a method; figures that tell what they show."""

import base64
import subprocess
import sys

import matplotlib
import pytest

matplotlib.use("Agg")

from matplotlib import pyplot as plt

from sparsebook import plotting


@pytest.fixture
def displayed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict, dict]]:
    """The data and metadata of what a notebook would have shown."""
    shown: list[tuple[dict, dict]] = []
    monkeypatch.setattr("IPython.display.display", lambda data, metadata, raw: shown.append((data, metadata)))
    return shown


def luminance(color: str) -> float:
    """Relative luminance of a hexadecimal colour (WCAG 2.2)."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_a_colour_is_the_same_in_every_process_and_spelling() -> None:
    methods = ["seismic", "a method of a later chapter", "SparseD"]
    code = f"from sparsebook.plotting import color, marker; print([(color(m), marker(m)) for m in {methods}])"
    elsewhere = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert elsewhere.strip() == str([(plotting.color(m), plotting.marker(m)) for m in methods])
    assert plotting.color("Term at a time") == plotting.color("term_at_a_time")


def test_methods_of_one_figure_differ() -> None:
    together = ["seismic", "pyseismic", "term_at_a_time", "maxscore", "impact", "fixed_blocks"]
    assert len({plotting.color(m) for m in together}) == len(together)
    assert len({plotting.marker(m) for m in together}) == len(together)


@pytest.mark.parametrize("color", [*plotting.PALETTE, *plotting.METHOD_COLORS.values()])
def test_colours_stand_out_from_the_white_card(color: str) -> None:
    assert 1.05 / (luminance(color) + 0.05) >= 2.0


@pytest.mark.parametrize("function", [plotting.color, plotting.marker])
def test_a_method_needs_a_name(function) -> None:
    with pytest.raises(ValueError, match="name of a method"):
        function("  ")


def test_show_stores_the_alternative_text_and_closes_the_figure(displayed: list) -> None:
    plotting.use_style()
    figure, axes = plt.subplots()
    axes.plot([0, 1], [1, 0])
    plotting.show(figure, alt="A line that falls\n  from one to zero.", name="fall")
    ((data, metadata),) = displayed
    assert metadata == {"image/png": {"alt": "A line that falls from one to zero.", "name": "fall"}}
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    assert data["text/plain"] == "[figure: fall]"
    assert figure.number not in plt.get_fignums()


def test_the_same_figure_is_the_same_picture(displayed: list) -> None:
    for _ in range(2):
        figure, axes = plt.subplots(figsize=(2, 2))
        axes.plot([0, 1])
        plotting.show(figure, alt="a line")
    (first, _), (second, _) = displayed
    assert first["image/png"] == second["image/png"]


def test_show_demands_words() -> None:
    figure = plt.figure()
    with pytest.raises(ValueError, match="alt must say in words"):
        plotting.show(figure, alt=" ")
    plt.close(figure)


def test_pareto_front_keeps_what_nothing_beats() -> None:
    cost = [3.0, 1.0, 2.0, 2.0, 4.0, 1.0]
    quality = [0.9, 0.5, 0.4, 0.8, 0.9, 0.6]
    assert plotting.pareto_front(cost, quality) == [5, 3, 0]


@pytest.mark.parametrize(
    ("cost", "quality", "message"),
    [([1.0], [1.0, 2.0], "equally long"), ([float("nan")], [1.0], "finite")],
)
def test_pareto_front_refuses(cost: list[float], quality: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plotting.pareto_front(cost, quality)


def test_draw_front_joins_only_the_front() -> None:
    figure, axes = plt.subplots()
    plotting.draw_front(axes, [3.0, 1.0, 2.0], [0.9, 0.5, 0.4], "seismic")
    (line,) = axes.get_lines()
    assert list(line.get_xdata()) == [0.5, 0.9]
    assert line.get_color() == plotting.color("seismic")
    plt.close(figure)
