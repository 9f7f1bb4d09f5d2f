"""What the study of fine-tuning varies: head, the image's token, where L-TAE starts from, dates of a tile, dropout.

Dimensions: B tiles, N tokens, S of the context, D embedding, H heads, K classes.
"""
import math

import torch
import torch.nn.functional as F
from torch import nn

from models import combiner
from models.fast.image import GeluPool, ImageEncoder, images, rows as pixels
from models.fast.omnisat import FastOmniSat as OmniSat, fast_form
from models.norms import BatchNorm

DIM, DEPTH = 64, 2
DROP = 0.2                    # of variant dropout: the official code's


def head(name, classes, labels):
    """The head (B, D) -> (B, K): [odds_][layer|batch]. odds: the bias begins at the log-odds of the training labels."""
    norms = {"linear": [], "layer": [nn.LayerNorm(DIM, elementwise_affine=False)],
             "batch": [BatchNorm(DIM, affine=False)]}
    linear = nn.Linear(DIM, classes)
    if name.startswith("odds_"):
        linear.bias.data = torch.logit(labels.mean(0).clamp(1e-3, 1 - 1e-3))
    return nn.Sequential(*norms[name.removeprefix("odds_")], linear)


class LinearToken(ImageEncoder):
    """A linear layer behind the last pool."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.last = nn.Linear(sizes[-1], sizes[-1])

    def forward(self, x):
        token, indices = super().forward(x)
        return self.last(token), indices


class NormedToken(ImageEncoder):
    """A layer norm behind the last pool, as the series' encoder ends in."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.last = nn.LayerNorm(sizes[-1])

    def forward(self, x):
        token, indices = super().forward(x)
        return self.last(token), indices


class RawToken(ImageEncoder):
    """The last max-pool without its GELU."""

    def forward(self, x):
        x, indices = self.stem(x.contiguous(memory_format=torch.channels_last)), []
        for block in self.blocks:
            x, index = GeluPool.apply(x, None, 2)
            indices.append(index)
            x = block(x)
        index = F.max_pool2d(x, self.sizes[-1], return_indices=True)[1].short()
        return images(pixels(x).gather(1, pixels(index).long()), 1).flatten(1), [*indices, index]


IMAGES = {"linear": LinearToken, "norm": NormedToken, "raw": RawToken}


class DroppedAttention(combiner.Attention):
    """The combiner's attention, a share DROP of its weights dropped; term by term, for few tokens."""

    def forward(self, x, context, buckets):
        q = self.query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)                 # B x H x N x D/H
        k, v = self.key_value(context).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        by_bucket = (q @ self.relative.t()).gather(3, buckets.long().expand(*q.shape[:2], -1, -1))    # B x H x N x S
        weights = F.dropout(((q @ k.mT + by_bucket) / q.shape[-1] ** 0.5).softmax(-1), DROP, self.training)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


class DroppedBlock(combiner.Block):
    """The combiner's block with the official code's dropout and drop-path.

    Dropped are a share DROP of what attention and MLP give, of the MLP's hidden units and of attention weights; and by
    drop-path attention for a share DROP of the tiles, the MLP for as many. Cross-attention has no drop-path, as all
    that a tile says goes through it.
    """

    def __init__(self, dim, heads, cross=False):
        super().__init__(dim, heads, cross)
        self.attention, self.drop_path = DroppedAttention(dim, heads), 0 if cross else DROP

    def forward(self, x, buckets, context=None):
        normed = self.norm(x)
        context = normed if context is None else self.norm_context(context)
        x = x + self.dropped(self.attention(normed, context, buckets))
        norm, first, gelu, last = self.mlp
        return x + self.dropped(last(F.dropout(gelu(first(norm(x))), DROP, self.training)))

    def dropped(self, branch):
        """Dropout, then stochastic depth: of whole tiles (B, N, D), the expectation kept."""
        path = F.dropout(branch.new_ones(len(branch), 1, 1), self.drop_path, self.training)
        return F.dropout(branch, DROP, self.training) * path


def add_dropout(model):
    """The official code's dropout in the combiner, and behind the MLP of each L-TAE; weights stay."""
    parts = model.combiner
    with torch.random.fork_rng():                                             # what is drawn later stays what it was
        for number, block in enumerate(parts.blocks):
            parts.blocks[number] = dropped_like(block, False)
        parts.cross = dropped_like(parts.cross, True)
    for key, sensor in model.sensors.items():
        if sensor.kind == "series":
            model.encoders[key].out[0].append(nn.Dropout(DROP))


def dropped_like(block, cross):
    new = DroppedBlock(block.norm.weight.numel(), block.attention.heads, cross)
    new.load_state_dict(block.state_dict())
    return new


class TileDates(OmniSat):
    """Equation 5 looks at one set of dates a tile, by the attention averaged over its patches."""

    def tokens_of(self, key, *rest):
        tokens, context = super().tokens_of(key, *rest)
        if self.sensors[key].kind == "series":
            context = [context[0].mean(1, keepdim=True).expand_as(context[0])]
        return tokens, context


def build(variant, sensors, statistics, classes=0):
    """A model: "as_now", "image_<of IMAGES>", "ltae_start" (queries, keys: N(0, 2 / d_k)), "tile_dates", "dropout"."""
    model = (TileDates if variant == "tile_dates" else OmniSat)(sensors, DIM, DEPTH, num_classes=classes)
    model.standardize.set(statistics)
    for key, sensor in model.sensors.items():
        if sensor.kind == "image" and variant.startswith("image_"):
            model.encoders[key] = IMAGES[variant.removeprefix("image_")](len(sensor.bands), sensor.patch, DIM)
        if sensor.kind == "series" and variant == "ltae_start":
            for weight in (model.encoders[key].query, model.encoders[key].key.weight):
                nn.init.normal_(weight, 0, math.sqrt(2 / model.encoders[key].query.shape[1]))
    if variant == "dropout":
        add_dropout(model)
    return fast_form(model)
