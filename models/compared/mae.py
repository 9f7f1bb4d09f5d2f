"""Masked autoencoders of images in groups of bands: SatMAE (Cong et al., 2022) and Scale-MAE (Reed et al., 2023).

A token is one group of bands at one place. The encoder gets a quarter of a tile's tokens; the decoder, which knows
where the others belong, draws their pixels. The two methods differ in what a token is told of itself. Sizes are those
of OmniSat's official configurations, which made the printed numbers: smaller than published, and, for Scale-MAE,
without the published decoder of two scales (low frequencies, and high frequencies of a finer image: a Laplacian
pyramid). Its places multiplied by the ground sample distance, which the official code overwrites with plain ones, are
in use here.

Dimensions: B tiles, C bands, S x S pixels, G groups, P places (patches of one group), L = G P tokens, N visible tokens,
D embedding.
"""
import torch
from torch import nn

from engine.distributed import send
from models.compared.transformer import Block
from models.omnisat import patchify

PATCH, HEADS, MASK_SHARE = 8, 16, 0.75
# of Sentinel-2, SatMAE's: 10 m, then 20 m near infrared, then 20 m short-wave infrared
S2_GROUPS = ("B02", "B03", "B04", "B08"), ("B05", "B06", "B07", "B8A"), ("B11", "B12")


def sinusoids(at, dim):
    """at (N,): positions. Returns (N, dim): dim / 2 sines, then as many cosines, of base 10,000 (Vaswani et al., 2017).
    """
    angle = at.double()[:, None] / 10000 ** (torch.arange(dim // 2, dtype=torch.float64) / (dim // 2))
    return torch.cat([angle.sin(), angle.cos()], 1).float()


def encoding(groups, rows, gsd, dim, group_dim):
    """What a token is told of itself: its place, in dim - group_dim numbers, half of column and half of row, then its
    group.

    groups: G. rows: of patches, as many columns. gsd (m): ground sample distance, which multiplies places; its
    reference is 1 m (Reed et al., section 3.1). group_dim: 0 for no group. Returns (L, dim), group after group.
    """
    place_dim, at = dim - group_dim, torch.arange(rows)
    row, column = torch.cartesian_prod(at, at).unbind(1)
    place = torch.cat([sinusoids(gsd * column, place_dim // 2), sinusoids(gsd * row, place_dim // 2)], 1)
    group = sinusoids(torch.arange(groups), group_dim)
    return torch.cat([place.repeat(groups, 1), group.repeat_interleave(rows * rows, 0)], 1)


class Encoder(nn.Module):
    """sizes: numbers in a patch of each group. encoding (L, D): fixed. depth: number of blocks."""

    def __init__(self, sizes, encoding, depth):
        super().__init__()
        dim = encoding.shape[1]
        self.embed = nn.ModuleList(nn.Linear(size, dim) for size in sizes)
        self.token = nn.Parameter(0.02 * torch.randn(dim))                    # the class token, which is nowhere
        self.blocks, self.norm = nn.Sequential(*(Block(dim, HEADS) for _ in range(depth))), nn.LayerNorm(dim)
        self.register_buffer("encoding", encoding, persistent=False)

    def forward(self, patches, kept=None):
        """patches: a list, (B, P, size) of each group. kept (B, N): the tokens to take, None for all. Returns (B, 1 +
        N, D).
        """
        x = torch.cat([embed(group) for embed, group in zip(self.embed, patches)], 1) + self.encoding    # B x L x D
        if kept is not None:
            x = x.gather(1, kept[:, :, None].expand(-1, -1, x.shape[2]))      # what is masked is not computed with
        return self.norm(self.blocks(torch.cat([self.token.expand(len(x), 1, -1), x], 1)))


class Decoder(nn.Module):
    """sizes, encoding, depth: as Encoder's, of the same D."""

    def __init__(self, sizes, encoding, depth):
        super().__init__()
        dim = encoding.shape[1]
        self.embed, self.mask_token = nn.Linear(dim, dim), nn.Parameter(0.02 * torch.randn(dim))
        self.blocks, self.norm = nn.Sequential(*(Block(dim, HEADS) for _ in range(depth))), nn.LayerNorm(dim)
        self.heads = nn.ModuleList(nn.Linear(dim, size) for size in sizes)
        self.register_buffer("encoding", encoding, persistent=False)

    def forward(self, x, kept):
        """x (B, 1 + N, D): of the encoder. kept (B, N): which tokens these are. Returns a list, (B, P, size) of each
        group.
        """
        token, x = self.embed(x).split([1, kept.shape[1]], dim=1)
        tokens = self.mask_token.to(x.dtype).expand(len(x), len(self.encoding), -1)
        tokens = tokens.scatter(1, kept[:, :, None].expand_as(x), x) + self.encoding    # B x L x D
        x = self.norm(self.blocks(torch.cat([token, tokens], 1)))[:, 1:]
        return [head(group) for head, group in zip(self.heads, x.chunk(len(self.heads), dim=1))]


class MaskedAutoencoder(nn.Module):
    """A masked autoencoder (He et al., 2022) of groups of bands; satmae and scalemae are the two that OmniSat compares
    with.

    bands: names of the C bands. groups: of names, one tuple a group; bands in none of them are not used. seasons: how
    often the bands come one after the other; each season has groups of its own. side (pixels): S. gsd (m): of the
    input, after resizing. group_thirds: how many thirds of the encodings tell the group, in the encoder and in the
    decoder; the rest tells the place. depth, decoder_depth: number of blocks; without a decoder, 0, the names of the
    other weights are the same.
    width: multiplies D, which is 384.

    Errors: ValueError for a side that patches do not divide, or a band of a group that is not there.
    """

    def __init__(self, bands, groups, side, seasons, gsd, group_thirds, depth, decoder_depth, width):
        super().__init__()
        missing = [band for group in groups for band in group if band not in bands]
        if missing:
            raise ValueError(f"no band {', '.join(missing)}: there are {', '.join(bands)}")
        if side % PATCH:
            raise ValueError(f"an image of {side} x {side} pixels cannot be cut into patches of {PATCH}")
        third = HEADS * max(1, round(8 * width))    # D is a multiple of heads and of four thirds
        groups = [[season * len(bands) + bands.index(band) for band in group]
                  for season in range(seasons) for group in groups]
        self.shape, self.group_bands = (seasons * len(bands), side, side), [len(group) for group in groups]
        # of the bands, group after group
        self.register_buffer("order", torch.tensor(sum(groups, [])), persistent=False)
        sizes = [bands * PATCH ** 2 for bands in self.group_bands]
        encodings = [encoding(len(groups), side // PATCH, gsd, 3 * third, thirds * third) for thirds in group_thirds]
        self.encoder = Encoder(sizes, encodings[0], depth)
        self.decoder = Decoder(sizes, encodings[1], decoder_depth) if decoder_depth else None
        for module in self.modules():
            if isinstance(module, nn.Linear):                                 # as He et al.
                nn.init.xavier_uniform_(module.weight), nn.init.zeros_(module.bias)

    def patches(self, x):
        """(B, C, S, S) to what tokens are made of, a list: (B, P, size) of each group. Errors: ValueError for another
        shape.
        """
        if x.shape[1:] != self.shape:
            raise ValueError(f"images are {tuple(x.shape[1:])}, this network takes {self.shape}")
        x = patchify(x.index_select(1, self.order), PATCH)    # B x P x bands of all groups x PATCH x PATCH
        return [group.flatten(2) for group in x.split(self.group_bands, dim=2)]

    def forward(self, x):
        """x (B, C, S, S): standardised images. Returns (B, D), what the class token has become. Errors: as patches."""
        return self.encoder(self.patches(x))[:, 0]

    def draw_masks(self, tiles, generator=None):
        """For pretrain_loss: the visible tokens of each tile, uniform over groups and places, (tiles, N) int64, on the
        CPU.
        """
        tokens = len(self.encoder.encoding)
        return torch.rand(tiles, tokens, generator=generator).argsort(1)[:, :tokens - round(MASK_SHARE * tokens)]

    def pretrain_loss(self, x, kept):
        """Mean squared error of the masked tokens, each divided by its own size. x (B, C, S, S), kept: of draw_masks.
        Returns a scalar.
        """
        kept, patches = send(kept, x.device), self.patches(x)
        predictions = self.decoder(self.encoder(patches, kept), kept)
        error = torch.cat([((y - group) ** 2).mean(-1) for y, group in zip(predictions, patches)], 1)    # B x L
        is_masked = torch.ones_like(error).scatter(1, kept, 0)
        return (error * is_masked).sum() / is_masked.sum()


def satmae(bands, groups, side=224, seasons=1, depth=12, decoder_depth=8, width=1.0):
    """SatMAE: a third of each encoding is the place, by number, two thirds are the group. Arguments: see
    MaskedAutoencoder.

    35.8 M parameters for 4 bands in one group, 36.1 M for Sentinel-2's 10 in three; 21.4 M and 21.5 M of them are the
    encoder's.
    """
    return MaskedAutoencoder(bands, groups, side, seasons, 1, (2, 2), depth, decoder_depth, width)


def scalemae(bands, groups, gsd, side=224, seasons=1, depth=12, decoder_depth=8, width=1.0):
    """Scale-MAE: the encoder is told the place in multiples of gsd, no group; the decoder both. Arguments: see
    MaskedAutoencoder.

    Not in the paper: the group, a third of the decoder's encoding, as the official configuration, where it stayed 0.
    As many parameters as SatMAE; the official count has 385,000 more, a layer from 384 to 1000 that nothing uses.
    """
    return MaskedAutoencoder(bands, groups, side, seasons, gsd, (0, 1), depth, decoder_depth, width)
