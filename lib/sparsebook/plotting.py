"""One look for every figure: style, colours that the colour-blind can tell apart, alternative text.

>>> from sparsebook import plotting
>>> plotting.use_style()
>>> plotting.show(draw_pareto(table), alt="Time per query against recall: Seismic lies below MaxScore.")
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 110
"""Dots per inch of every stored figure: a figure 6.8 inches wide fills the text column of the book."""

# The palette of Okabe and Ito (2008), "Color Universal Design"; its yellow is darkened, to stand on white.
BLUE, VERMILLION, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
SKY, PURPLE, GOLD, BLACK, GREY = "#56B4E9", "#CC79A7", "#B8A100", "#222222", "#7A7A7A"
PALETTE = (BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY, GOLD, BLACK)

METHOD_COLORS: dict[str, str] = {
    # What everything is measured against is dark in every chapter, and what chance gives is grey.
    "dense": BLACK,
    "exact": BLACK,
    "full": BLACK,
    "random": GREY,
    "sabotaged": GREY,
    "paper": PURPLE,
    # retrieval
    "seismic": BLUE,
    "pyseismic": VERMILLION,
    "term_at_a_time": BLACK,
    "maxscore": GREEN,
    "impact": ORANGE,
    "fixed_blocks": SKY,
    "fixed_summaries": PURPLE,
    # attention
    "anchor_attention": BLUE,
    "flexprefill": VERMILLION,
    "block_topk": GREEN,
    "vertical_slash": ORANGE,
    "streaming": PURPLE,
    "flex": SKY,
    "block_sparse": GREEN,
    "snapkv": SKY,
    "ada_snapkv": BLUE,
    "quest": GOLD,
    "tova": GREY,
    # features
    "gba": BLUE,
    "ba": SKY,
    "l1": VERMILLION,
    "jumprelu": PURPLE,
    "gba_wrong": GREY,
    "gba_high": GOLD,
    "gba_shift": GREEN,
    "gba_20": GOLD,
    "gba_3": GREY,
    "gba_low": BLACK,
    "mp": BLUE,
    "relu": VERMILLION,
    "topk": ORANGE,
    "batch_topk": GREEN,
    "matryoshka": PURPLE,
    "matryoshka,_sorted_whole": SKY,
    "mutual_choice": GREEN,
    "feature_choice": BLUE,
    "feature_choice_uniform": SKY,
    # networks
    "qs_100": BLUE,
    "qs_10": SKY,
    "dense_100": BLACK,
    "dense_10": GREY,
    "masked_100": VERMILLION,
    "laplacian": GREEN,
    "mcfs": ORANGE,
    "variance": PURPLE,
    "erk": BLUE,
    "er": BLUE,
    "uniform": ORANGE,
    "uniform_plus": GOLD,
    "erk_plus": SKY,
    "snip": VERMILLION,
    "grasp": GREEN,
    "synflow": PURPLE,
    "own_snip": VERMILLION,
    "small_dense": GREY,
}
"""The colour of every method that appears in more than one figure; the rest get theirs from `color`."""

_OTHER_COLORS = (BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY, GOLD)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")

_STYLE: dict[str, Any] = {
    "figure.figsize": (6.8, 3.8),
    "figure.dpi": DPI,
    "figure.constrained_layout.use": True,
    # A light card in both themes: a figure brings its own background, so that a dark page does not hurt it.
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "savefig.dpi": DPI,
    "axes.facecolor": "white",
    "axes.edgecolor": "#555555",
    "axes.labelcolor": "#222222",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E3E3E6",
    "grid.linewidth": 0.7,
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "errorbar.capsize": 2.5,
    "image.cmap": "cividis",
    "text.color": "#222222",
}


def use_style() -> None:
    """Set matplotlib to the book's one style. Safe to call in every chapter, any number of times."""
    import matplotlib.style
    from cycler import cycler

    matplotlib.style.use(_STYLE | {"axes.prop_cycle": cycler(color=PALETTE)})


def _key(method: str) -> str:
    return method.strip().lower().replace(" ", "_").replace("-", "_")


def _draw_lot(method: str, among: Sequence[str], salt: str) -> str:
    """One of ``among``, the same on every machine and in every session (unlike ``hash``)."""
    digest = hashlib.sha256(f"{salt}:{_key(method)}".encode()).digest()
    return among[int.from_bytes(digest[:4], "big") % len(among)]


def color(method: str) -> str:
    """The colour of ``method``, the same in every figure of the book.

    Parameters
    ----------
    method
        A method's name; case, spaces and hyphens do not matter.

    Returns
    -------
    str
        A hexadecimal colour of the Okabe-Ito palette.

    Raises
    ------
    ValueError
        If the name is empty.
    """
    if not method.strip():
        raise ValueError("method must be the name of a method, got an empty string")
    return METHOD_COLORS.get(_key(method)) or _draw_lot(method, _OTHER_COLORS, "color")


def marker(method: str) -> str:
    """The marker of ``method``: a second sign beside the colour, for print and for the colour-blind."""
    if not method.strip():
        raise ValueError("method must be the name of a method, got an empty string")
    known = list(METHOD_COLORS)
    if _key(method) in known:
        return _MARKERS[known.index(_key(method)) % len(_MARKERS)]
    return _draw_lot(method, _MARKERS, "marker")


def pareto_front(cost: Sequence[float], quality: Sequence[float]) -> list[int]:
    """The points that no other point beats: cheaper is better, higher quality is better.

    Parameters
    ----------
    cost, quality
        Finite numbers, one a point.

    Returns
    -------
    list of int
        Indices of the points on the front, from the cheapest to the dearest.

    Raises
    ------
    ValueError
        If the lengths differ or a number is not finite.
    """
    costs, qualities = np.asarray(cost, dtype=float), np.asarray(quality, dtype=float)
    if costs.shape != qualities.shape:
        raise ValueError(
            f"cost and quality must be equally long, got {len(costs)} costs and {len(qualities)} qualities"
        )
    if not (np.isfinite(costs).all() and np.isfinite(qualities).all()):
        raise ValueError("cost and quality must be finite numbers, got NaN or infinity among them")
    front: list[int] = []
    for index in np.lexsort((-qualities, costs)):
        if not front or qualities[index] > qualities[front[-1]]:
            front.append(int(index))
    return front


def draw_front(axes: Axes, cost: Sequence[float], quality: Sequence[float], method: str) -> None:
    """Draw all points of one method faintly and join those on its Pareto front.

    The ordinate is ``cost``, the abscissa ``quality``, as papers on search draw it: low and right is better.
    """
    own = color(method)
    axes.scatter(quality, cost, s=12, color=own, alpha=0.25, linewidths=0)
    front = pareto_front(cost, quality)
    axes.plot(
        [quality[i] for i in front], [cost[i] for i in front], marker=marker(method), color=own, label=method
    )


def show(figure: Figure, alt: str, name: str | None = None) -> None:
    """Display a figure as a PNG that carries its alternative text, and close it.

    The text is kept as ``alt`` in the output's metadata, where IPython and nbconvert keep it too; the book's
    Sphinx extension copies it to the page's ``<img alt=...>``.

    Parameters
    ----------
    figure
        The figure. It is closed afterwards, so that it is not shown twice.
    alt
        What the figure shows, for those who cannot see it: the axes, the methods and what comes out.
    name
        A short name for the figure's anchor in the page (``figure-<name>``).

    Raises
    ------
    ValueError
        If ``alt`` is empty.
    """
    if not alt.strip():
        raise ValueError("alt must say in words what the figure shows, got an empty text")
    import matplotlib.pyplot as plt
    from IPython.display import display

    buffer = io.BytesIO()
    # No software version in the file: the same figure is then the same bytes.
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    plt.close(figure)
    metadata = {"alt": " ".join(alt.split())} | ({"name": name} if name else {})
    display(
        {
            "image/png": base64.b64encode(buffer.getvalue()).decode("ascii"),
            # Without numbers: this line is compared when the notebook is executed again.
            "text/plain": f"[figure: {name}]" if name else "[figure]",
        },
        metadata={"image/png": metadata},
        raw=True,
    )
