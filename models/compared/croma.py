"""CROMA (Fuller et al., 2023): a radar image and an optical image, pretrained by contrast between them and by masked
reconstruction.

Each sensor has a transformer of its own; a third one, the radar's tokens attending to the optical ones, fuses them.
These know places by 2D-ALiBi alone; the decoder is told them by sinusoids alone, as in the authors' code. Sizes are
those of the official configuration of OmniSat: half as wide as the published base model.
Dimensions: B tiles, C bands, H x W pixels, P patches, V visible patches, N queries, S keys, D embedding, A heads.
"""
import math

import torch
import torch.nn.functional as F
from torch import nn

from engine.distributed import send
from models.compared.mae import encoding
from models.omnisat import patchify

HEADS, DECODER_HEADS = 16, 8
MASK_SHARE = 0.75
SENSORS = "radar", "optical"


def alibi(places, others, heads):
    """2D-ALiBi: what a head adds to the score of a query and a key, minus their distance times the head's slope.

    places (B, N, 2), others (B, S, 2): row and column of the patches of queries and keys. Slopes are 2^(-8/A),
    2^(-16/A), ..., 2^-8 (Press et al., 2022); distances are Euclidean, in patches. Returns (B, A, N, S).
    """
    distance = (places[:, :, None] - others[:, None]).square().sum(-1).sqrt()             # B x N x S
    slope = 2 ** (-8 / heads * torch.arange(1, heads + 1, dtype=places.dtype, device=places.device))
    return distance[:, None] * -slope[:, None, None]


def take(x, index):
    """Tokens by their number, tile by tile: x (B or 1, P, D), index (B, N) int64 -> (B, N, D)."""
    return x.expand(len(index), -1, -1).gather(1, index[:, :, None].expand(-1, -1, x.shape[2]))


def info_nce(a, b, log_scale):
    """Symmetric InfoNCE of a (B, D) and b (B, D): which b belongs to an a, which a to a b, by cosine similarity times
    exp(log_scale).
    """
    with torch.autocast(a.device.type, enabled=False):
        a, b = (F.normalize(x.to(log_scale.dtype), dim=-1) for x in (a, b))
        similarity, target = log_scale.exp() * a @ b.t(), torch.arange(len(a), device=a.device)
        return (F.cross_entropy(similarity, target) + F.cross_entropy(similarity.t(), target)) / 2


def normalized_patches(x, patch):
    """The targets of reconstruction: x (B, C, H, W) -> (B, P, C x patch x patch).

    Each patch has mean 0 and unbiased variance 1.
    """
    x = patchify(x, patch).flatten(2)
    variance, mean = torch.var_mean(x, 2, keepdim=True)
    return (x - mean) / (variance + 1e-6).sqrt()


def feed_forward(dim):
    return nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))


class Attention(nn.Module):
    """Multi-head attention of normed tokens, with a bias on the scores, or none; queries and keys share the norm."""

    def __init__(self, dim, heads):
        super().__init__()
        self.heads, self.norm = heads, nn.LayerNorm(dim)
        self.query, self.key_value = nn.Linear(dim, dim, bias=False), nn.Linear(dim, 2 * dim, bias=False)
        self.out = nn.Linear(dim, dim)

    def forward(self, x, bias, context=None):
        """x (B, N, D) attends to context (B, S, D), else to itself. Returns (B, N, D).

        bias: (B or 1, A, N, S) or None.
        """
        x = self.norm(x)
        context = x if context is None else self.norm(context)
        q = self.query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)                 # B x A x N x D/A
        k, v = self.key_value(context).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=None if bias is None else bias.to(q.dtype))
        return self.out(x.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Residual attention to itself, to another sensor's tokens if `cross`, and feed-forward network."""

    def __init__(self, dim, heads, cross):
        super().__init__()
        self.attention, self.cross = Attention(dim, heads), Attention(dim, heads) if cross else None
        self.feed_forward = feed_forward(dim)

    def forward(self, x, bias, context, context_bias):
        x = x + self.attention(x, bias)
        if self.cross is not None:
            x = x + self.cross(x, context_bias, context)
        return x + self.feed_forward(x)


class Transformer(nn.Module):
    """Blocks and a last norm; if `cross` it attends to a context too."""

    def __init__(self, dim, depth, heads, cross=False):
        super().__init__()
        self.heads, self.norm = heads, nn.LayerNorm(dim)
        self.blocks = nn.ModuleList(Block(dim, heads, cross) for _ in range(depth))

    def forward(self, x, places, context=None, context_places=None):
        """x (B, N, D) at places (B or 1, N, 2), context (B, S, D) at context_places (B or 1, S, 2). Returns (B, N, D).

        places: None for no 2D-ALiBi.
        """
        bias = None if places is None else alibi(places, places, self.heads)
        context_bias = None if context is None else alibi(places, context_places, self.heads)
        for block in self.blocks:
            x = block(x, bias, context, context_bias)
        return self.norm(x)


class Encoder(nn.Module):
    """The encoder of one sensor, patches (B, N, size) at places (B or 1, N, 2) to tokens (B, N, D)."""

    def __init__(self, size, dim, depth):
        super().__init__()
        self.embed, self.transformer = nn.Linear(size, dim), Transformer(dim, depth, HEADS)

    def forward(self, x, places):
        x = self.embed(x).to(self.embed.weight.dtype)    # sums of blocks stay wide under autocast
        return self.transformer(x, places)


class Decoder(nn.Module):
    """From the fused tokens of the visible patches to the pixels of both sensors at patches that each has masked.

    dim: D of the tokens. inner: the decoder's own. sizes: of a patch of each sensor, a dict. rows: of patches; as many
    are the columns.
    """

    def __init__(self, dim, inner, sizes, rows):
        super().__init__()
        self.embed, self.mask_token = nn.Linear(dim, inner), nn.Parameter(0.02 * torch.randn(inner))
        self.transformer = Transformer(inner, 1, DECODER_HEADS)
        self.outs = nn.ModuleDict({sensor: nn.Linear(inner, size) for sensor, size in sizes.items()})
        # a token's place, fixed; in checkpoints, so that weights learned with another decoder are told apart
        self.register_buffer("encoding", encoding(1, rows, 1, inner, 0))                  # P x inner

    def forward(self, tokens, visible, masked):
        """tokens (B, V, D), visible (B, V): their patches; masked {sensor: (B, N)}: the patches to give.

        Returns {sensor: (B, N, size)}.
        """
        tokens = self.embed(tokens).to(self.mask_token.dtype)                             # whatever autocast made of it
        x = self.mask_token.expand(len(tokens), len(self.encoding), -1)
        x = x.scatter(1, visible[:, :, None].expand_as(tokens), tokens)                   # B x P x inner
        x = self.transformer(x + self.encoding, None)
        return {sensor: out(take(x, masked[sensor])) for sensor, out in self.outs.items()}


class CROMA(nn.Module):
    """CROMA for a radar image, an optical image or both, which show the same square of ground.

    radar_bands, optical_bands: C of each, 0 for a model without that sensor. width: multiplies D. depth: blocks of the
    optical encoder; the radar's and the cross encoder have half as many. side, patch (pixels): of an image and of its
    patches. decoder: with what only pretraining needs; all other weights have the same names in any model that has
    them.
    Parameters, 3 and 12 bands: radar 11.9 M, optical 22.8 M, both 48.8 M, with the decoder 50.3 M.
    Errors: ValueError for no sensor, for a decoder without both, for a side that the patch does not divide.
    """

    def __init__(self, radar_bands=0, optical_bands=0, width=1.0, depth=12, side=120, patch=8, decoder=False):
        super().__init__()
        self.bands = {sensor: bands for sensor, bands in zip(SENSORS, (radar_bands, optical_bands)) if bands}
        if len(self.bands) < (2 if decoder else 1):
            raise ValueError("pretraining needs the bands of radar and optical" if decoder else
                             "give the bands of a sensor or of both")
        if side % patch:
            raise ValueError(f"an image of {side} x {side} pixels cannot be cut into patches of {patch}")
        self.dim, self.side, self.patch = HEADS * max(1, round(384 * width / HEADS)), side, patch
        dim, half = self.dim, max(1, depth // 2)
        rows = torch.arange(side // patch)
        self.register_buffer("places", torch.cartesian_prod(rows, rows).float()[None], persistent=False)    # 1 x P x 2
        sizes = {sensor: bands * patch ** 2 for sensor, bands in self.bands.items()}
        self.encoders = nn.ModuleDict({sensor: Encoder(size, dim, depth if sensor == "optical" else half)
                                       for sensor, size in sizes.items()})
        self.vectors = nn.ModuleDict({sensor: feed_forward(dim) for sensor in sizes})     # GAP-FFN
        # both sensors are one vector without the GAP-FFNs, which stay there as in the official code
        self.cross_encoder = Transformer(dim, half, HEADS, cross=True) if len(sizes) == 2 else None
        self.decoder = None
        if decoder:
            self.projections = nn.ModuleDict({sensor: nn.Linear(dim, dim) for sensor in sizes})
            self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
            inner = DECODER_HEADS * max(1, round(256 * width / DECODER_HEADS))
            self.decoder = Decoder(dim, inner, sizes, side // patch)

    def encode(self, sensor, x, visible=None):
        """Tokens of one sensor (B, P, D). sensor: "radar" or "optical"; x (B, C, H, W): its standardised images, H = W
        = side.

        visible (B, V) int64: only of these patches, (B, V, D); nothing else is looked at. Errors: as forward.
        """
        if sensor not in self.bands:
            raise ValueError(f"this model has no {sensor} encoder")
        if x.shape[1:] != (self.bands[sensor], self.side, self.side):
            raise ValueError(f"{sensor} images are {tuple(x.shape[1:])}, "
                             f"this model takes {(self.bands[sensor], self.side, self.side)}")
        x, places = patchify(x, self.patch).flatten(2), self.places                       # B x P x size
        if visible is not None:
            x, places = take(x, visible), take(places, visible)
        return self.encoders[sensor](x, places)

    def forward(self, radar=None, optical=None):
        """One vector of a tile, (B, D): of one sensor GAP-FFN(mean of its tokens), of both the mean of the cross
        encoder's tokens.

        radar, optical (B, C, H, W): standardised images, H = W = side.
        Errors: ValueError for no image, for another size or number of bands, for a sensor that the model was made
        without.
        """
        tokens = {sensor: self.encode(sensor, x) for sensor, x in zip(SENSORS, (radar, optical)) if x is not None}
        if not tokens:
            raise ValueError("give radar images, optical images or both")
        if len(tokens) == 2:
            return self.cross_encoder(tokens["radar"], self.places, tokens["optical"], self.places).mean(1)
        (sensor, x), = tokens.items()
        return self.vectors[sensor](x.mean(1))

    def draw_masks(self, tiles, generator=None):
        """Which patches each sensor sees of each tile, for pretrain_loss: {sensor: {"visible": (B, V), "masked": (B, P
        - V)}}, int64.

        tiles: B. Masks are uniform, and independent for the two sensors and for tiles. They are drawn on the CPU and
        stay there.
        """
        patches = self.places.shape[1]
        masked = round(patches * MASK_SHARE)
        orders = {sensor: torch.rand(tiles, patches, generator=generator).argsort(dim=1) for sensor in SENSORS}
        return {sensor: {"masked": order[:, :masked], "visible": order[:, masked:]} for sensor, order in orders.items()}

    def pretrain_loss(self, radar, optical, masks):
        """Contrastive loss and reconstruction, with equal weights. radar, optical: as in forward. masks: draw_masks of
        as many tiles.

        Negatives are the other tiles of the call. A sensor's reconstruction is the mean squared error of its masked
        patches. Returns the loss and its terms {"contrastive", "reconstruction"}, all scalars.
        """
        images = {"radar": radar, "optical": optical}
        visible, masked = ({sensor: send(masks[sensor][name], x.device) for sensor, x in images.items()}
                           for name in ("visible", "masked"))
        tokens = {sensor: self.encode(sensor, x, visible[sensor]) for sensor, x in images.items()}
        vectors = (self.projections[sensor](self.vectors[sensor](x.mean(1))) for sensor, x in tokens.items())
        contrastive = info_nce(*vectors, self.log_scale)

        places = {sensor: take(self.places, index) for sensor, index in visible.items()}
        # at the radar's patches
        fused = self.cross_encoder(tokens["radar"], places["radar"], tokens["optical"], places["optical"])
        predictions = self.decoder(fused, visible["radar"], masked)
        reconstruction = sum(F.mse_loss(predictions[sensor], take(normalized_patches(x, self.patch), masked[sensor]))
                             for sensor, x in images.items())
        return contrastive + reconstruction, {"contrastive": contrastive, "reconstruction": reconstruction}
