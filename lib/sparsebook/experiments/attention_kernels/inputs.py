"""Random inputs and patterns of a given density, and the simplest way to attend one."""

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.functional import scaled_dot_product_attention

from sparsebook.kernels.block_attention import SpanIndex


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of one shape."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(*shape, generator=generator).to(dtype) for _ in range(3))
    return q, k, v


def random_blocks(
    heads: int, tokens: int, density: float, *, block: int = 128, causal: bool = False, seed: int = 1
) -> BlockMask:
    """The same share of random blocks in every row of blocks; causal rows keep their diagonal block."""
    n = tokens // block
    score = torch.rand(1, heads, n, n, generator=torch.Generator().manual_seed(seed))
    allowed = torch.ones(n, n).tril() if causal else torch.ones(n, n)
    score = score * allowed + (torch.eye(n) * 2 if causal else 0)
    counts = (density * allowed.sum(-1)).round().clamp(min=1).int().expand(1, heads, n)
    rank = score.argsort(dim=-1, descending=True).argsort(dim=-1)
    blocks = (rank < counts[..., None]).int().argsort(dim=-1, descending=True, stable=True).int()
    mask = _causal if causal else None
    return BlockMask.from_kv_blocks(counts.contiguous(), blocks.contiguous(), BLOCK_SIZE=block, mask_mod=mask)


def _causal(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
    return i >= j


def density_of(mask: BlockMask, tokens: int, *, causal: bool) -> float:
    """Pairs (query, key) attended over those of dense attention with the same `causal`."""
    block = mask.BLOCK_SIZE[0]
    blocks = int(mask.kv_num_blocks.sum()) / mask.kv_num_blocks.shape[1]
    if not causal:
        return blocks * block**2 / tokens**2
    above = tokens // block * block * (block - 1) / 2  # pairs of the diagonal blocks that are not attended
    return (blocks * block**2 - above) / (tokens * (tokens + 1) / 2)


def random_columns(heads: int, tokens: int, group: int, density: float, seed: int = 1) -> SpanIndex:
    """The same number of random keys for every `group` queries, scattered over the whole sequence."""
    groups, count = tokens // group, round(density * tokens)
    score = torch.rand(1, heads, groups, tokens, generator=torch.Generator().manual_seed(seed))
    columns = score.topk(count).indices.sort(-1).values.int()
    return SpanIndex.from_columns(columns, columns.new_full((1, heads, groups), count), group)


def gather_and_attend(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, *, causal: bool = False) -> Tensor:
    """Block by block: gather the keys and values of the listed blocks and call SDPA."""
    block, (_, n_heads, _, dim) = mask.BLOCK_SIZE[0], k.shape
    heads = torch.arange(n_heads)[:, None]
    keys, values = (x.view(n_heads, -1, block * dim) for x in (k, v))
    within = torch.arange(block)
    outs = []
    for i, queries in enumerate(q.split(block, 2)):
        listed = mask.kv_indices[0, :, i, : int(mask.kv_num_blocks[0, 0, i])].long()
        here, there = (x[heads, listed].view(1, n_heads, -1, dim) for x in (keys, values))
        keep = None
        if causal:
            position = (listed[..., None] * block + within).flatten(1)
            keep = position[None, :, None] <= i * block + within[:, None]
        outs.append(scaled_dot_product_attention(queries, here, there, attn_mask=keep))
    return torch.cat(outs, 2)
