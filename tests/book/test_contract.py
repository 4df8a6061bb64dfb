"""Every rule of the contract finds what breaks it: no rule is vacuous."""

import copy
import json
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import pytest

from sparsebook.book import contract, find_chapters
from sparsebook.book.contract import GENERAL_RULES, PAPER_RULES, Notebook, problems
from sparsebook.book.source import SOURCE_KEY, source_of

ALT = "Time per query against recall: the method lies below the exact search."
PICTURE = {
    "output_type": "display_data",
    "data": {"image/png": "aGk="},
    "metadata": {"image/png": {"alt": ALT}},
}
TEXT = {"output_type": "stream", "name": "stdout", "text": "42\n"}
TITLE = (
    "# The good chapter\n{cite:t}`good` claim much.\n\n## At the paper's scale\n64 GB\n"
    "## In your own code\n## What differs from the paper\n"
)


@dataclass(frozen=True)
class Config:
    """What a chapter's experiments have: at the paper's scale it needs the reader's own data."""

    scale: str

    @classmethod
    def at(
        cls, scale: str, seed: int = 0, threads: int | None = None, vectors: str | None = None
    ) -> "Config":
        if scale == "paper" and vectors is None:
            raise ValueError("scale 'paper' needs vectors")
        return cls(scale)


@pytest.fixture
def book(fabricate):
    return fabricate()


@pytest.fixture
def good(book) -> dict:
    """A notebook that keeps the whole contract."""
    rows = [row_of(number) for number in (1, 2)]
    report = {
        "output_type": "display_data",
        "data": {"application/vnd.sparsebook.claims+json": {"claims": rows}, "text/plain": "C1 holds"},
        "metadata": {},
    }
    parameters = 'scale = "book"\nseed = 0\ndevice = "auto"\nthreads = None\nk = 3'
    claims = 'ledger = Ledger.open("good", scale=scale)\nledger.report()'
    content = book.notebook(
        book.markdown(TITLE),
        book.code(parameters, "parameters", count=1),
        book.code(
            "%matplotlib inline\ndef f(x):\n    return x\nf(1)",
            "nbval-check-output",
            count=2,
            outputs=[TEXT],
        ),
        book.code("draw()", count=3, outputs=[PICTURE]),
        book.markdown("## Results\nIt takes {glue:text}`t` ms."),
        book.code(claims, "claims", "nbval-check-output", count=4, outputs=[report]),
    )
    return copy.deepcopy(content)


def row_of(number: int) -> dict:
    return {"slug": "good", "id": f"C{number}", "verdict": "holds", "scale": "book"}


@pytest.fixture
def checked(book, monkeypatch: pytest.MonkeyPatch):
    """Write a notebook into the book, with modules beside it, and say what the contract finds."""
    module = types.ModuleType("sparsebook.experiments.good")
    module.Config = Config
    monkeypatch.setitem(sys.modules, "sparsebook.experiments.good", module)
    for name in (
        "lib/sparsebook/retrieval/good.py",
        "lib/sparsebook/experiments/good.py",
        "tests/retrieval/test_good.py",
    ):
        path = book.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")

    def check(content: dict) -> list[str]:
        book.add("good", content)
        return problems(find_chapters(["good"], book.root)[0], book.root)

    check.module = module
    return check


def test_a_good_notebook_keeps_the_contract(good: dict, checked) -> None:
    assert checked(good) == []


def cell(good: dict, number: int) -> dict:
    return good["cells"][number - 1]


def no_title(good):
    cell(good, 1)["source"] = TITLE.replace("# The good", "The good")


def code_first(good):
    good["cells"].insert(0, good["cells"].pop(3))


def no_citation(good):
    cell(good, 1)["source"] = TITLE.replace("{cite:t}`good`", "They")


def no_section(good):
    cell(good, 1)["source"] = TITLE.replace("In your own code", "Code")


def no_parameters(good):
    cell(good, 2)["metadata"] = {}


def parameters_late(good):
    good["cells"][1:3] = good["cells"][2:0:-1]


def parameters_lacking(good):
    cell(good, 2)["source"] = 'scale = "book"\nseed = 0\nthreads = None'


def parameters_other(good):
    cell(good, 2)["source"] = 'scale = "smoke"\nseed = 0\ndevice = "auto"\nthreads = None'


def no_claims(good):
    cell(good, 6)["metadata"] = {"tags": ["nbval-check-output"]}


def claims_not_last(good):
    good["cells"].append({**cell(good, 4), "execution_count": 5})


def claims_without_report(good):
    cell(good, 6)["source"] = "ledger.report()\nprint(1)"


def claims_not_compared(good):
    cell(good, 6)["metadata"] = {"tags": ["claims"]}


def claim_without_row(good):
    rows(good).pop()


def row_without_claim(good):
    rows(good).append(row_of(3))


def row_twice(good):
    rows(good).append(row_of(1))


def row_of_smoke(good):
    rows(good)[0]["scale"] = "smoke"


def rows(good):
    return cell(good, 6)["outputs"][0]["data"]["application/vnd.sparsebook.claims+json"]["claims"]


def a_class(good):
    cell(good, 3)["source"] = "class Index:\n    pass"


def a_long_function(good):
    cell(good, 3)["source"] = "def f(x):\n" + "    x += 1\n" * 10


def a_hidden_class(good):
    cell(good, 3)["source"] = "if True:\n    def g():\n        class Index: pass"


def no_python(good):
    cell(good, 3)["source"] = "print 3"


def a_typed_number(good):
    cell(good, 5)["source"] = "## Results\nIt takes 12 ms."


def not_executed(good):
    cell(good, 4)["execution_count"] = None


def executed_out_of_order(good):
    cell(good, 4)["execution_count"] = 9


def an_error(good):
    cell(good, 4)["outputs"].append({"output_type": "error", "ename": "E", "evalue": "v", "traceback": []})


def too_large(good):
    cell(good, 4)["outputs"][0]["data"]["image/png"] = "A" * 1_500_000


def too_slow(good):
    good["metadata"]["sparsebook"] = {"seconds": 90.0}


def no_figure(good):
    cell(good, 4)["outputs"] = []


def no_alternative(good):
    cell(good, 4)["outputs"][0]["metadata"] = {}


def poor_alternative(good):
    cell(good, 4)["outputs"][0]["metadata"] = {"image/png": {"alt": "a figure"}}


def html_picture(good):
    data = {"text/html": "<p><img src='data:image/png;base64,aGk='></p>"}
    cell(good, 4)["outputs"].append({"output_type": "display_data", "data": data, "metadata": {}})


def nothing_compared(good):
    for number in (3, 6):
        cell(good, number)["metadata"] = {"tags": ["claims"]} if number == 6 else {}


def nothing_to_compare(good):
    cell(good, 3)["outputs"] = []


def no_kernel(good):
    del good["metadata"]["kernelspec"]


def a_path_in_an_output(good):
    cell(good, 3)["outputs"] = [TEXT | {"text": "saved to /home/ada/index.bin\n"}]


def a_path_in_a_warning(good):
    cell(good, 3)["outputs"] = [
        TEXT | {"name": "stderr", "text": "/tmp/ipykernel_12/3.py:1: UserWarning: x\n"}
    ]


def a_path_in_code(good):
    cell(good, 3)["source"] = 'open(r"C:\\Users\\ada\\x")'


def stale_source(good):
    output = {"output_type": "display_data", "data": {"text/plain": "def documented(): ..."}}
    output["metadata"] = {
        SOURCE_KEY: {"objects": ["sparsebook.book.prose:typed_numbers"], "docstrings": True}
    }
    cell(good, 4)["outputs"].append(output)


BREAKS = {
    no_title: ("title", "must start with the title"),
    code_first: ("title", "first cell must be markdown"),
    no_citation: ("citation", "must cite the paper"),
    no_section: ("sections", "'In your own code' is missing"),
    no_parameters: ("parameters_cell", "0 cells are tagged parameters"),
    parameters_late: ("parameters_cell", "must be the first code cell"),
    parameters_lacking: ("parameters_cell", "lacks device"),
    parameters_other: ("parameters_cell", "scale is 'smoke'; expected 'book'"),
    no_claims: ("claims_cell", "0 cells are tagged claims"),
    claims_not_last: ("claims_cell", "must be the last code cell"),
    claims_without_report: ("claims_cell", "must end with ledger.report()"),
    claims_not_compared: ("claims_cell", "tagged nbval-check-output too"),
    claim_without_row: ("claims_complete", "C2 has no row"),
    row_without_claim: ("claims_complete", "C3 that is not declared"),
    row_twice: ("claims_complete", "C1 stands twice"),
    row_of_smoke: ("claims_complete", "stored at scale 'smoke'"),
    a_class: ("definitions", "defines the class Index"),
    a_long_function: ("definitions", "defines f with 11 lines"),
    a_hidden_class: ("definitions", "defines the class Index"),
    no_python: ("definitions", "no valid Python"),
    a_typed_number: ("no_typed_numbers", "'12 ms' is typed into the text"),
    not_executed: ("executed", "not executed: cell 4"),
    executed_out_of_order: ("executed", "from top to bottom"),
    an_error: ("no_error", "holds an error: E: v"),
    too_large: ("size", "at most 1.5 MB"),
    too_slow: ("time", "took 90 s"),
    no_figure: ("figure", "there is no figure"),
    no_alternative: ("alternative_text", "no alternative text"),
    poor_alternative: ("alternative_text", "found 'a figure'"),
    html_picture: ("alternative_text", "no alternative text"),
    nothing_compared: ("compared_cell", "no cell is tagged nbval-check-output"),
    nothing_to_compare: ("compared_cell", "no output with text to compare"),
    no_kernel: ("kernel", "kernelspec is None"),
    a_path_in_an_output: ("no_machine_path", "'/home/ada'"),
    a_path_in_a_warning: ("no_machine_path", "/tmp/ipykernel_12"),
    a_path_in_code: ("no_machine_path", "Users"),
    stale_source: ("shown_source", "as it no longer is"),
}


@pytest.mark.parametrize("damage", BREAKS, ids=lambda damage: damage.__name__)
def test_each_rule_finds_what_breaks_it(good: dict, checked, book, damage) -> None:
    rule, sentence = BREAKS[damage]
    damage(good)
    found = checked(good)
    assert any(sentence in problem for problem in found), found
    # And it is this very rule that finds it.
    notebook = Notebook(find_chapters(["good"], book.root)[0], book.root)
    assert any(sentence in problem for problem in getattr(contract, rule)(notebook))


def test_every_rule_is_tried() -> None:
    tried = {rule for rule, _ in BREAKS.values()} | {"modules_exist", "scales_construct"}
    assert {rule.__name__ for rule in (*GENERAL_RULES, *PAPER_RULES)} == tried


def test_missing_claims_file_and_missing_modules(good: dict, checked, book) -> None:
    assert checked(good) == []
    chapter = find_chapters(["good"], book.root)[0]
    chapter.claims_path.unlink()
    assert any("good.claims.yml is missing" in problem for problem in problems(chapter, book.root))
    for name in ("lib/sparsebook/retrieval", "lib/sparsebook/experiments", "tests/retrieval"):
        for path in (book.root / name).iterdir():
            path.unlink()
    missing = [problem for problem in problems(chapter, book.root) if "is missing: " in problem]
    assert len(missing) == 3


def test_a_scale_that_does_not_construct(good: dict, checked, monkeypatch) -> None:
    def at(scale: str) -> None:
        if scale == "paper":
            raise KeyError("vectors")

    monkeypatch.setattr(Config, "at", at)
    assert checked(good) == ["sparsebook.experiments.good.Config.at('paper') raises KeyError: 'vectors'"]
    checked.module.Config = dataclass(type("Thawed", (), {"at": at}))
    assert checked(good) == [
        "sparsebook.experiments.good.Config must be a frozen dataclass with a class method at(scale, ...)"
    ]
    del checked.module.Config
    assert checked(good) == ["sparsebook.experiments.good lacks the class Config"]


def test_an_experiments_module_that_cannot_be_imported(good: dict, checked, monkeypatch) -> None:
    monkeypatch.delitem(sys.modules, "sparsebook.experiments.good")
    assert any("cannot be imported" in problem for problem in checked(good))


def test_fresh_shown_source_is_accepted(good: dict, checked) -> None:
    from sparsebook.book.prose import typed_numbers

    stale_source(good)
    cell(good, 4)["outputs"][-1]["data"]["text/plain"] = source_of(typed_numbers)
    assert checked(good) == []


def test_a_kernels_chapter_has_no_paper(good: dict, book) -> None:
    good["cells"].pop()
    good["cells"][0]["source"] = "# Kernels"
    path = book.add("matmul", good, part="kernels")
    path.with_name("matmul.claims.yml").unlink()
    assert problems(find_chapters(["matmul"], book.root)[0], book.root) == []


def test_text_and_lists_of_lines_are_the_same(good: dict, checked, book) -> None:
    """nbformat stores text as one string or as a list of lines."""
    for item in good["cells"]:
        item["source"] = "".join(item["source"])
    assert checked(good) == []
    json.loads(Path(find_chapters(["good"], book.root)[0].path).read_text())


def test_a_stored_report_leaves_no_testable_claim_untested(good: dict, checked, book) -> None:
    for row in rows(good):
        row["verdict"] = "untested"
    assert checked(good) == []
    path = find_chapters(["good"], book.root)[0].claims_path
    path.write_text(path.read_text().replace('"needs": "more data"', '"needs": null'))
    found = problems(find_chapters(["good"], book.root)[0], book.root)
    assert len(found) == 2
    assert all("stored untested" in problem for problem in found)
