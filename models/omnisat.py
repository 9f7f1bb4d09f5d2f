"""OmniSat (section 3, figure 2): one encoder per modality, a combiner, one decoder per modality.

Dimensions: B tiles, M modalities, P patches, T dates, C bands, D embedding, K classes.
A batch is a dict: <key> (B, C, H, W) or (B, T, C, H, W), <key>_dates (B, T) int, <key>_padded (B, T) bool (True where
there is no date; its values are finite). Values come as they are in the file (dB for radar): the model standardises
them. For features a batch may lack a sensor: it is then missing in all its tiles.
"""
import torch
from torch import nn

from losses.contrastive import contrastive_loss
from losses.reconstruction import token_error, top_dates
from models.combiner import Combiner
from models.image import ImageDecoder, ImageEncoder
from models.norms import BatchNorm
from models.series import SeriesDecoder, SeriesEncoder
from models.standardize import Standardization

MASK_SHARE = 0.75              # not in the paper: the official code's
DATE_SHARE = 0.25              # section 3.1
# of table 5, by the names of results/paper/cells.csv; each changes pretraining only
ABLATIONS = ("none", "no_index_bypass", "no_date_filtering", "no_contrastive", "naive_contrastive", "no_reconstruction")


def patchify(x, patch):
    """Cut into patches of patch x patch pixels, row by row (section 3.4, tokenization).

    x (B, C, H, W) -> (B, P, C, patch, patch), or a series (B, T, C, H, W) -> (B, P, T, C, patch, patch).
    """
    x = x.unflatten(-2, (-1, patch)).unflatten(-1, (-1, patch))               # ... C x rows x patch x columns x patch
    return x.movedim((-4, -2), (1, 2)).flatten(1, 2)


def random_mask(present, patches, share, generator=None):
    """K of equation 4: `share` of each tile's tokens, rounded, but one stays, uniformly; the tokens of a missing
    modality besides.

    present (B, M) bool. Returns (B, M, P) bool, True where the token is masked.
    """
    missing = ~present[:, :, None].expand(-1, -1, patches).flatten(1)         # B x MP
    noise = torch.rand(missing.shape, generator=generator, device=present.device).masked_fill(missing, 2)
    rank = noise.argsort(1).argsort(1)
    there = (~missing).sum(1, keepdim=True)
    wanted = torch.minimum((there * share).round(), there - 1)                # of two tokens one stays
    return ((rank < wanted) | missing).view(len(present), -1, patches)


class OmniSat(nn.Module):
    """OmniSat for the given sensors.

    sensors: list of datasets.sensors.Sensor, images or series, one or more. embed_dim: D. depth: B of the paper, the
    number of self-attention blocks. num_classes: K; 0 builds the decoders for pretraining, else the classifier.
    ablation: one of ABLATIONS; the model has the same parameters under each.
    """
    # see models.compared.supervised.Compared
    all_bands, is_fitted, tunes_threshold, published, pools, sees, least_tiles = False, False, False, (), {}, {}, 1

    def __init__(self, sensors, embed_dim=256, depth=6, heads=8, num_classes=0, ablation="none"):
        super().__init__()
        if ablation not in ABLATIONS:
            raise ValueError(f"unknown ablation {ablation!r}: there are {', '.join(ABLATIONS)}")
        self.sensors, self.ablation = {sensor.key: sensor for sensor in sensors}, ablation
        self.terms = tuple(term for term in ("contrastive", "reconstruction") if ablation != f"no_{term}")
        self.standardize, self.encoders = Standardization(sensors), nn.ModuleDict()
        self.decoders = nn.ModuleDict() if num_classes == 0 else None
        for key, sensor in self.sensors.items():
            bands = len(sensor.bands)
            if sensor.kind == "image":
                encoder = ImageEncoder(bands, sensor.patch, embed_dim)
                decoder = ImageDecoder(bands, sensor.patch, embed_dim, bypass=ablation != "no_index_bypass")
            else:
                sizes = bands * sensor.patch ** 2, sensor.period, embed_dim   # its pixels are flattened into bands
                encoder, decoder = SeriesEncoder(*sizes), SeriesDecoder(*sizes)
            self.encoders[key] = encoder
            if self.decoders is not None:
                self.decoders[key] = decoder
        self.mask_token = nn.Parameter(0.02 * torch.randn(embed_dim))         # f^mask
        self.combiner = Combiner(embed_dim, depth, heads)
        self.head = None
        if num_classes:
            # not in the paper: the norm. The mean of f* is mostly the same for all tiles
            self.head = nn.Sequential(BatchNorm(embed_dim, affine=False), nn.Linear(embed_dim, num_classes))

    def encode(self, batch):
        """Each modality's patches to tokens.

        Returns tokens (B, M, P, D), present (B, M) bool, and for each modality what its decoder needs, a list: the
        pooling indices of an image (B, P, D, w, w), or the attention over dates of a series (B, P, T).
        """
        self.grid(batch)                                                      # one of all modalities, or an error
        tokens, context = self.encode_part(batch)
        return tokens, self.present(batch), context

    def encode_part(self, batch, statistics=None):
        """Tokens and context. statistics: what batch norm needs of the whole pool, by modality, where these are a part
        of it.
        """
        tokens, context = {}, {}
        for key in self.given(batch):
            own = statistics and statistics.get(key)
            tokens[key], context[key] = self.tokens_of(key, batch[key], *self.calendar(key, batch), own)
        none = torch.zeros_like(next(iter(tokens.values())))                  # masked later, whatever it is
        return torch.stack([tokens.get(key, none) for key in self.sensors], 1), context

    def tokens_of(self, key, x, dates, padded, statistics):
        """Tokens (B, P, D) of one modality, and what its decoder needs, a list. statistics: as pool_statistics, or
        None.
        """
        x = self.patches(key, x)
        if self.sensors[key].kind == "image":                                 # images are encoded patch by patch
            tokens, indices = self.encoders[key](x.flatten(0, 1))
            tokens, context = tokens.unflatten(0, x.shape[:2]), [index.unflatten(0, x.shape[:2]) for index in indices]
        else:
            tokens, attention = self.encoders[key](x, dates, padded, statistics)
            context = [attention.detach()]
        return tokens.to(self.mask_token.dtype), context                      # whatever autocast made of them

    def given(self, batch):
        """The modalities of which the batch has values; the others are missing in all its tiles."""
        return [key for key in self.sensors if key in batch]

    def calendar(self, key, batch):
        """Dates and padded (B, T) of a series, None and None for an image."""
        return batch.get(f"{key}_dates"), batch.get(f"{key}_padded")

    def present(self, batch):
        """Which modalities each tile has, (B, M) bool: an empty series is missing, and what the batch lacks."""
        given = self.given(batch)
        x = batch[given[0]]
        return torch.stack([~batch[f"{key}_padded"].all(1) if key in given and sensor.kind == "series" else
                            torch.full((len(x),), key in given, device=x.device)
                            for key, sensor in self.sensors.items()], 1)

    def patches(self, key, x):
        """Standardised patches of a modality's tiles, (B, P, C, W, W) of an image, (B, P, T, C x W x W) of a series."""
        x = self.standardize[key](patchify(x, self.sensors[key].patch))
        return x if self.sensors[key].kind == "image" else x.flatten(3)

    def grid(self, batch):
        """Rows and columns of patches. Errors: ValueError if the modalities do not share one grid, or if none is
        there.
        """
        grids = {}
        for key in self.given(batch):
            (height, width), patch = batch[key].shape[-2:], self.sensors[key].patch
            if height % patch or width % patch:
                raise ValueError(f"{key}: {height} x {width} pixels cannot be cut into patches of {patch}")
            grids[key] = height // patch, width // patch
        if not grids:
            raise ValueError(f"the batch has none of {', '.join(self.sensors)}")
        if len(set(grids.values())) > 1:
            raise ValueError("the modalities must share one grid of patches, here it is "
                             + ", ".join(f"{rows} x {columns} for {key}" for key, (rows, columns) in grids.items()))
        return next(iter(grids.values()))

    def combine(self, tokens, is_masked, grid):
        """Equations 1, 2 and 4. tokens (B, M, P, D), is_masked (B, M, P) bool, grid: rows, columns. Returns f* (B, P,
        D).
        """
        tokens = torch.where(is_masked[..., None], self.mask_token, tokens)
        return self.combiner(tokens, torch.cartesian_prod(*(torch.arange(n, device=tokens.device) for n in grid)))

    def features(self, batch, level="tile"):
        """Features by name: "tokens" (B, M, P, D), the encoders'; "patch" (B, P, D), f*; "tile" (B, D), the mean of f*
        over the patches.

        Tokens of a sensor that a tile lacks are masked in f*; their own values mean nothing. Errors: ValueError for
        another name.
        """
        tokens, present, _ = self.encode(batch)
        return self.level_of(level, tokens, present, self.grid(batch))

    def level_of(self, level, tokens, present, grid):
        """features of tokens (B, M, P, D). present (B, M) bool: what is not is masked. grid: rows, columns."""
        if level not in ("tokens", "patch", "tile"):
            raise ValueError(f"unknown level {level!r}: there are tokens, patch, tile")
        if level == "tokens":
            return tokens
        f = self.combine(tokens, ~present[:, :, None].expand(tokens.shape[:3]), grid)
        return f if level == "patch" else f.mean(1)

    def forward(self, batch):
        """Logits (B, K): mean of f* over the patches, batch norm without weights, one linear layer."""
        return self.head(self.features(batch))

    def all_logits(self, batch):
        """What fine-tuning trains, a list of logits (B, K)."""
        return [self(batch)]

    def draw_masks(self, batch, generator=None):
        """K of equation 4, for pretrain_loss: "is_masked" (B, M, P) bool; "<key>_targets", the masked tokens of a
        modality that are there, (N,) int64 of B x P, in order; and "count" (), how many these are in all, at least 1.

        batch: as the loader gives it, on the CPU. There the masks are drawn: how many tokens a decoder gets is then
        known without waiting for the device.
        """
        if "reconstruction" not in self.terms:                                # nothing is masked
            return {}
        rows, columns = self.grid(batch)
        present = self.present(batch)
        is_masked = random_mask(present, rows * columns, MASK_SHARE, generator)
        is_target = is_masked & present[:, :, None]
        targets = {f"{key}_targets": is_target[:, m].flatten().nonzero()[:, 0] for m, key in enumerate(self.sensors)}
        return {"is_masked": is_masked, "count": is_target.sum().clamp(min=1)} | targets

    def pretrain_loss(self, batch, masks):
        """Sum of equations 3 and 5. masks: draw_masks of the same batch, where the batch is.

        Returns the loss and its terms, {"contrastive", "reconstruction"} or what the ablation leaves of them, scalars.
        """
        tokens, present, context = self.encode(batch)
        terms = {}
        if "contrastive" in self.terms:
            terms["contrastive"] = contrastive_loss(tokens, present, naive=self.ablation == "naive_contrastive")
        if "reconstruction" in self.terms:
            f = self.combine(tokens, masks["is_masked"], self.grid(batch))
            terms["reconstruction"] = self.reconstruct(f, masks, batch, context).sum() / masks["count"]
        return sum(terms.values()), terms

    def reconstruct(self, f, masks, batch, context):
        """The summands of equation 5 (N,), one for each target: nothing else is decoded. f (B, P, D); context: of
        encode.
        """
        return torch.cat([self.errors_of(key, masks[f"{key}_targets"], f, batch[key], *self.calendar(key, batch),
                                         *context[key]) for key in self.sensors])

    def errors_of(self, key, target, f, x, dates, padded, *context):
        """The summands (N,) of one modality's targets (N,), of B x P; x, dates and padded: of the batch."""
        decoder, standardize, tile = self.decoders[key], self.standardize[key], target // f.shape[1]
        x = patchify(x, self.sensors[key].patch)
        token, x, *context = (value.flatten(0, 1).index_select(0, target) for value in (f, x, *context))
        if self.sensors[key].kind == "image":
            return token_error(decoder(token, context), standardize(x))
        dates, padded = dates.index_select(0, tile), padded.index_select(0, tile)
        share = 1 if self.ablation == "no_date_filtering" else DATE_SHARE
        index, is_used = top_dates(*context, padded, share)                   # N x K dates
        x = x.gather(1, index[:, :, None, None, None].expand(-1, -1, *x.shape[2:]))
        return token_error(decoder(token, dates.gather(1, index)), standardize(x).flatten(2), is_used)
