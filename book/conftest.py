"""What nbval compares when the stored notebooks are executed again.

nbval compares every MIME type but a few. The claims' JSON and every HTML table hold measured numbers, which
differ from run to run: what must not change stands in the plain text beside them.
"""

from pathlib import Path

import pytest

from sparsebook.claims import MIME

# The pages beside the parts (the ledger) are executed while the book is rendered and never stored.
collect_ignore = [path.name for path in Path(__file__).parent.glob("*.ipynb")]
NOT_COMPARED = ("text/html", "text/latex", "text/markdown", MIME)


@pytest.hookimpl(wrapper=True)
def pytest_collect_file(file_path: Path, parent: pytest.Collector):
    """Take what is measured out of the comparison of each notebook that nbval has collected."""
    collected = yield
    for notebook in [collected] if isinstance(collected, pytest.File) else collected or ():
        if hasattr(notebook, "skip_compare"):
            notebook.skip_compare = (*notebook.skip_compare, *NOT_COMPARED)
    return collected
