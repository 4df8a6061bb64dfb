"""Which pairs of query and key a sparse attention computes.

A prefill pattern is a `SpanIndex`: what each block of queries attends, as spans and single columns of keys.

    index = vertical_slash_pattern(q, k, n_vertical=256, n_slash=256)     # or block_topk_pattern, ...
    out = span_attention(q, k, v, index, causal=True)
    density = index.density(L, L, causal=True)                            # computed / causal pairs

Queries are [batch, heads, tokens, dim]; keys may have fewer heads, which divide the queries' (grouped
queries; nothing is repeated). Every selection is deterministic, equal scores going to the lowest index, and
rejects NaN and infinity. Budgets larger than what there is mean all of it.
"""

from sparsebook.attention.patterns.blocks import (
    block_maxima,
    block_means,
    block_scores,
    block_topk_for_sparsity,
    block_topk_indices,
    block_topk_pattern,
    block_topk_sparsity,
    block_topk_table,
    pooled_query_scores,
)
from sparsebook.attention.patterns.eviction import (
    TOVA,
    AdaSnapKV,
    CompactCache,
    Kept,
    SnapKV,
    StreamingLLM,
)
from sparsebook.attention.patterns.flexprefill import (
    flexprefill_block_pattern,
    flexprefill_counts,
    flexprefill_divergence,
    flexprefill_indices,
    flexprefill_pattern,
)
from sparsebook.attention.patterns.lines import (
    diagonal_sums,
    line_scores,
    vertical_slash_indices,
    vertical_slash_pattern,
)
from sparsebook.attention.patterns.oracles import difference_mask, topcdf_mask, topk_mask
from sparsebook.attention.patterns.quest import QuestCache, page_bounds, page_scores, quest_pattern
from sparsebook.attention.patterns.regions import (
    block_table_pattern,
    pattern_mask,
    streaming_pattern,
    stripes,
    union,
)

__all__ = [
    "TOVA",
    "AdaSnapKV",
    "CompactCache",
    "Kept",
    "QuestCache",
    "SnapKV",
    "StreamingLLM",
    "block_maxima",
    "block_means",
    "block_scores",
    "block_table_pattern",
    "block_topk_for_sparsity",
    "block_topk_indices",
    "block_topk_pattern",
    "block_topk_sparsity",
    "block_topk_table",
    "diagonal_sums",
    "difference_mask",
    "flexprefill_block_pattern",
    "flexprefill_counts",
    "flexprefill_divergence",
    "flexprefill_indices",
    "flexprefill_pattern",
    "line_scores",
    "page_bounds",
    "page_scores",
    "pattern_mask",
    "pooled_query_scores",
    "quest_pattern",
    "streaming_pattern",
    "stripes",
    "topcdf_mask",
    "topk_mask",
    "union",
    "vertical_slash_indices",
    "vertical_slash_pattern",
]
