"""Presto (Tseng et al., 2023): a transformer for the time series of single pixels, of all sensors that there are.

At each date each group of bands is a token, which knows its month, its group and its number in the series; what there
is not has no token. This is the published encoder, with its names of weights; a tile is mean and deviation of its
pixels' embeddings. Dimensions: B tiles, N pixels, T dates, C bands, H x W pixels of a tile, L tokens, D embedding.
"""
import math

import torch
from torch import nn

from models.compared.inputs import select
from models.compared.transformer import Block
from models.series import date_encoding

DIM, HEADS, DEPTH, MAX_DATES = 128, 8, 2, 24

# groups of bands in their published order, and the number of bands of each; dynamic_world, the class of land cover,
# comes last
GROUPS = {"S1": 2, "S2_RGB": 3, "S2_Red_Edge": 3, "S2_NIR_10m": 1, "S2_NIR_20m": 1, "S2_SWIR": 2, "ERA5": 2, "SRTM": 2,
          "NDVI": 1}
NUMBERS = {group: number for number, group in enumerate((*GROUPS, "dynamic_world"))}
LAND_COVERS = 9
S1 = "VV", "VH"
S2_GROUPS = {"S2_RGB": ("B02", "B03", "B04"), "S2_Red_Edge": ("B05", "B06", "B07"), "S2_NIR_10m": ("B08",),
             "S2_NIR_20m": ("B8A",), "S2_SWIR": ("B11", "B12")}


def s1_inputs(x, bands):
    """Radar as Presto takes it, {group: (..., C, H, W)}. x (..., C, H, W): dB, of the bands named.

    Errors: ValueError for a missing band.
    """
    return {"S1": (select(x, bands, S1) + 25) / 25}


def s2_inputs(x, bands):
    """Sentinel-2 as Presto takes it, {group: (..., C, H, W)}. x (..., C, H, W): digital numbers, of the bands named,
    in any order.

    Errors: ValueError for a missing band.
    """
    groups = {group: select(x, bands, names) / 10000 for group, names in S2_GROUPS.items()}
    red, infrared = groups["S2_RGB"][..., 2:, :, :], groups["S2_NIR_10m"]
    total = infrared + red
    return groups | {"NDVI": torch.where(total > 0, (infrared - red) / total, 0)}


def month_encoding(dim):
    """(12, dim): dim / 2 times the sine of the month on the circle of the year, as often its cosine."""
    angle = 2 * math.pi / 12 * torch.arange(12, dtype=torch.float64)[:, None].expand(-1, dim // 2)
    return torch.cat([angle.sin(), angle.cos()], 1).float()


def cartesian(latlon):
    """Degrees of latitude and longitude (..., 2) to the point of the unit sphere (..., 3)."""
    latitude, longitude = latlon.deg2rad().unbind(-1)
    return torch.stack([latitude.cos() * longitude.cos(), latitude.cos() * longitude.sin(), latitude.sin()], -1)


class Presto(nn.Module):
    """The encoder: 0.40 M parameters."""

    def __init__(self):
        super().__init__()
        self.eo_patch_embed = nn.ModuleDict({group: nn.Linear(bands, DIM) for group, bands in GROUPS.items()})
        self.dw_embed = nn.Embedding(LAND_COVERS + 1, DIM)    # the last row is for no land cover, which has no token
        self.latlon_embed = nn.Linear(3, DIM)
        # a token's month, group and position, side by side; only the group's part is learned
        self.month_embed = nn.Embedding.from_pretrained(month_encoding(DIM // 4))
        self.channel_embed = nn.Embedding(len(GROUPS) + 1, DIM // 4)
        self.register_buffer("pos_embed", date_encoding(MAX_DATES - 1, DIM // 2)[None])
        self.blocks = nn.ModuleList(Block(DIM, HEADS, 1e-5) for _ in range(DEPTH))
        self.norm = nn.LayerNorm(DIM)

    def forward(self, groups, months, padded, latlon):
        """Mean and standard deviation (unbiased, of one pixel 0) of a tile's pixels, (B, 2 D), each encoded apart.

        They share dates and place. Source: its authors' code, aggregate "mean", since January 2024.

        groups: {group: (B, T, C, H, W)}, of s1_inputs or s2_inputs. months, padded (B, T), latlon (B, 2) and errors:
        as encode.
        """
        pixels = next(iter(groups.values()))[0, 0, 0].numel()
        groups = {group: x.permute(0, 3, 4, 1, 2).flatten(0, 2) for group, x in groups.items()}
        months, padded, latlon = (x.repeat_interleave(pixels, 0) for x in (months, padded, latlon))
        embeddings = self.encode(groups, months, padded, latlon).unflatten(0, (-1, pixels))
        # the gradient of a deviation of 0 is finite: torch sees to it
        deviation, mean = torch.std_mean(embeddings, 1, correction=min(1, pixels - 1))
        return torch.cat([mean, deviation], 1)

    def encode(self, groups, months, padded, latlon):
        """The embedding of each pixel, (N, D): the normed mean of its tokens.

        groups: {group: (N, T, C)} of those there are, normalised; of SRTM, which does not change, the first date is
        taken; dynamic_world (N, T) int64: 0 to 8. months (N, T) int64: 0 to 11. padded (N, T) bool: True where there
        is no date, which then has no tokens; values there are finite, arbitrary. latlon (N, 2): degrees, a token that
        is never left out. Errors: ValueError for a group that there is not, or more than MAX_DATES dates.
        """
        unknown, dates = set(groups) - set(NUMBERS), months.shape[1]
        if unknown or dates > MAX_DATES:
            raise ValueError(f"no group {', '.join(sorted(unknown))}: there are {', '.join(NUMBERS)}" if unknown else
                             f"a series of {dates} dates: there are positions for {MAX_DATES}")
        month, position = self.month_embed(months), self.pos_embed[:, :dates].expand(len(months), -1, -1)
        tokens, is_token = [self.latlon_embed(cartesian(latlon))[:, None]], [torch.ones_like(padded[:, :1])]
        for group, x in groups.items():
            x = self.dw_embed(x) if group == "dynamic_world" else self.eo_patch_embed[group](x)    # N x T x D
            kind = self.channel_embed.weight[NUMBERS[group]].expand(len(x), dates, -1)
            if group == "SRTM":                                               # one token, of no month and no position
                token = x[:, :1] + torch.cat([0 * month, kind, 0 * position], 2)[:, :1]
            else:
                token = x + torch.cat([month, kind, position], 2)
            tokens.append(token)
            is_token.append(~padded[:, :token.shape[1]])
        x, is_token = torch.cat(tokens, 1), torch.cat(is_token, 1)            # N x L x D, N x L
        for block in self.blocks:
            x = block(x, is_token)
        weight = is_token[:, :, None].to(x.dtype)
        return self.norm((weight * x).sum(1) / weight.sum(1))

    def load_published(self, state):
        """Take the published weights, a state dict; those of the decoder, which pretraining alone needs, are left out.

        Errors: RuntimeError naming weights that lack or are too many, or of another shape.
        """
        self.load_state_dict({name.removeprefix("encoder."): value for name, value in state.items()
                              if not name.startswith("decoder.")})
