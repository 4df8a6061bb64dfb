"""Find measured numbers that were typed into a chapter's text.

A number that was measured must be glued from the result that it comes from, so that a run with other data
never prints an old one. The rule for authors:

- A number with a unit of measure (``12 ms``, ``3.5 GB``, ``97 %``, ``4x``, ``10 times``) and a number with
  three or more decimals (``0.953``) is refused in markdown.
- Not looked at are: mathematics, code, roles (``{glue:text}``, ``{cite}``), targets of links, arXiv numbers
  and the confidence level ("95 % interval").
- A number that the *paper* states is allowed on a line that cites it, ``187 us {cite:p}`seismic` ``, or that
  carries the comment ``<!-- paper -->``; a constant that we chose ourselves (a budget, a batch size in MB) on
  a line with ``<!-- setting -->``.
- The sections "What differs from the paper" and "At the paper's scale" are free: they are about settings.
"""

import re
from collections.abc import Iterator, Sequence

_UNIT = (
    r"(?:ms|µs|μs|us|ns|s|sec|secs|seconds?|milliseconds?|microseconds?|min|mins|minutes?|h|hours?"
    r"|[kKMGT]i?B|bytes?|[KMGT]?FLOPs?(?:/s)?|GFLOPS|TFLOPS|[kMG]?Hz|dB"
    r"|percent|per\s+cent|percentage\s+points?|times|fold|queries/s|tokens/s)"
)
_WITH_UNIT = re.compile(
    rf"(?<![\w.@])\d[\d,]*(?:\.\d+)?(?:\s?%|\s?[x×](?![\w×]|\s*\d)|(?:\s|-|&nbsp;)?{_UNIT}(?![\w]))"
)
_MANY_DECIMALS = re.compile(r"(?<![\w./])\d+\.\d{3,}(?![\w./]|\.\d)")
_NOT_MEASURED = re.compile(
    r"\b9[059]\s?%\s+(?:confidence|prediction)?\s*intervals?"
    r"|\b\d{4}\.\d{4,5}(?:v\d+)?\b"  # arXiv
    r"|\b\d{3}0s\b"  # decades
)
_EXEMPT_LINE = re.compile(r"\{cite[\w:]*\}`|<!--\s*(?:paper|setting)\b[^>]*-->")
_EXEMPT_SECTION = re.compile(r"what differs|at the paper.s scale", re.IGNORECASE)
_HEADING = re.compile(r"^(#{1,6})\s+(.*)")
_FENCE = re.compile(r"^\s*(`{3,}|~{3,}|:{3,})\s*(?:\{([\w-]+)\})?(.*)$")
# Directives whose content is prose; the content of any other one is code, a picture or mathematics.
_PROSE = {
    *("note", "tip", "hint", "important", "warning", "caution", "attention", "danger", "error", "seealso"),
    *("admonition", "margin", "sidebar", "dropdown", "card", "grid", "grid-item", "grid-item-card"),
    *("tab-set", "tab-item", "epigraph", "table", "list-table", "figure-md"),
}
_CODE = {"math", "code", "code-block", "code-cell", "literalinclude", "eval-rst"}
_DELETIONS = (
    re.compile(r"<!--.*?-->"),
    re.compile(r"\$[^$]+\$"),
    re.compile(r"\{[\w:.+-]+\}`[^`]*`"),
    re.compile(r"(`+).*?\1"),
    re.compile(r"\]\([^)]*\)"),
    re.compile(r"<[^<>]+>"),
    re.compile(r"https?://\S+"),
    _NOT_MEASURED,
)


def typed_numbers(markdown: Sequence[str]) -> list[tuple[int, str, str]]:
    """Measured numbers typed into a chapter's markdown cells.

    Parameters
    ----------
    markdown
        The sources of the markdown cells in their order (sections go on across cells).

    Returns
    -------
    list of tuple
        Index of the cell, the number, and the line that it stands on.
    """
    found = []
    exempt_below: int | None = None  # level of the heading that opened a free section
    for index, source in enumerate(markdown):
        for line in _prose_lines(source):
            heading = _HEADING.match(line)
            if heading:
                level = len(heading[1])
                if exempt_below is None or level <= exempt_below:
                    exempt_below = level if _EXEMPT_SECTION.search(heading[2]) else None
            if exempt_below is None and not _EXEMPT_LINE.search(line):
                found += [(index, number, line.strip()) for number in _numbers(line)]
    return found


def _numbers(line: str) -> list[str]:
    for pattern in _DELETIONS:
        line = pattern.sub(" ", line)
    matches = [*_WITH_UNIT.finditer(line), *_MANY_DECIMALS.finditer(line)]
    return [match[0].strip() for match in sorted(matches, key=lambda match: match.start())]


def _prose_lines(source: str) -> Iterator[str]:
    """The lines of prose: without displayed mathematics and the content of code fences."""
    source = re.sub(r"\$\$.*?\$\$|\\begin\{(\w+\*?)\}.*?\\end\{\1\}", " ", source, flags=re.DOTALL)
    fences: list[tuple[str, bool]] = []  # those open: their mark, and whether their content is prose
    for line in source.splitlines():
        fence = _FENCE.match(line)
        inside_prose = all(prose for _, prose in fences)
        if fence is None:
            if inside_prose:
                yield line
        elif fences and _closes(fence, fences[-1][0]):
            fences.pop()
        elif inside_prose:
            fences.append((fence[1], fence[2] in _PROSE or (fence[1][0] == ":" and fence[2] not in _CODE)))
            if fences[-1][1]:
                yield fence[3]  # a directive's title


def _closes(fence: re.Match[str], mark: str) -> bool:
    return fence[1].startswith(mark) and not fence[2] and not fence[3].strip()
