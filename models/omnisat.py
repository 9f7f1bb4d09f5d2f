"""OmniSat (section 3, figure 2): one encoder per modality, a combiner, one decoder per modality.

Dimensions: B tiles, M modalities, P patches, T dates, C bands, D embedding, K classes.
A batch is a dict: <key> (B, C, H, W) or (B, T, C, H, W), <key>_dates (B, T) int, <key>_padded (B, T) bool (True where
there is no date; its values are finite). Values come as they are in the file (dB for radar): the model standardises them.
"""
import torch
from torch import nn

from losses.contrastive import contrastive_loss
from losses.reconstruction import token_error, top_dates
from models.combiner import Combiner
from models.image import ImageDecoder, ImageEncoder
from models.series import SeriesDecoder, SeriesEncoder

MASK_SHARE = 0.75              # not in the paper: the official code's
DATE_SHARE = 0.25              # section 3.1
# of table 5, by the names of results/paper/cells.csv; each changes pretraining only
ABLATIONS = ("none", "no_index_bypass", "no_date_filtering", "no_contrastive", "naive_contrastive", "no_reconstruction")


class Standardize(nn.Module):
    """(x - mean) / std of each band, with the statistics of the training split; they are part of the checkpoint."""

    def __init__(self, bands):
        super().__init__()
        self.register_buffer("mean", torch.zeros(bands))
        self.register_buffer("std", torch.ones(bands))

    def forward(self, x):
        """x (..., C, H, W) of any number type. Returns the same shape in the statistics' floating type."""
        return (x.to(self.mean.dtype) - self.mean[:, None, None]) / self.std[:, None, None]


def patchify(x, patch):
    """Cut into patches of patch x patch pixels, row by row (section 3.4, tokenization).

    x (B, C, H, W) -> (B, P, C, patch, patch), or a series (B, T, C, H, W) -> (B, P, T, C x patch x patch).
    """
    x = x.unflatten(-2, (-1, patch)).unflatten(-1, (-1, patch))               # ... C x rows x patch x columns x patch
    if x.ndim == 6:
        return x.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    return x.permute(0, 3, 5, 1, 2, 4, 6).flatten(1, 2).flatten(3)


def random_mask(present, patches, share, generator=None):
    """K of equation 4: `share` of each tile's tokens, rounded, uniformly; the tokens of a missing modality besides.

    present (B, M) bool. Returns (B, M, P) bool, True where the token is masked.
    """
    missing = ~present[:, :, None].expand(-1, -1, patches).flatten(1)         # B x MP
    noise = torch.rand(missing.shape, generator=generator, device=present.device).masked_fill(missing, 2)
    rank = noise.argsort(1).argsort(1)
    wanted = ((~missing).sum(1, keepdim=True) * share).round()
    return ((rank < wanted) | missing).view(len(present), -1, patches)


class OmniSat(nn.Module):
    """OmniSat for the given sensors.

    sensors: list of datasets.sensors.Sensor, images or series, one or more. embed_dim: D. depth: B of the paper, the
    number of self-attention blocks. num_classes: K; 0 builds the decoders for pretraining, else the classifier.
    ablation: one of ABLATIONS; the model has the same parameters under each.
    """

    def __init__(self, sensors, embed_dim=256, depth=6, heads=8, num_classes=0, ablation="none"):
        super().__init__()
        if ablation not in ABLATIONS:
            raise ValueError(f"unknown ablation {ablation!r}: there are {', '.join(ABLATIONS)}")
        self.sensors, self.ablation = {sensor.key: sensor for sensor in sensors}, ablation
        self.terms = tuple(term for term in ("contrastive", "reconstruction") if ablation != f"no_{term}")
        self.standardize, self.encoders = nn.ModuleDict(), nn.ModuleDict()
        self.decoders = nn.ModuleDict() if num_classes == 0 else None
        for key, sensor in self.sensors.items():
            bands = len(sensor.bands)
            self.standardize[key] = Standardize(bands)
            if sensor.kind == "image":
                encoder = ImageEncoder(bands, sensor.patch, embed_dim)
                decoder = ImageDecoder(bands, sensor.patch, embed_dim, bypass=ablation != "no_index_bypass")
            else:
                sizes = bands * sensor.patch ** 2, sensor.period, embed_dim   # a patch's pixels are flattened into bands
                encoder, decoder = SeriesEncoder(*sizes), SeriesDecoder(*sizes)
            self.encoders[key] = encoder
            if self.decoders is not None:
                self.decoders[key] = decoder
        self.mask_token = nn.Parameter(0.02 * torch.randn(embed_dim))         # f^mask
        self.combiner = Combiner(embed_dim, depth, heads)
        self.head = nn.Linear(embed_dim, num_classes) if num_classes else None

    def set_statistics(self, statistics):
        """statistics: {key: {"mean": [C], "std": [C]}} of the training split, in the file's units (dB for radar)."""
        for key, module in self.standardize.items():
            if len(statistics[key]["mean"]) != len(module.mean):
                raise ValueError(f"{key}: statistics of {len(statistics[key]['mean'])} bands for {len(module.mean)}")
            module.mean.copy_(torch.tensor(statistics[key]["mean"]))
            module.std.copy_(torch.tensor(statistics[key]["std"]))

    def encode(self, batch):
        """Each modality's patches to tokens.

        Returns tokens (B, M, P, D), present (B, M) bool, and per modality what its decoder needs: the patches (its
        target) with the pooling indices of an image, or the attention over dates of a series.
        """
        tokens, present, context = [], [], {}
        for key, sensor in self.sensors.items():
            x = patchify(self.standardize[key](batch[key]), sensor.patch)     # B x P x ...
            if sensor.kind == "image":
                token, indices = self.encoders[key](x.flatten(0, 1))          # images are encoded patch by patch
                token, present_m = token.unflatten(0, x.shape[:2]), x.new_ones(len(x), dtype=torch.bool)
                context[key] = x, indices
            else:
                padded = batch[f"{key}_padded"]
                token, attention = self.encoders[key](x, batch[f"{key}_dates"], padded)
                present_m = ~padded.all(1)
                context[key] = x, attention
            tokens.append(token)
            present.append(present_m)
        return torch.stack(tokens, 1), torch.stack(present, 1), context

    def positions(self, batch):
        """Row and column of each patch, (P, 2). Errors: ValueError if the modalities do not share one grid of patches."""
        grids = {}
        for key, sensor in self.sensors.items():
            height, width = batch[key].shape[-2:]
            if height % sensor.patch or width % sensor.patch:
                raise ValueError(f"{key}: {height} x {width} pixels cannot be cut into patches of {sensor.patch}")
            grids[key] = height // sensor.patch, width // sensor.patch
        if len(set(grids.values())) > 1:
            raise ValueError("the modalities must share one grid of patches, here it is "
                             + ", ".join(f"{rows} x {columns} for {key}" for key, (rows, columns) in grids.items()))
        return torch.cartesian_prod(*(torch.arange(n) for n in grids[key]))

    def combine(self, tokens, is_masked, positions):
        """Equations 1, 2 and 4. tokens (B, M, P, D), is_masked (B, M, P) bool, positions (P, 2). Returns f* (B, P, D)."""
        tokens = torch.where(is_masked[..., None], self.mask_token, tokens)
        return self.combiner(tokens, positions)

    def forward(self, batch):
        """Logits (B, K): mean of f* over the patches, one linear layer."""
        positions = self.positions(batch)
        tokens, present, _ = self.encode(batch)
        f = self.combine(tokens, ~present[:, :, None].expand(tokens.shape[:3]), positions)
        return self.head(f.mean(1))

    def pretrain_loss(self, batch, generator=None):
        """Sum of equations 3 and 5. generator: of the masks, on the batch's device.

        Returns the loss and its terms, {"contrastive", "reconstruction"} or what the ablation leaves of them, all scalars.
        """
        positions, terms = self.positions(batch), {}
        tokens, present, context = self.encode(batch)
        if "contrastive" in self.terms:
            terms["contrastive"] = contrastive_loss(tokens, present, naive=self.ablation == "naive_contrastive")
        if "reconstruction" in self.terms:                                    # without it nothing is masked or combined
            is_masked = random_mask(present, tokens.shape[2], MASK_SHARE, generator)
            f = self.combine(tokens, is_masked, positions)
            terms["reconstruction"] = self.reconstruct(f, is_masked & present[:, :, None], batch, context)
        return sum(terms.values()), terms

    def reconstruct(self, f, is_target, batch, context):
        """Equation 5, decoding only what counts. f (B, P, D), is_target (B, M, P) bool: K without missing tokens."""
        errors, date_share = [], 1 if self.ablation == "no_date_filtering" else DATE_SHARE
        for m, (key, sensor) in enumerate(self.sensors.items()):
            tile, patch = is_target[:, m].nonzero(as_tuple=True)              # N targets of this modality
            x = context[key][0][tile, patch]
            if sensor.kind == "image":
                indices = [index.unflatten(0, f.shape[:2])[tile, patch] for index in context[key][1]]
                errors.append(token_error(self.decoders[key](f[tile, patch], indices), x))
            else:
                attention, dates, padded = context[key][1], batch[f"{key}_dates"], batch[f"{key}_padded"]
                index, is_used = top_dates(attention.detach(), padded, date_share)
                index = index[tile, patch]                                    # N x K dates of each target
                prediction = self.decoders[key](f[tile, patch], dates[tile].gather(1, index))
                target = x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))
                errors.append(token_error(prediction, target, is_used[tile]))
        return torch.cat(errors).sum() / is_target.sum().clamp(min=1)
