"""The compared methods that learn from labels alone or start from ImageNet (tables 2 to 4), as networks.

A method is a subclass of Compared, and an entry of models/methods.py: one network for each modality and, where there
are several, late fusion: their vectors side by side, then one head. Inputs and sizes are those of the official
configurations, which made the printed numbers; PAPER.md lists where these are wrong and what we do.

Dimensions: B tiles, K classes, T dates, C bands, H x W pixels, D a network's vector.
"""
import torch
from torch import nn

from models.compared.inputs import select, single_date
from models.compared.mlp import MLP
from models.compared.pse import PSE, PSELTAE
from models.compared.resnet import RGB, ResNet, load_imagenet
from models.compared.utae import UTAEVector
from models.compared.vit import image_vit, pixel_vit
from models.norms import BatchNorm
from models.standardize import Standardization
from utils.errors import UserError


# ---- pieces ---------------------------------------------------------------------------------------------------------

class FusionHead(nn.Sequential):
    """LayerNorm, D -> 128 -> 64 -> K with batch norm and GELU: the head of every late fusion, and of PSE+LTAE and UTAE
    alone.
    """

    def __init__(self, dim, num_classes):
        super().__init__(nn.LayerNorm(dim), nn.Linear(dim, 128), BatchNorm(128), nn.GELU(),
                         nn.Linear(128, 64), BatchNorm(64), nn.GELU(), nn.Linear(64, num_classes))


class SingleDate(nn.Module):
    """A network for images, given a series of one date. A tile without it is the mean of all, 0."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x, dates, padded):
        return self.network(single_date(x, padded))


class RGBResNet50(nn.Module):
    """ResNet-50 on the bands R, G and B of an image, by their names: (B, C, H, W) -> (B, outputs)."""

    def __init__(self, bands, outputs, width=1.0):
        super().__init__()
        self.bands, self.resnet = bands, ResNet(50, 3, outputs, width)

    def forward(self, x):
        return self.resnet(select(x, self.bands, RGB))

    def load_imagenet(self, load):
        load_imagenet(self.resnet, load("resnet50"), RGB)


# ---- methods --------------------------------------------------------------------------------------------------------

class Compared(nn.Module):
    """A compared method for some sensors of a dataset.

    sensors: list of datasets.sensors.Sensor. num_classes: K. dataset: its name. width: of the networks' layers, 1 as
    published; the demo's are narrower. form: what becomes of a series, of models/methods.py; None for all its dates.

    A subclass sets vectors: {key: D} in the late fusion, and has_head: whether a network alone gives D numbers to the
    head too, instead of logits; series_network(bands, outputs, width): a module, series (B, T, C, H, W), dates, padded
    (B, T) -> (B, outputs). weights: the name in utils.weights of what a part can begin with.
    """
    vectors, has_head, weights = {}, False, "resnet50"

    def __init__(self, sensors, num_classes, dataset, width=1.0, form=None):
        super().__init__()
        self.sensors, self.standardize = {sensor.key: sensor for sensor in sensors}, Standardization(sensors)
        self.dataset, self.form = dataset, form
        self.build(num_classes, width)

    def build(self, num_classes, width):
        """The networks and the head."""
        has_head = len(self.sensors) > 1 or self.has_head
        self.networks = nn.ModuleDict({key: self.network(sensor, self.vectors[key] if has_head else num_classes, width)
                                       for key, sensor in self.sensors.items()})
        dim = sum(self.vectors[key] for key in self.sensors) if has_head else 0
        self.head = FusionHead(dim, num_classes) if has_head else nn.Identity()

    def network(self, sensor, outputs, width):
        """The network of a modality: of images a ResNet-50, unless a method has its own."""
        return (RGBResNet50(sensor.bands, outputs, width) if sensor.kind == "image" else
                self.series_network(len(sensor.bands), outputs, width))

    def inputs(self, key, batch):
        """What a modality's network is called with: (image,) or (series, dates, padded), standardised.

        Errors: UserError naming a tile without its image: these networks have nothing in its place.
        """
        if f"{key}_missing" in batch and batch[f"{key}_missing"].any():
            tile = batch["name"][batch[f"{key}_missing"].int().argmax().item()]
            raise UserError(
                f"{tile}: no image of {key}, which only omnisat can do without; leave the tile out of the list")
        x = self.standardize[key](batch[key])
        return (x,) if self.sensors[key].kind == "image" else (x, batch[f"{key}_dates"], batch[f"{key}_padded"])

    def all_logits(self, batch):
        """Logits (B, K) to be trained, a list; the first are the prediction."""
        return [self.head(torch.cat([network(*self.inputs(key, batch)) for key, network in self.networks.items()], 1))]

    def forward(self, batch):
        """Logits (B, K). batch: as models/omnisat.py has it."""
        return self.all_logits(batch)[0]

    def features(self, batch, level="tile"):
        """Features by name, as OmniSat's: "tile" (B, D), see vector. Errors: ValueError for another name."""
        if level != "tile":
            raise ValueError(f"unknown level {level!r}: a compared method has tile")
        return self.vector(batch)

    def vector(self, batch):
        """What the head sees, (B, D): of a late fusion the networks' vectors side by side, else the input of the last
        linear layer.

        Errors: ValueError for a network that does not end in a linear layer.
        """
        has_head = isinstance(getattr(self, "head", None), FusionHead)
        seen, last = [], [self.head] if has_head else [m for m in self.modules() if isinstance(m, nn.Linear)]
        hooks = [module.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
                 for module in last]
        try:
            logits = self.all_logits(batch)[0]
        finally:
            for hook in hooks:
                hook.remove()
        wide = [(x, output) for x, output in seen if output.numel() == logits.numel()]
        # pse: a norm follows
        same = [(x, output) for x, output in wide if torch.equal(output.reshape(logits.shape), logits)] or wide
        if not same:
            raise ValueError(f"{type(self).__name__}: it does not end in a linear layer")
        return same[-1][0].reshape(len(logits), -1)

    def compile_networks(self):
        """Compile each network where it stands; names of weights do not change."""
        for network in self.networks.values():
            network.compile()

    def load_published(self, load):
        """Give the parts that have them their published weights. load(name): a state dict, as utils.weights.load."""
        for module in list(self.modules())[1:]:
            if hasattr(module, "load_imagenet"):
                module.load_imagenet(load)


class PixelSets(Compared):
    """PSE, the pixel-set encoder of Garnot et al. (2020), without its temporal part: single dates."""
    vectors = {"vhr": 128, "s2": 128, "s1": 128}

    def series_network(self, bands, outputs, width):
        return SingleDate(PSE(bands, outputs, width))


class PixelSetSeries(Compared):
    """PSE+LTAE (Garnot et al., 2020; Garnot and Landrieu, 2020)."""
    vectors, has_head = {"vhr": 128, "s2": 128, "s1": 128}, True

    def series_network(self, bands, outputs, width):
        return PSELTAE(bands, outputs, width)


class Perceptron(Compared):
    """MLP on all pixels (Ahlswede et al., 2023)."""
    vectors = {"vhr": 128, "s2": 64, "s1": 64}

    def series_network(self, bands, outputs, width):
        return SingleDate(MLP(bands, outputs, width=width))


class VisionTransformer(Compared):
    """ViT (Dosovitskiy et al., 2021) with relative positions on keys, as the official configuration has it."""
    vectors = {"vhr": 128, "s2": 64, "s1": 64}

    def network(self, sensor, outputs, width):
        bands = len(sensor.bands)
        return (image_vit(bands, outputs, width=width) if sensor.kind == "image" else
                SingleDate(pixel_vit(bands, outputs, width=width)))


class ResNet50(Compared):
    """ResNet-50 (He et al., 2016): of an image, nothing more."""


class UTAEs(Compared):
    """U-TAE (Garnot and Landrieu, 2021), its last map averaged over space."""
    vectors, has_head = {"vhr": 128, "s2": 128, "s1": 128}, True

    def series_network(self, bands, outputs, width):
        return UTAEVector(bands, outputs, width)
