"""Vision transformer (ViT, Dosovitskiy et al., 2021) on one image, as OmniSat compares with it: two kinds of positions
at once.

Each patch has a learned embedding of its place, and attention knows the distance of two patches (iRPE, Wu et al.,
2021: contextual, Euclidean, on keys, one table for all heads). Not in the paper: all of this but the name; the
official configuration's. Dimensions: B tiles, C bands, H x W pixels, P patches, N tokens, D embedding, A heads, K
buckets of distances.
"""
import torch
import torch.nn.functional as F
from torch import nn

from models.combiner import BUCKETS, distance_buckets
from models.image import ImageEncoder
from models.omnisat import patchify

HEADS = 8
DROP = 0.2        # of patches, attention weights, what attention and MLP give, pooled features, and whole branches
EPSILON = 1e-6    # of the norms


class Attention(nn.Module):
    """Multi-head self-attention with relative positions: softmax_j of q_i . (k_j + r_bucket(i,j)) / sqrt(D/A)."""

    def __init__(self, dim):
        super().__init__()
        self.query_key_value, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        # r, its last row for the class token
        self.relative = nn.Parameter(0.02 * torch.randn(BUCKETS + 1, dim // HEADS))

    def forward(self, x, is_bucket):
        """x (B, N, D), is_bucket (B, N, K, N) bool: which of the K buckets a query and a key are in. Returns (B, N, D).
        """
        q, k, v = self.query_key_value(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)    # each B x A x N x D/A
        by_bucket = (q @ self.relative.t()) / q.shape[-1] ** 0.5                          # B x A x N x K
        bias = torch.einsum("bank,bnkm->banm", by_bucket, is_bucket.to(q.dtype))
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=DROP if self.training else 0.)
        return self.out(x.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Pre-norm residual attention and MLP of ratio 4. Each branch is left out for a share `drop_path` of the tiles."""

    def __init__(self, dim, drop_path):
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(dim, EPSILON), Attention(dim)
        self.dropout, self.drop_path = nn.Dropout(DROP), drop_path
        self.mlp = nn.Sequential(nn.LayerNorm(dim, EPSILON), nn.Linear(dim, 4 * dim), nn.GELU(), nn.Dropout(DROP),
                                 nn.Linear(4 * dim, dim), nn.Dropout(DROP))

    def forward(self, x, is_bucket):
        x = x + self.whole(self.dropout(self.attention(self.norm(x), is_bucket)))
        return x + self.whole(self.mlp(x))

    def whole(self, branch):
        """Stochastic depth (Huang et al., 2016): (B, N, D) as it is or all 0, tile by tile, the expectation kept."""
        return branch * F.dropout(branch.new_ones(len(branch), 1, 1), self.drop_path, self.training)


class ViT(nn.Module):
    """Square images to vectors of `outputs` numbers. The two that OmniSat compares with are image_vit and pixel_vit.

    bands: C. side, patch (pixels): of the image and of its patches; patches of one pixel are embedded by one matrix,
    others by OmniSat's image encoder. dim: D. depth: number of blocks. max_pool: the maximum of the normed patches,
    else the norm of their mean. width: multiplies D.
    Errors: ValueError for a side that the patch does not divide.
    """

    def __init__(self, bands, outputs, side, patch, dim, depth, max_pool, width=1.0):
        super().__init__()
        if side % patch:
            raise ValueError(f"an image of {side} x {side} pixels cannot be cut into patches of {patch}")
        dim = HEADS * max(1, round(dim * width / HEADS))
        self.bands, self.side, self.patch, self.max_pool = bands, side, patch, max_pool
        self.embed = nn.Linear(bands, dim, bias=False) if patch == 1 else ImageEncoder(bands, patch, dim)
        rows = torch.arange(side // patch)
        buckets = distance_buckets(torch.cartesian_prod(rows, rows))                      # P x P
        # as iRPE: pairs with the class token, which is nowhere, share a bucket of their own
        self.register_buffer("buckets", F.pad(buckets, (1, 0, 1, 0), value=BUCKETS), persistent=False)
        self.token = nn.Parameter(0.02 * torch.randn(dim))                                # the class token
        self.absolute = nn.Parameter(0.02 * torch.randn(len(buckets), dim))
        # not in the paper: from 0 at the first block to DROP at the last, as Huang et al.
        self.blocks = nn.ModuleList(Block(dim, DROP * i / max(1, depth - 1)) for i in range(depth))
        self.norm, self.dropout, self.head = nn.LayerNorm(dim, EPSILON), nn.Dropout(DROP), nn.Linear(dim, outputs)
        for module in (*self.blocks.modules(), self.head):
            if isinstance(module, nn.Linear):                                             # official code
                nn.init.trunc_normal_(module.weight, std=0.02), nn.init.zeros_(module.bias)

    def forward(self, x):
        """x (B, C, H, W): standardised images, H = W = side. Returns (B, outputs).

        Errors: ValueError for another size or number of bands.
        """
        if x.shape[1:] != (self.bands, self.side, self.side):
            raise ValueError(f"images are {tuple(x.shape[1:])}, this network takes "
                             f"{(self.bands, self.side, self.side)}")
        x = self.patches(x) + self.absolute
        x = torch.cat([self.token.expand(len(x), 1, -1), x], dim=1)                       # B x N x D, N = 1 + P
        buckets = self.buckets.expand(len(x), -1, -1)
        if self.training:                                                                 # patch dropout
            x, buckets = self.some_patches(x)
        is_bucket = buckets[:, :, None] == torch.arange(BUCKETS + 1, device=x.device)[:, None]    # B x N x K x N
        for block in self.blocks:
            x = block(x, is_bucket)
        x = x[:, 1:]    # the class token is not pooled
        x = self.norm(x).amax(dim=1) if self.max_pool else self.norm(x.mean(dim=1))
        return self.head(self.dropout(x))

    def patches(self, x):
        """(B, C, H, W) to one vector a patch, (B, P, D)."""
        x = patchify(x, self.patch)                                                       # B x P x C x patch x patch
        if self.patch == 1:
            return self.embed(x.flatten(2))
        return self.embed(x.flatten(0, 1))[0].unflatten(0, x.shape[:2])

    def some_patches(self, x):
        """Patch dropout (Liu et al., 2023): the class token, and of each tile 1 - DROP of its patches, rounded down,
        with the place they had.

        x (B, 1 + P, D). Returns x (B, N, D) and buckets (B, N, N) of what is left.
        """
        patches = x.shape[1] - 1
        kept = torch.rand(len(x), patches, device=x.device).argsort(dim=1)[:, :int(patches * (1 - DROP))]
        kept = F.pad(kept + 1, (1, 0))                                                    # B x N, 0 is the class token
        return x.gather(1, kept[:, :, None].expand(-1, -1, x.shape[2])), self.buckets[kept[:, :, None], kept[:, None]]


def image_vit(bands, outputs, side=300, patch=50, width=1.0):
    """For images of much detail: 13.0 M parameters for 4 bands, 3.6 M of them in the image encoder; mean of the
    patches.
    """
    return ViT(bands, outputs, side, patch, dim=256, depth=12, max_pool=False, width=width)


def pixel_vit(bands, outputs, side=6, width=1.0):
    """For one date of a few pixels, each a patch: 0.80 M parameters for 12 bands or 3; maximum of the patches."""
    return ViT(bands, outputs, side, patch=1, dim=128, depth=4, max_pool=True, width=width)
