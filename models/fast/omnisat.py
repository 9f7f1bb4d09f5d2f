"""OmniSat, faster and in less memory: a large pool in parts, networks compiled, shapes that do not follow from the
draw.

What it computes is models.omnisat.OmniSat, to rounding; tests hold the two together, values and gradients.
"""
import math

import torch
from torch.utils.checkpoint import checkpoint

from engine.distributed import send
from losses.contrastive import contrastive_loss
from models.omnisat import MASK_SHARE, OmniSat

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

    def compile_networks(self):
        """Have torch.compile fuse what is done to a modality's patches, each block of the combiner, and the
        contrastive loss.
        """
        torch._dynamo.config.recompile_limit = 64                             # of modalities, numbers of dates
        self.is_compiled = True
        self.tokens_of, self.errors_of = torch.compile(self.tokens_of), torch.compile(self.errors_of)
        for block in (*self.combiner.blocks, self.combiner.cross):
            block.compile()

    def parts(self, batch):
        """Slices of the tiles that are worked on at a time."""
        rows, columns = self.grid(batch)
        return self.slices(len(batch[self.given(batch)[0]]), rows * columns)

    def slices(self, tiles, patches):
        """parts of so many tiles of so many patches."""
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
        parts = self.parts(batch)
        if len(parts) == 1:
            tokens, context = self.encode_part(batch)
            return tokens, self.present(batch), [context]

        def patches_of(key):
            return lambda tiles: (self.patches(key, batch[key][tiles]), batch[f"{key}_padded"][tiles])
        statistics = {key: self.encoders[key].pool_statistics(patches_of(key), parts, self.in_parts)
                      for key in self.given(batch) if self.sensors[key].kind == "series"}
        tokens, contexts = zip(*self.in_parts(lambda tiles: self.encode_part(part_of(batch, tiles), statistics), parts))
        return torch.cat(tokens), self.present(batch), contexts

    def level_of(self, level, tokens, present, grid):
        """As OmniSat.level_of."""
        whole, parts = super().level_of, self.slices(len(tokens), tokens.shape[2])
        return torch.cat(self.in_parts(lambda tiles: whole(level, tokens[tiles], present[tiles], grid), parts))

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
        tokens, present, contexts = self.encode(batch)
        terms = {}
        if "contrastive" in self.terms:
            terms["contrastive"] = contrastive_loss(tokens, present, naive=self.ablation == "naive_contrastive",
                                                    compiled=self.is_compiled)
        if "reconstruction" in self.terms:
            is_masked, count = send(masks["is_masked"], tokens.device), send(masks["count"], tokens.device)
            grid = self.grid(batch)

            def error_of_part(part):
                tiles, context = part
                f = self.combine(tokens[tiles], is_masked[tiles], grid)
                targets = masks if len(contexts) == 1 else part_of_targets(masks, tiles, tokens.shape[2])
                return self.reconstruct(f, targets, part_of(batch, tiles), context).sum()
            errors = self.in_parts(error_of_part, list(zip(self.parts(batch), contexts)))
            terms["reconstruction"] = torch.stack(errors).sum() / count
        return sum(terms.values()), terms

    def reconstruct(self, f, targets, batch, context):
        """As OmniSat.reconstruct. targets: of draw_masks or fixed_size, for these tiles, on the CPU."""
        errors = []
        for key in self.sensors:
            target, weights = send(targets[f"{key}_targets"], f.device), targets.get(f"{key}_weights")
            if self.is_compiled and weights is None:
                torch._dynamo.maybe_mark_dynamic(target, 0)                   # next time their number is another
            error = self.errors_of(key, target, f, batch[key], *self.calendar(key, batch), *context[key])
            errors.append(error if weights is None else error * send(weights, f.device))
        return torch.cat(errors)
