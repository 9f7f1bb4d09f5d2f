"""The block of a vision transformer (Dosovitskiy et al., 2021), as SatMAE, Scale-MAE, DOFA and Presto share it.

Dimensions: B tiles (or pixels), N tokens, D embedding, A heads.
"""
from collections import OrderedDict

import torch.nn.functional as F
from torch import nn


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, dim, heads):
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x, is_key=None):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)    # each B x A x N x D/A
        is_key = None if is_key is None else is_key[:, None, None]
        return self.proj(F.scaled_dot_product_attention(q, k, v, attn_mask=is_key).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Pre-norm residual self-attention and MLP of ratio 4 (Dosovitskiy et al., 2021). eps: of the norms.

    Attributes have the names of the weights that DOFA and Presto publish.
    """

    def __init__(self, dim, heads, eps=1e-5):
        super().__init__()
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(dim, eps), Attention(dim, heads), nn.LayerNorm(dim, eps)
        self.mlp = nn.Sequential(OrderedDict(fc1=nn.Linear(dim, 4 * dim), gelu=nn.GELU(), fc2=nn.Linear(4 * dim, dim)))

    def forward(self, x, is_key=None):
        """x (B, N, D), is_key (B, N) bool: True where a token is attended to, None for all. Returns (B, N, D)."""
        x = x + self.attn(self.norm1(x), is_key)
        return x + self.mlp(self.norm2(x))
