"""LightGBM and MOSAIKS as compared methods: what is learned from all tiles at once, without gradients.

Dimensions: B tiles, N training tiles, K classes, C bands, H x W pixels, F features.
"""
from torch import nn

from models.compared.inputs import single_date
from models.compared.lightgbm import LightGBM
from models.compared.mosaiks import MOSAIKS
from models.compared.supervised import Compared, RGBResNet50


class Fitted(Compared):
    """A compared method that is fitted once. build sets self.method, a module: {key: image} -> logits (B, K).

    collect(batch): what fit needs of each tile, (B, ...); fit(x, y, seed): of all training tiles, (N, ...), and their
    labels (N, K).
    """
    def images(self, batch):
        """{key: (B, C, H, W)} standardised, of a series its one date; where a network belongs to the sensor, its
        output (B, F).
        """
        images = {}
        for key in self.sensors:
            x, *series = self.inputs(key, batch)
            x = single_date(x, series[1]) if series else x
            images[key] = self.networks[key](x) if key in self.networks else x
        return images

    def all_logits(self, batch):
        return [self.method(self.images(batch))]

    def vector(self, batch):
        """What is fitted on, (B, F)."""
        return self.method.features(self.images(batch))


class Trees(Fitted):
    """LightGBM (Ke et al., 2017). Of all modalities the image enters by the features of a ResNet-50 as ImageNet left
    it.
    """

    def build(self, num_classes, width):
        self.networks, sizes = nn.ModuleDict(), {key: len(sensor.bands) for key, sensor in self.sensors.items()}
        if len(self.sensors) > 1:
            for key, sensor in self.sensors.items():
                if sensor.kind == "image":
                    self.networks[key] = RGBResNet50(sensor.bands, 0, width).requires_grad_(False)
                    sizes[key] = self.networks[key].resnet.channels[-1]
        self.method = LightGBM(sizes, num_classes)

    def collect(self, batch):
        return self.method.features(self.images(batch))

    def fit(self, x, y, seed):
        self.method.fit(x, y, seed)


class RandomFeatures(Fitted):
    """MOSAIKS (Rolf et al., 2021)."""

    def build(self, num_classes, width):
        (key, sensor), = self.sensors.items()
        self.key, self.networks, self.method = key, nn.ModuleDict(), MOSAIKS(len(sensor.bands), num_classes)

    def collect(self, batch):
        return self.images(batch)[self.key]

    def fit(self, x, y, seed):
        self.method.prepare(x, seed)
        self.method.fit(self.method.features({self.key: x.to(self.method.weight.device)}), y, seed)
