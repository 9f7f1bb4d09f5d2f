"""SatMAE and Scale-MAE as compared methods: each modality's encoder is pretrained by itself, then trained with the labels.

Dimensions: B tiles, K classes, T dates, C bands, H x W pixels, D a network's vector.
"""
import torch
from torch import nn

from models.compared import Compared, FusionHead
from models.inputs import median, resize, season_medians, single_date
from models.mae import PATCH, S2_GROUPS, satmae, scalemae

GROUND = {"treesatai": 60, "treesatai-ts": 60, "pastis-hd": 1280, "flair": 100}    # m, the side of a tile
# how a series becomes an image, and pixels of that; FLAIR's late fusion has seasons, so its S2 alone has them too
SERIES = {"treesatai": ("date", 224), "treesatai-ts": ("seasons", 48), "pastis-hd": ("median", 48), "flair": ("seasons", 48)}
SIDE = 224                     # pixels of an image


class MaskedAutoencoders(Compared):
    """What SatMAE and Scale-MAE share. A subclass sets autoencoder(bands, groups, gsd, **sizes).

    num_classes: 0 for pretraining. width: of the layers, and of the number of layers and the side of the images too.
    """
    pretraining, terms, sees = "self", ("reconstruction",), {"all": ("vhr", "s2")}
    vectors = {"vhr": 128, "s2": 128}

    def build(self, num_classes, width):
        self.networks, self.heads, self.sides = nn.ModuleDict(), nn.ModuleDict(), {}
        has_head = num_classes and len(self.sensors) > 1
        for key, sensor in self.sensors.items():
            is_series = sensor.kind == "series"
            form, side = SERIES[self.dataset] if is_series else ("image", SIDE)
            self.sides[key] = side = PATCH * max(2, round(side * width / PATCH))
            self.networks[key] = self.autoencoder(
                sensor.bands, S2_GROUPS if is_series else (sensor.bands,), GROUND[self.dataset] / side, side=side,
                seasons=4 if form == "seasons" else 1, depth=max(1, round(12 * width)),
                decoder_depth=0 if num_classes else max(1, round(8 * width)), width=width)
            if num_classes:
                dim, vector = self.networks[key].encoder.encoding.shape[1], self.vectors[key] if has_head else num_classes
                self.heads[key] = nn.Linear(dim, vector)                      # of the class token
        self.head = FusionHead(sum(self.vectors[key] for key in self.sensors), num_classes) if has_head else nn.Identity()

    def all_logits(self, batch):
        vectors = [self.heads[key](network(*self.inputs(key, batch))) for key, network in self.networks.items()]
        return [self.head(torch.cat(vectors, 1))]

    def compile_networks(self):
        for network in self.networks.values():
            for part in (network.encoder, network.decoder):
                if part is not None:
                    part.compile()

    def inputs(self, key, batch):
        """One image (B, C, S, S), of a series its date, its median or its seasons' medians."""
        x, *series = super().inputs(key, batch)
        if series:
            dates, padded = series
            form = SERIES[self.dataset][0]
            x = (single_date(x, padded) if form == "date" else median(x, padded) if form == "median" else
                 season_medians(x, dates, padded))
        return resize(x, self.sides[key]),

    def draw_masks(self, batch, generator=None):
        """The visible tokens, for pretrain_loss: {key: (B, N)}, on the CPU."""
        return {key: self.networks[key].draw_masks(len(batch[key]), generator) for key in self.sensors}

    def pretrain_loss(self, batch, masks):
        """The loss and its terms, {"reconstruction"}, scalars. masks: draw_masks of the same batch."""
        loss = sum(self.networks[key].pretrain_loss(*self.inputs(key, batch), masks[key]) for key in self.sensors)
        return loss, {"reconstruction": loss}


class SatMAE(MaskedAutoencoders):
    """SatMAE (Cong et al., 2022)."""
    rates = {"treesatai": dict.fromkeys(("vhr", "s2", "all"), 2e-4)}
    pretrain_rates = {"treesatai": dict.fromkeys(("vhr", "s2"), 1e-4)}

    def autoencoder(self, bands, groups, gsd, **sizes):
        return satmae(bands, groups, **sizes)


class ScaleMAE(MaskedAutoencoders):
    """Scale-MAE (Reed et al., 2023)."""
    rates = {"treesatai": dict.fromkeys(("vhr", "s2", "all"), 2e-4), "treesatai-ts": dict.fromkeys(("vhr", "s2", "all"), 2e-4),
             "pastis-hd": {"vhr": 1e-3, "s2": 1e-3, "all": 2e-4}, "flair": {"vhr": 1e-3, "s2": 1e-3, "all": 2e-4}}
    pretrain_rates = {dataset: dict.fromkeys(("vhr", "s2"), 1e-4) for dataset in rates}

    def autoencoder(self, bands, groups, gsd, **sizes):
        return scalemae(bands, groups, gsd, **sizes)
