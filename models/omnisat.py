"""OmniSat (section 3, figure 2): one encoder per modality, a combiner, one decoder per modality.

Dimensions: B tiles, M modalities, P patches, T dates, C bands, D embedding, K classes.
A batch is a dict: <key> (B, C, H, W) or (B, T, C, H, W), finite, as in the file (dB for radar); of a series <key>_dates
(B, T) int and <key>_padded (B, T) bool, True where there is no date; where images may be missing, <key>_missing (B,)
bool. Features take batches that lack a sensor. models/fast/omnisat.py runs all this faster, unless OMNISAT_PLAIN=1.
"""
import torch
from torch import nn

from losses.contrastive import contrastive_loss
from losses.reconstruction import token_error, top_dates
from models.combiner import Combiner
from models.image import ImageDecoder, ImageEncoder
from models.norms import BatchNorm
from models.patches import patchify, random_mask, shared_grid, which_are_there
from models.series import SeriesDecoder, SeriesEncoder
from models.standardize import Standardization

MASK_SHARE = 0.75              # not in the paper: the official code's
DATE_SHARE = 0.25              # section 3.1
# of table 5, by the names of results/paper/cells.csv; each changes pretraining only
ABLATIONS = ("none", "no_index_bypass", "no_date_filtering", "no_contrastive", "naive_contrastive", "no_reconstruction")


class OmniSat(nn.Module):
    """OmniSat for the given sensors, a list of datasets.sensors.Sensor, images or series, one or more.

    embed_dim: D. depth: the number of self-attention blocks (the paper's B). num_classes: K; 0 builds the decoders for
    pretraining, else the classifier. ablation: one of ABLATIONS; the parameters are the same under each.
    """
    contrast = staticmethod(contrastive_loss)                                 # equation 3; the fast form has its own

    def __init__(self, sensors, embed_dim=256, depth=6, heads=8, num_classes=0, ablation="none"):
        super().__init__()
        if ablation not in ABLATIONS:
            raise ValueError(f"unknown ablation {ablation!r}: there are {', '.join(ABLATIONS)}")
        self.sensors, self.ablation = {sensor.key: sensor for sensor in sensors}, ablation
        self.terms = tuple(term for term in ("contrastive", "reconstruction") if ablation != f"no_{term}")
        self.standardize, self.encoders, decoders = Standardization(sensors), nn.ModuleDict(), nn.ModuleDict()
        for key, sensor in self.sensors.items():
            if sensor.kind == "image":
                sizes = len(sensor.bands), sensor.patch, embed_dim
                pair = ImageEncoder(*sizes), ImageDecoder(*sizes, bypass=ablation != "no_index_bypass")
            else:                                                             # its pixels are flattened into bands
                sizes = len(sensor.bands) * sensor.patch ** 2, sensor.period, embed_dim
                pair = SeriesEncoder(*sizes), SeriesDecoder(*sizes)
            self.encoders[key], decoders[key] = pair
        self.decoders = decoders if num_classes == 0 else None
        self.mask_token = nn.Parameter(0.02 * torch.randn(embed_dim))         # f^mask
        self.combiner = Combiner(embed_dim, depth, heads)
        self.head = None
        if num_classes:
            # not in the paper: the norm. The mean of f* is mostly the same for all tiles
            self.head = nn.Sequential(BatchNorm(embed_dim, affine=False), nn.Linear(embed_dim, num_classes))

    def encode(self, batch):
        """Tokens (B, M, P, D), present (B, M) bool, and {key: list} of what reconstruction needs: an image's pooling
        indices (B, P, D, w, w), for the index bypass, or a series' attention (B, P, T), for the date filter.
        """
        self.grid(batch)                                                      # an error unless all share one grid
        given = [key for key in self.sensors if key in batch]
        found = {key: self.tokens_of(key, batch[key], *self.calendar(key, batch)) for key in given}
        tokens, context = ({key: pair[i] for key, pair in found.items()} for i in (0, 1))
        none = torch.zeros_like(next(iter(tokens.values())))                  # will be masked, whatever it is
        return torch.stack([tokens.get(key, none) for key in self.sensors], 1), self.present(batch), context

    def tokens_of(self, key, x, *calendar):
        """Tokens (B, P, D) of one modality, and the list of what its reconstruction needs."""
        x = self.patches(key, x)
        if self.sensors[key].kind == "image":                                 # a series shares its tile's dates
            tokens, indices = self.encoders[key](x.flatten(0, 1))
            tokens, context = tokens.unflatten(0, x.shape[:2]), [index.unflatten(0, x.shape[:2]) for index in indices]
        else:
            tokens, attention = self.encoders[key](x, *calendar)
            context = [attention.detach()]                                    # which dates are chosen is not learned
        return tokens.to(self.mask_token.dtype), context                      # whatever autocast made of them

    def calendar(self, key, batch):
        """What else an encoder is given: dates and padded (B, T) of a series, nothing of an image."""
        return [batch[f"{key}_{what}"] for what in ("dates", "padded") if self.sensors[key].kind == "series"]

    def present(self, batch):
        """Which modalities each tile has, (B, M) bool."""
        return which_are_there(batch, self.sensors.values())

    def patches(self, key, x):
        """Standardised patches of a modality's tiles, (B, P, C, W, W) of an image, (B, P, T, C x W x W) of a series."""
        x = self.standardize[key](patchify(x, self.sensors[key].patch))
        return x if self.sensors[key].kind == "image" else x.flatten(3)

    def grid(self, batch):
        """Rows and columns of patches. Errors: ValueError if the modalities do not share one grid."""
        sensors = [sensor for sensor in self.sensors.values() if sensor.key in batch]
        return shared_grid({sensor.key: (*batch[sensor.key].shape[-2:], sensor.patch) for sensor in sensors})

    def combine(self, tokens, is_masked, grid):
        """Equations 1, 2 and 4: f* (B, P, D). tokens (B, M, P, D), is_masked (B, M, P) bool, grid: rows, columns."""
        tokens = torch.where(is_masked[..., None].to(tokens.device), self.mask_token, tokens)
        return self.combiner(tokens, torch.cartesian_prod(*(torch.arange(n, device=tokens.device) for n in grid)))

    def features(self, batch, level="tile"):
        """Features by name: "tokens" (B, M, P, D); "patch" (B, P, D), f*; "tile" (B, D), the mean of f* over patches;
        "dates" {key: (B, P, T)}, each series' attention over its dates. Tokens of a sensor that a tile lacks mean
        nothing; in f* they are masked. Errors: ValueError for another name.
        """
        tokens, present, context = self.encode(batch)
        if level == "dates":
            return self.attention_of(context)
        return self.level_of(level, tokens, present, self.grid(batch))

    def attention_of(self, context):
        """{key: (B, P, T)} of the series. context: of encode."""
        return {key: attention for key, (attention, *_) in context.items() if self.sensors[key].kind == "series"}

    def level_of(self, level, tokens, present, grid):
        """Tokens (B, M, P, D) to a level of features. present (B, M) bool: others are masked. grid: rows, columns."""
        if level not in ("tokens", "patch", "tile"):
            raise ValueError(f"unknown level {level!r}: there are tokens, patch, tile, dates")
        if level == "tokens":
            return tokens
        f = self.combine(tokens, ~present[:, :, None].expand(tokens.shape[:3]), grid)
        return f if level == "patch" else f.mean(1)

    def forward(self, batch):
        """Logits (B, K) of a model with classes: mean of f* over the patches, batch norm, one linear layer."""
        return self.head(self.features(batch))

    def all_logits(self, batch):
        """What fine-tuning trains, a list of logits (B, K): one here, UT&T has several."""
        return [self(batch)]

    def draw_masks(self, batch, generator=None):
        """"is_masked" (B, M, P) bool: K of equation 4 and what is missing; "<key>_targets" (N,) int64: the tokens of a
        modality that are in K, tile x P + patch; "count" (): |K|, at least 1. batch: its masks are drawn where it is.
        """
        if "reconstruction" not in self.terms:                                # nothing is masked
            return {}
        present, (rows, columns) = self.present(batch), self.grid(batch)
        is_masked = random_mask(present, rows * columns, MASK_SHARE, generator)
        is_target = is_masked & present[:, :, None]
        targets = {f"{key}_targets": is_target[:, m].flatten().nonzero()[:, 0] for m, key in enumerate(self.sensors)}
        return {"is_masked": is_masked, "count": is_target.sum().clamp(min=1)} | targets

    def pretrain_loss(self, batch, masks):
        """The sum of equations 3 and 5, and the two by name (self.terms), scalars. masks: draw_masks of the batch."""
        (tokens, present, context), terms = self.encode(batch), {}
        if "contrastive" in self.terms:
            terms["contrastive"] = self.contrast(tokens, present, naive=self.ablation == "naive_contrastive")
        if "reconstruction" in self.terms:
            f = self.combine(tokens, masks["is_masked"], self.grid(batch))
            terms["reconstruction"] = self.reconstruct(f, masks, batch, context).sum() / masks["count"]    # eq. 5
        return sum(terms.values()), terms

    def reconstruct(self, f, masks, batch, context):
        """The summands of equation 5 (N,), one for each target: nothing else is decoded. f (B, P, D)."""
        return torch.cat([self.errors_of(key, masks[f"{key}_targets"].to(f.device), f, batch[key], context[key],
                                         *self.calendar(key, batch)) for key in self.sensors])

    def errors_of(self, key, target, f, x, context, *calendar):
        """The summands (N,) of one modality's targets (N,), tile x P + patch; x and calendar: of the batch."""
        decoder, standardize, tile = self.decoders[key], self.standardize[key], target // f.shape[1]
        x = patchify(x, self.sensors[key].patch)
        token, x, *context = (value.flatten(0, 1).index_select(0, target) for value in (f, x, *context))
        if self.sensors[key].kind == "image":
            return token_error(decoder(token, context), standardize(x))
        dates, padded = (value.index_select(0, tile) for value in calendar)
        index, is_used = top_dates(*context, padded, 1 if self.ablation == "no_date_filtering" else DATE_SHARE)
        x = x.gather(1, index[:, :, None, None, None].expand(-1, -1, *x.shape[2:]))    # N x L dates x C x W x W
        return token_error(decoder(token, dates.gather(1, index)), standardize(x).flatten(2), is_used)
