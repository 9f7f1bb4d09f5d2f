"""U-Net (Ronneberger et al., 2015) with a ResNet-34 as encoder: the image branch of UT&T (Garioud et al., 2023).

The decoder is that of segmentation_models_pytorch 0.3, which UT&T takes; its segmentation head is left out.
Dimensions: B tiles, C bands, H x W pixels, D channels.
"""
import torch
import torch.nn.functional as F
from torch import nn

from models.compared.resnet import ResNet, conv

CHANNELS = (256, 128, 64, 32, 16)    # of the decoder's maps, from H / 16 to H


class Block(nn.Module):
    """Doubles the size, appends the map of the encoder, then two 3 x 3 convolutions: (B, D, H, W) -> (B, outputs, 2 H,
    2 W).
    """

    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, outputs, 3), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = conv(outputs, outputs, 3), nn.BatchNorm2d(outputs)

    def forward(self, x, *skip):
        """skip: a map (B, D', 2 H, 2 W), or nothing. D + D' are the inputs."""
        x = torch.cat([F.interpolate(x, scale_factor=2.0), *skip], dim=1)
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)))


class UNet(nn.Module):
    """Images to maps of their size. 24.4 M parameters for 4 bands.

    width: multiplies all channels. channels: of the encoder's maps, [64, 64, 128, 256, 512]; dim: of the output, 16.
    """

    def __init__(self, bands, width=1.0):
        super().__init__()
        self.encoder = ResNet(34, bands, outputs=0, width=width)
        self.channels = self.encoder.channels
        outputs = [max(1, round(width * number)) for number in CHANNELS]
        skips = [*self.channels[-2::-1], 0]
        inputs = [self.channels[-1], *outputs[:-1]]
        self.decoder = nn.ModuleList(Block(i + s, o) for i, s, o in zip(inputs, skips, outputs))
        self.dim = outputs[-1]
        for module in self.decoder.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, mode="fan_in", nonlinearity="relu")

    def forward(self, x, added=None):
        """x (B, C, H, W): standardised images. Returns (B, 16, H, W).

        added: maps of other sensors, to be added to those of the encoder, at H / s with s = 2, 4, 8, 16, 32; None adds
        nothing. Errors: ValueError if a side is no multiple of 32 pixels.
        """
        if x.shape[-2] % 32 or x.shape[-1] % 32:
            raise ValueError("the sides of a U-Net's image must be multiples of 32 pixels, not "
                             f"{x.shape[-2]} x {x.shape[-1]}")
        levels = self.encoder.pyramid(x)
        if added is not None:
            levels = [level + other for level, other in zip(levels, added)]
        *skips, x = levels
        for block in self.decoder:
            x = block(x, *skips[-1:])
            skips = skips[:-1]
        return x
