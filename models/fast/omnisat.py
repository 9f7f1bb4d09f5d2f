"""OmniSat, faster and in less memory: its parts in their fast forms, a large pool in parts, networks compiled, shapes
that do not follow from the draw.

What it computes is models.omnisat.OmniSat, to rounding; tests hold the two together, values and gradients.
"""
import math

import torch
from torch.utils.checkpoint import checkpoint

from engine.distributed import send
from models import combiner, image, norms, series
from models.fast import combiner as fast_combiner
from models.fast import image as fast_image
from models.fast import series as fast_series
from models.fast.contrastive import contrastive_loss
from models.fast.forms import change_classes
from models.omnisat import MASK_SHARE, OmniSat
from utils.plain import is_plain

WHOLE, PART = 2 ** 14, 2 ** 12    # patches: a pool of more than WHOLE, as 128 tiles of PASTIS-HD, goes in parts


def part_of(batch, tiles):
    """The batch of some of its tiles, a slice."""
    return {key: value[tiles] for key, value in batch.items()}


def part_of_targets(masks, tiles, patches):
    """Of "<key>_targets" (OmniSat.draw_masks) those of some of the tiles, a slice, counted from the first of these."""
    first, end = tiles.start * patches, tiles.stop * patches
    targets = {name: value for name, value in masks.items() if name.endswith("_targets")}
    return {name: value[(value >= first) & (value < end)] - first for name, value in targets.items()}


class FastOmniSat(OmniSat):
    """OmniSat of the same arguments and parameters.

    tiles_at_once: a pool of more tiles is worked through in parts, whose activations are computed again in backward;
    loss and gradients are those of the whole pool. None: as WHOLE and PART have it.
    """
    tiles_at_once, is_compiled = None, False

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        change_classes(self, FORMS)

    def compile_networks(self):
        """Have torch.compile fuse what is done to a modality's patches, each block of the combiner, and the
        contrastive loss.
        """
        torch._dynamo.config.recompile_limit = 64                             # of modalities, numbers of dates
        self.is_compiled = True
        self.tokens_of, self.errors_of = torch.compile(self.tokens_of), torch.compile(self.errors_of)
        for block in (*self.combiner.blocks, self.combiner.cross):
            block.compile()

    # ---- in parts

    def parts(self, batch):
        """Slices of the tiles that are worked on at a time."""
        rows, columns = self.grid(batch)
        return self.parts_of(len(self.present(batch)), rows * columns)

    def parts_of(self, tiles, patches):
        """Slices of so many tiles of so many patches."""
        size = self.tiles_in_a_part(tiles, patches)
        return [slice(at, at + size) for at in range(0, tiles, size)]

    def tiles_in_a_part(self, tiles, patches):
        """How many tiles of so many patches are worked on at a time."""
        return self.tiles_at_once or (tiles if tiles * patches <= WHOLE else max(1, PART // patches))

    def in_parts(self, function, parts):
        """[function(part) for each part]; of several parts the activations are not kept but computed again in backward.
        """
        if len(parts) == 1 or not torch.is_grad_enabled():
            return [function(part) for part in parts]
        return [checkpoint(function, part, use_reentrant=False, preserve_rng_state=False) for part in parts]

    def encode(self, batch):
        """As OmniSat.encode, but of contexts there is a list, one for each of parts(batch)."""
        encode, parts, statistics = super().encode, self.parts(batch), {}

        def patches_of(key):
            return lambda tiles: (self.patches(key, batch[key][tiles]), batch[f"{key}_padded"][tiles])
        for key in [key for key in self.sensors if f"{key}_padded" in batch and len(parts) > 1]:    # series
            statistics[f"{key}_statistics"] = self.encoders[key].pool_statistics(patches_of(key), parts, self.in_parts)
        tokens, present, contexts = zip(*self.in_parts(lambda tiles: encode(part_of(batch, tiles) | statistics), parts))
        return torch.cat(tokens), torch.cat(present), contexts

    def attention_of(self, contexts):
        """As OmniSat.attention_of, of the parts."""
        found = [super(FastOmniSat, self).attention_of(context) for context in contexts]
        return {key: torch.cat([part[key] for part in found]) for key in found[0]}

    def calendar(self, key, batch):
        """As OmniSat.calendar, and of a part of a pool statistics of the whole."""
        statistics = batch.get(f"{key}_statistics")
        return super().calendar(key, batch) + ([] if statistics is None else [statistics])

    def combine(self, tokens, is_masked, grid):
        """As OmniSat.combine."""
        combine, parts = super().combine, self.parts_of(len(tokens), tokens.shape[2])
        return torch.cat(self.in_parts(lambda tiles: combine(tokens[tiles], is_masked[tiles], grid), parts))

    # ---- pretraining

    def fixed_size(self, masks):
        """The same masks, whose shapes do not follow from the draw: of "<key>_targets", (N,), "<key>_weights" is 0
        where one is too many.

        None if the pool is worked through in parts, or if there are, by chance, more targets.
        """
        if not masks:
            return masks
        tiles, _, patches = masks["is_masked"].shape
        if self.tiles_in_a_part(tiles, patches) < tiles:
            return None
        size = math.ceil(MASK_SHARE * tiles * patches + 5 * (MASK_SHARE * (1 - MASK_SHARE) * tiles * patches) ** 0.5)
        fixed = {name: masks[name] for name in ("is_masked", "count")}
        for key in self.sensors:
            targets = masks[f"{key}_targets"]
            if len(targets) > size:
                return None
            fixed[f"{key}_targets"] = torch.cat([targets, targets.new_zeros(size - len(targets))])
            fixed[f"{key}_weights"] = (torch.arange(size) < len(targets)).float()
        return fixed

    def pretrain_loss(self, batch, masks):
        """As OmniSat.pretrain_loss. masks: on the CPU, also those of fixed_size."""
        sent = {name: send(masks[name], self.mask_token.device) for name in ("is_masked", "count") if name in masks}
        return super().pretrain_loss(batch, masks | sent)

    def contrast(self, tokens, present, naive):
        """Equation 3."""
        return contrastive_loss(tokens, present, naive=naive, compiled=self.is_compiled)

    def reconstruct(self, f, masks, batch, contexts):
        """As OmniSat.reconstruct, but the sums of the summands of each part. masks: on the CPU, also those of
        fixed_size; contexts: of encode.
        """
        reconstruct, parts = super().reconstruct, self.parts(batch)

        def error_of_part(part):
            tiles, context = part
            targets = masks if len(parts) == 1 else part_of_targets(masks, tiles, f.shape[1])
            sent = {name: send(targets[name], f.device) for name in targets if name.endswith(("_targets", "_weights"))}
            weights = [sent[f"{key}_weights"] for key in self.sensors if f"{key}_weights" in sent]
            for key in self.sensors if self.is_compiled and not weights else ():
                torch._dynamo.maybe_mark_dynamic(sent[f"{key}_targets"], 0)   # next time their number is another
            errors = reconstruct(f[tiles], sent, part_of(batch, tiles), context)
            return (errors * torch.cat(weights) if weights else errors).sum()
        return torch.stack(self.in_parts(error_of_part, list(zip(parts, contexts))))


# what is plain, and its fast form
FORMS = {OmniSat: FastOmniSat, image.ImageEncoder: fast_image.ImageEncoder, image.ImageDecoder: fast_image.ImageDecoder,
         image.ResidualBlock: fast_image.ResidualBlock, norms.GroupNorm: fast_image.GroupNorm,
         series.SeriesEncoder: fast_series.SeriesEncoder, combiner.Attention: fast_combiner.Attention}


def fast_form(model):
    """The model in its fast form, or as it is where OMNISAT_PLAIN=1."""
    return model if is_plain() else change_classes(model, FORMS)
