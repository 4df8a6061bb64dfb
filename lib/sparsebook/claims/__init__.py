"""Claims: what a paper says that a run can support or refute, and the verdicts that a run arrives at.

A chapter's claims are declared before anything runs, in ``<slug>.claims.yml`` beside its notebook::

    slug: seismic
    claims:
      - id: C1
        statement: "Clustered blocks evaluate fewer documents than fixed chunks at equal recall."
        paper: null                 # the paper's value with its unit
        source: read                # read | second-hand | abstract | own specification
        setting: analogue           # paper | scaled | analogue
        kind: random                # exact | random | timing
        quantity: "documents evaluated, clustered over fixed, one query set"
        unit: ratio                 # the samples must come with this very unit
        expect: {rule: at_most, value: 0.95}
        because: "Documents of one topic share their heaviest coordinates."
        replication: {unit: "query set", n: 8}
        control: "documents assigned to random blocks"
        needs: null                 # what it would need, for a claim that cannot be tested here
        revisions: []               # {date, was, reason}, appended when an expectation changes

The notebook only supplies samples; the verdict is computed:

>>> from sparsebook.claims import Ledger, Samples
>>> ledger = Ledger.open("seismic", scale="book")              # doctest: +SKIP
>>> ledger.check("C1", Samples(ratios, unit="ratio"))          # doctest: +SKIP
>>> ledger.report()                                            # doctest: +SKIP

**How a verdict is reached.** The expectation is a region of the real line (or, for ``ordered``, the
direction of every step). Interval wholly inside: *holds*; wholly outside: *fails*; else *inconclusive*,
with the effect that this n could have detected. Fewer samples than declared are inconclusive.

- ``exact`` claims hold when every sample lies in the region and fail when one does not; no interval.
- ``random`` claims use Student's t interval of the mean over the units of replication; samples that share
  a group are averaged first.
- ``timing`` claims do the same with one median of paired ratios per process. In the unit ``ratio`` they
  are averaged geometrically: the interval is computed on logarithms, so that twice as fast and twice as
  slow weigh the same, and samples must be positive. ``average: arithmetic | geometric`` in the claim
  overrides the choice for any kind.

The random and timing claims of one chapter share one error budget of 5 % (Holm's procedure within each of
the two kinds, which split the budget by their number). The printed interval is the one at the level at
which the claim was decided, so that interval and verdict never contradict each other.

Rules: ``at_least``, ``at_most``, ``greater_than`` (value); ``within`` (low, high); ``ordered`` (direction:
increasing | decreasing; samples ``[n, levels]``); ``equivalent`` (value, margin); ``not_worse`` (value,
margin, better: higher | lower). The last two are for every "no difference" and "as good as": they need
evidence of closeness, the absence of a visible difference is none.
"""

from sparsebook.claims.declarations import Claim, Declaration, Expectation, find_claims, load_claims
from sparsebook.claims.ledger import Ledger, expected_false_verdicts, read_claims
from sparsebook.claims.reports import MIME, Report
from sparsebook.claims.verdicts import Judgement, Samples, judge

__all__ = [
    "MIME",
    "Claim",
    "Declaration",
    "Expectation",
    "Judgement",
    "Ledger",
    "Report",
    "Samples",
    "expected_false_verdicts",
    "find_claims",
    "judge",
    "load_claims",
    "read_claims",
]
