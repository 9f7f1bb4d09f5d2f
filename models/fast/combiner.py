"""models/combiner.py's attention, faster, and in memory that grows with the tokens: held to the plain form by
tests/test_models.py and tests/test_step.py.

Dimensions: B tiles, N queries, S keys, D embedding, H heads, K buckets of distances.
"""
from itertools import repeat

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from models import combiner
from models.combiner import BUCKETS
from models.fast.forms import traced_as

PAIRS, PAIRS_GPU = 2 ** 20, 2 ** 24    # of tokens in one matrix of scores; above, some queries go after the other


class Attention(combiner.Attention):
    """combiner.Attention."""

    def forward(self, x, context, buckets):
        q = self.query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)                 # B x H x N x D/H
        k, v = self.key_value(context).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        by_bucket = (q @ self.relative.t()) / q.shape[-1] ** 0.5                          # B x H x N x K
        rows = max(1, (PAIRS_GPU if q.is_cuda else PAIRS) // buckets.shape[1])
        if rows >= buckets.shape[0]:
            x = attend(q, k, v, by_bucket, buckets)
        else:    # many tokens: some queries after the other, their scores computed again in backward
            x = torch.cat([checkpoint(attend, *part, use_reentrant=False, preserve_rng_state=False) for part in zip(
                q.split(rows, 2), repeat(k), repeat(v), by_bucket.split(rows, 2), buckets.split(rows))], dim=2)
        return self.out(x.transpose(1, 2).flatten(2))


def attend(q, k, v, by_bucket, buckets):
    """Attention of queries q (B, H, N, D/H) to k, v (B, H, S, D/H), each score plus by_bucket (B, H, N, K) at buckets
    (N, S).
    """
    is_bucket = (buckets[..., None] == torch.arange(BUCKETS, device=buckets.device)).to(q.dtype)    # N x S x K
    return F.scaled_dot_product_attention(q, k, v, attn_mask=biases(by_bucket, is_bucket))


def summed_biases(by_bucket, is_bucket):
    """In one kernel."""
    return (by_bucket[:, :, :, None] * is_bucket).sum(-1).to(is_bucket.dtype)


@traced_as(summed_biases)
def biases(by_bucket, is_bucket):
    """(B, H, N, S): a sum of products, not a gather, whose backward would add to four numbers a row one by one."""
    return torch.einsum("bhnk,nsk->bhns", by_bucket, is_bucket)
