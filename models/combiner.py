"""Modality combiner (section 3.1, equations 1 and 2, figure 3c) with Euclidean relative positions: iRPE, image relative
position encoding (Wu et al., 2021).

Dimensions: B tiles, M modalities, P patches, D embedding, H heads, R buckets of distances, N queries, S keys.
By default models/fast/combiner.py runs in its place, faster, to the same results; OMNISAT_PLAIN=1 runs this file.
"""
import math

import torch
from torch import nn

RATIO = 1.9                       # iRPE's default; its alpha, beta and gamma, in patches, follow
ALPHA, BETA, GAMMA = RATIO, 2 * RATIO, 8 * RATIO
BUCKETS = int(BETA) + 1           # 0..3


def distance_buckets(positions):
    """The bucket of the distance of each pair of patches, iRPE's piecewise index function (Wu et al., 2021, eq. 18).

    positions (P, 2; patches): row and column of each patch. Distances are rounded; up to ALPHA each has a bucket of its
    own, beyond they share buckets of growing width. Returns (P, P) int64 in 0..BUCKETS-1.
    """
    positions = positions.double()
    distance = torch.cdist(positions, positions).round()
    index = ALPHA + (distance.clamp(min=ALPHA) / ALPHA).log() / math.log(GAMMA / ALPHA) * (BETA - ALPHA)
    return torch.where(distance <= ALPHA, distance, index.round().clamp(max=BUCKETS - 1)).long()


class Attention(nn.Module):
    """Multi-head attention with a relative position on each key: softmax of q_i . (k_j + r_bucket(i,j)) / sqrt(D / H).

    The table r (R, D/H) is shared by the heads. No bias on keys: softmax would cancel it.
    """

    def __init__(self, dim, heads):
        super().__init__()
        if dim % heads:
            raise ValueError(f"the embedding size must be a multiple of the {heads} heads, not {dim}")
        self.heads = heads
        self.query, self.key_value = nn.Linear(dim, dim, bias=False), nn.Linear(dim, 2 * dim, bias=False)
        self.relative = nn.Parameter(0.02 * torch.randn(BUCKETS, dim // heads))    # r
        self.out = nn.Linear(dim, dim)

    def forward(self, x, context, buckets):
        """x (B, N, D) attends to context (B, S, D); buckets (N, S) whole numbers. Returns (B, N, D)."""
        q = self.query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)                 # B x H x N x D/H
        k, v = self.key_value(context).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        by_bucket = q @ self.relative.t()                                                 # q_i . r, B x H x N x R
        scores = q @ k.transpose(-1, -2) + by_bucket.gather(-1, buckets.long().expand(*q.shape[:2], -1, -1))
        x = (scores / q.shape[-1] ** 0.5).softmax(-1) @ v
        return self.out(x.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Pre-norm residual attention and MLP of ratio 2, self-attention if no context is given."""

    def __init__(self, dim, heads, cross=False):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.norm_context = nn.LayerNorm(dim) if cross else None
        self.attention = Attention(dim, heads)
        self.mlp = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x, buckets, context=None):
        normed = self.norm(x)
        context = normed if context is None else self.norm_context(context)
        x = x + self.attention(normed, context, buckets)
        return x + self.mlp(x)


class Combiner(nn.Module):
    """The module C of figure 3c: M P tokens of a tile in, P vectors f* out. 3.69 M parameters (the paper: 3.6 M).

    Not in the paper: the last norm.
    """

    def __init__(self, dim, depth, heads):
        super().__init__()
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.cross = Block(dim, heads, cross=True)
        self.token = nn.Parameter(0.02 * torch.randn(dim))    # f^comb
        self.norm = nn.LayerNorm(dim)

    def forward(self, tokens, positions):
        """tokens (B, M, P, D), positions (P, 2; patches): row and column. Returns f* (B, P, D)."""
        modalities, patches = tokens.shape[1:3]
        buckets = distance_buckets(positions).byte()                          # P x P; as bytes they take little memory
        g = tokens.flatten(1, 2)                                              # B x MP x D
        between = buckets.repeat(modalities, modalities)                      # MP x MP: a patch lies where it lies
        for block in self.blocks:
            g = block(g, between)                                             # eq. 1
        f = self.token.expand(len(g), patches, -1)                            # P copies, one at each patch
        return self.norm(self.cross(f, buckets.repeat(1, modalities), g))     # eq. 2
