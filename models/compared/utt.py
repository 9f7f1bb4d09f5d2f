"""U-T&T (Garioud et al., 2023): a U-Net for the image, a U-TAE for each series, whose maps enter the levels of the
U-Net.

Dimensions: B tiles, K classes, T dates, C bands, H x W pixels, D channels.
"""
import torch
import torch.nn.functional as F
from torch import nn

from models.compared.inputs import fit_side
from models.compared.resnet import load_imagenet
from models.compared.supervised import Compared
from models.compared.unet import UNet
from models.compared.utae import UTAE

# of the U-TAEs, by dataset: widths from the finest level to the coarsest, kernel of the strided convolutions
SIZES = {"treesatai-ts": ((64, 64, 128), 2), "pastis-hd": ((64, 64, 128, 128), 4), "flair": ((64, 64, 128, 128), 4)}


class Fusion(nn.Module):
    """What one series adds to each map of the U-Net's encoder: its own map, put over the image, and its mean over the
    tile.

    dim: D of the series' map; levels: channels of the encoder's maps. For 64 and ResNet-34's 520,738 parameters. The
    official code adds to the image itself too, which the decoder does not use.
    """

    def __init__(self, dim, levels):
        super().__init__()
        self.maps = nn.ModuleList(nn.Conv2d(dim, level, 1) for level in levels)
        self.means = nn.ModuleList(mean_mlp(dim, level) for level in levels)

    def forward(self, x, sizes, ratio):
        """x (B, D, h, w): a series' map of the whole tile. sizes: sides of the levels, pixels. ratio: the side of the
        ground that the levels cover, over the tile's. Returns the summands, a list of (B, level, size, size).
        """
        mean, summands = x.mean((2, 3)), []
        for conv, mlp, size in zip(self.maps, self.means, sizes):
            summands.append(place(conv(x), size, ratio) + mlp(mean)[:, :, None, None])
        return summands


def mean_mlp(dim, level):
    """The MLP on a mean, in three steps of one width from D to the level's, or by way of 2 D where these are equal."""
    step = int(abs(dim - level) / 3) * (1 if level > dim else -1)
    first, second = (dim + step, dim + 2 * step) if step else (2 * dim, 2 * dim)
    return nn.Sequential(nn.Linear(dim, first), nn.Dropout(0.3), nn.ReLU(),
                         nn.Linear(first, second), nn.Dropout(0.3), nn.ReLU(), nn.Linear(second, level))


def place(x, size, ratio):
    """Bilinear values of a map x (B, D, h, w) at size x size pixels in its middle, ratio of its side. Returns (B, D,
    size, size).

    So maps lie on the image by ground, also on one that was cropped or padded.
    """
    with torch.autocast(x.device.type, enabled=False):    # places in bfloat16 would be some pixels apart
        theta = (ratio * torch.eye(2, 3, device=x.device)).expand(len(x), 2, 3)
        grid = F.affine_grid(theta, (len(x), 1, size, size), align_corners=False)
        return F.grid_sample(x.float(), grid, padding_mode="border", align_corners=False).to(x.dtype)


class UTT(Compared):
    """Where there is an image the prediction is the image's, as official; each series has a head of its own, trained
    beside it.
    """
    weights = "resnet34"

    def build(self, num_classes, width):
        self.image = next((key for key, sensor in self.sensors.items() if sensor.kind == "image"), None)
        widths, kernel = SIZES[self.dataset]
        self.networks, self.heads, self.fusions = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        for key, sensor in self.sensors.items():
            bands = len(sensor.bands)
            network = UNet(bands, width) if key == self.image else UTAE(bands, widths, widths, kernel, width)
            self.networks[key], self.heads[key] = network, nn.Linear(network.dim, num_classes)
        if self.image is not None:
            self.fusions.update({key: Fusion(network.dim, self.networks[self.image].channels)
                                 for key, network in self.networks.items() if key != self.image})

    def all_logits(self, batch):
        maps = {key: self.networks[key](*self.inputs(key, batch)) for key in self.sensors if key != self.image}
        heads = {key: self.heads[key](x.mean((2, 3))) for key, x in maps.items()}
        if self.image is not None:
            x, ratio = fit_side(*self.inputs(self.image, batch))
            sizes = [x.shape[-1] // 2 ** level for level in range(1, 6)]
            summands = [self.fusions[key](y, sizes, ratio) for key, y in maps.items()]
            x = self.networks[self.image](x, [sum(level) for level in zip(*summands)] or None)
            heads = {self.image: self.heads[self.image](x.mean((2, 3)))} | heads
        return list(heads.values())

    def load_published(self, load):
        unet = self.networks[self.image]
        load_imagenet(unet.encoder, load(self.weights), self.sensors[self.image].bands)
