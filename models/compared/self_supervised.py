"""The compared methods whose encoders learned without labels: here (SatMAE, Scale-MAE, CROMA), or elsewhere (DOFA,
PRESTO).

A method is a subclass of Pretrained, as models/compared/supervised.py has others; models/methods.py says what it is
given. All weights are trained with the labels.
Dimensions: B tiles, K classes, T dates, C bands, H x W pixels, D a network's vector.
"""
import torch
from torch import nn

from models.compared.croma import CROMA
from models.compared.dofa import DOFA, S2, SIDE, wavelengths_of
from models.compared.inputs import median, resize, season_medians, select, single_date
from models.compared.mae import PATCH, S2_GROUPS, satmae, scalemae
from models.compared.presto import DIM, Presto, s1_inputs, s2_inputs
from models.compared.resnet import RGB
from models.compared.supervised import Compared, FusionHead

GROUND = {"treesatai": 60, "treesatai-ts": 60, "pastis-hd": 1280, "flair": 100}    # m, the side of a tile
# what TreeSatAI's single dates do not tell: a month, from 0, and degrees north and east
JULY, LOWER_SAXONY = 6, (52.6, 9.1)


class Pretrained(Compared):
    """What these methods share: images of series, a linear layer on each vector.

    num_classes: 0 for pretraining. form: what a series becomes, see models/methods.py. A subclass sets sides: {key:
    pixels}; embed(batch): {name: (B, D)}, a vector of each modality, or one of all; terms: those of pretrain_loss, if
    it has that.
    """
    vectors = dict.fromkeys(("vhr", "s2", "s1"), 128)
    sides = {}

    def build_heads(self, dims, num_classes):
        """A linear layer on each vector, dims {name: D}: to logits, or of several to what the head of the late fusion
        takes.
        """
        has_head = len(dims) > 1
        self.heads = nn.ModuleDict({name: nn.Linear(dim, self.vectors[name] if has_head else num_classes)
                                    for name, dim in dims.items()})
        self.head = FusionHead(sum(self.vectors[name] for name in dims), num_classes) if has_head else nn.Identity()

    def all_logits(self, batch):
        return [self.head(torch.cat([self.heads[name](x) for name, x in self.embed(batch).items()], 1))]

    def vector(self, batch):
        """The vectors of embed side by side, (B, D)."""
        return torch.cat(list(self.embed(batch).values()), 1)

    def inputs(self, key, batch):
        """One image (B, C, S, S), standardised, of the side that the network takes; of seasons 4 C bands."""
        x, *series = super().inputs(key, batch)
        if series:
            dates, padded = series
            x = (single_date(x, padded) if self.form == "date" else median(x, padded) if self.form == "median" else
                 season_medians(x, dates, padded))
        return resize(x, self.sides[key]),


def side_of(pixels, width):
    """The side of an image in a network of that width: a multiple of 8 pixels, which are a patch of SatMAE, Scale-MAE
    and CROMA.
    """
    return PATCH * max(2, round(pixels * width / PATCH))


def layers(number, width):
    return max(1, round(number * width))


# ---- pretrained on the dataset --------------------------------------------------------------------------------------

class MaskedAutoencoders(Pretrained):
    """What SatMAE and Scale-MAE share: each modality's encoder is pretrained by itself, late fusion of class tokens.

    A subclass sets autoencoder(bands, groups, gsd, **sizes). width: of the number of layers and the side of the images
    too.
    """
    terms = ("reconstruction",)

    def build(self, num_classes, width):
        self.networks, self.sides = nn.ModuleDict(), {}
        for key, sensor in self.sensors.items():
            is_series = sensor.kind == "series"
            self.sides[key] = side = side_of(48 if is_series and self.form != "date" else 224, width)
            self.networks[key] = self.autoencoder(
                sensor.bands, S2_GROUPS if is_series else (sensor.bands,), GROUND[self.dataset] / side, side=side,
                seasons=4 if is_series and self.form == "seasons" else 1, depth=layers(12, width),
                decoder_depth=0 if num_classes else layers(8, width), width=width)
        if num_classes:
            dims = {key: network.encoder.encoding.shape[1] for key, network in self.networks.items()}
            self.build_heads(dims, num_classes)

    def embed(self, batch):
        return {key: network(*self.inputs(key, batch)) for key, network in self.networks.items()}

    def compile_networks(self):
        for network in self.networks.values():
            for part in (network.encoder, network.decoder):
                if part is not None:
                    part.compile()

    def draw_masks(self, batch, generator=None):
        """The visible tokens, for pretrain_loss: {key: (B, N)}, on the CPU."""
        return {key: self.networks[key].draw_masks(len(batch[key]), generator) for key in self.sensors}

    def pretrain_loss(self, batch, masks):
        """The loss and its terms, {"reconstruction"}, scalars. masks: draw_masks of the same batch."""
        loss = sum(self.networks[key].pretrain_loss(*self.inputs(key, batch), masks[key]) for key in self.sensors)
        return loss, {"reconstruction": loss}


class SatMAE(MaskedAutoencoders):
    """SatMAE (Cong et al., 2022)."""

    def autoencoder(self, bands, groups, gsd, **sizes):
        return satmae(bands, groups, **sizes)


class ScaleMAE(MaskedAutoencoders):
    """Scale-MAE (Reed et al., 2023)."""

    def autoencoder(self, bands, groups, gsd, **sizes):
        return scalemae(bands, groups, gsd, **sizes)


class RadarOptical(Pretrained):
    """CROMA (Fuller et al., 2023), pretrained on S1 and S2 together, for one of them or both; it has no place for an
    image.
    """
    terms, names = ("contrastive", "reconstruction"), {"s1": "radar", "s2": "optical"}

    def build(self, num_classes, width):
        side, seasons = side_of(120, width), 4 if self.form == "seasons" else 1
        self.sides = dict.fromkeys(self.sensors, side)
        bands = {f"{self.names[key]}_bands": seasons * len(sensor.bands) for key, sensor in self.sensors.items()}
        network = CROMA(**bands, width=width, depth=layers(12, width), side=side, decoder=not num_classes)
        self.networks = nn.ModuleDict({"croma": network})
        if num_classes:
            self.build_heads({"croma": network.dim}, num_classes)

    def images(self, batch):
        """{"radar", "optical"}, or one of them: (B, C, S, S)."""
        return {self.names[key]: self.inputs(key, batch)[0] for key in self.sensors}

    def embed(self, batch):
        return {"croma": self.networks["croma"](**self.images(batch))}

    def compile_networks(self):
        network = self.networks["croma"]
        for part in (*network.encoders.values(), network.cross_encoder, network.decoder):
            if part is not None:
                part.compile()

    def draw_masks(self, batch, generator=None):
        """What each sensor sees of each tile, for pretrain_loss: models.compared.croma.CROMA.draw_masks."""
        return self.networks["croma"].draw_masks(len(batch["s1"]), generator)

    def pretrain_loss(self, batch, masks):
        """The loss and its terms, {"contrastive", "reconstruction"}, scalars. masks: draw_masks of the same batch."""
        return self.networks["croma"].pretrain_loss(**self.images(batch), masks=masks)


# ---- pretrained elsewhere -------------------------------------------------------------------------------------------

class AnyBands(Pretrained):
    """DOFA (Xiong et al., 2024). One network for all modalities, which is told their wavelengths; late fusion of its
    vectors.
    """
    # not in the paper: head, fusion
    weights = "dofa"
    sides, bands = dict.fromkeys(("vhr", "s2", "s1"), SIDE), {"vhr": RGB, "s2": S2, "s1": ("VV", "VH")}

    def build(self, num_classes, width):
        self.networks = nn.ModuleDict({"dofa": DOFA(width, layers(12, width))})
        for key in self.sensors:
            self.register_buffer(f"wavelengths_{key}", wavelengths_of(self.bands[key]), persistent=False)
        self.build_heads(dict.fromkeys(self.sensors, self.networks["dofa"].dim), num_classes)

    def embed(self, batch):
        return {key: self.networks["dofa"](select(*self.inputs(key, batch), sensor.bands, self.bands[key]),
                                           getattr(self, f"wavelengths_{key}")) for key, sensor in self.sensors.items()}

    def load_published(self, load):
        self.networks["dofa"].load_published(load(self.weights))


class PixelTransformer(Pretrained):
    """PRESTO (Tseng et al., 2023): each pixel of a single date is a series of one step; a tile is their mean
    and standard deviation.

    Inputs have the scales that the published weights were trained with, not ours. Logits are above 0 where a class is
    more probable than a threshold, which is chosen on the validation tiles, as by PRESTO's authors: the printed
    numbers are of such.
    """
    weights = "presto"

    def build(self, num_classes, width):
        self.networks = nn.ModuleDict({"presto": Presto()})
        self.register_buffer("latlon", torch.tensor([LOWER_SAXONY]), persistent=False)
        self.register_buffer("threshold", torch.zeros(()))                    # a logit
        self.build_heads(dict.fromkeys(self.sensors, 2 * DIM), num_classes)

    def embed(self, batch):
        (key, sensor), = self.sensors.items()
        x, padded = batch[key].to(self.latlon.dtype), batch[f"{key}_padded"]
        groups = (s1_inputs if key == "s1" else s2_inputs)(x, sensor.bands)
        months = torch.full(padded.shape, JULY, device=padded.device)
        return {key: self.networks["presto"](groups, months, padded, self.latlon.expand(len(x), -1))}

    def forward(self, batch):
        return super().forward(batch) - self.threshold

    def load_published(self, load):
        self.networks["presto"].load_published(load(self.weights))
