"""ResNet-34 and ResNet-50 (He et al., 2016): classifiers of images, pretrained on ImageNet, and encoders of the U-Net.

The variant and the names of weights are torchvision's, so that the weights it publishes fit: in a bottleneck the 3 x 3
convolution has the stride, not the first one.
Dimensions: B tiles, C bands, H x W pixels, D channels, K classes.
"""
import torch
import torch.nn.functional as F
from torch import nn

RGB = ("R", "G", "B")             # the bands of the published weights, in their order


def conv(inputs, outputs, kernel, stride=1):
    """A convolution that keeps the size but for its stride; the batch norm after it would cancel a bias."""
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


def shortcut(inputs, outputs, stride):
    """What a block adds its result to: its input, projected where size or channels change (option B of the paper)."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions, (B, inputs, H, W) -> (B, channels, H / stride, W / stride)."""
    expansion = 1

    def __init__(self, inputs, channels, stride):
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, channels, 3, stride), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = conv(channels, channels, 3), nn.BatchNorm2d(channels)
        self.downsample = shortcut(inputs, channels, stride)

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.downsample(x))


class Bottleneck(nn.Module):
    """Convolutions of 1 x 1, 3 x 3 and 1 x 1, (B, inputs, H, W) -> (B, 4 channels, H / stride, W / stride)."""
    expansion = 4

    def __init__(self, inputs, channels, stride):
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, channels, 1), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = conv(channels, channels, 3, stride), nn.BatchNorm2d(channels)
        self.conv3, self.bn3 = conv(channels, 4 * channels, 1), nn.BatchNorm2d(4 * channels)
        self.downsample = shortcut(inputs, 4 * channels, stride)

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + self.downsample(x))


class ResNet(nn.Module):
    """A classifier of images. 23.5 M parameters for depth 50, 3 bands and 15 outputs.

    depth: 34 or 50. outputs: K, or 0 for the pooled features alone. width: multiplies all channels, 64 at the stem (at
    least 16). channels: of the maps of pyramid, such as [64, 256, 512, 1024, 2048]. Errors: ValueError for another
    depth.
    """

    def __init__(self, depth, bands, outputs, width=1.0):
        super().__init__()
        if depth not in (34, 50):
            raise ValueError(f"the depth of a ResNet is 34 or 50 here, not {depth}")
        self.depth, self.width = depth, width
        # not under 16 channels: on a CPU, torch 2.13's gradient of a 1 x 1 convolution of stride 2 writes beyond its
        # memory with 8
        block, stem = BasicBlock if depth == 34 else Bottleneck, max(16, round(64 * width))
        self.channels = [stem, *(block.expansion * stem * 2 ** i for i in range(4))]
        self.conv1, self.bn1 = conv(bands, stem, 7, stride=2), nn.BatchNorm2d(stem)
        for i, blocks in enumerate((3, 4, 6, 3)):
            first = block(self.channels[i], stem * 2 ** i, stride=1 if i == 0 else 2)    # a max-pool is before layer1
            rest = (block(self.channels[i + 1], stem * 2 ** i, stride=1) for _ in range(blocks - 1))
            self.add_module(f"layer{i + 1}", nn.Sequential(first, *rest))
        self.fc = nn.Linear(self.channels[-1], outputs) if outputs else nn.Identity()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def pyramid(self, x):
        """x (B, C, H, W): standardised images. Returns 5 maps (B, D, H / s, W / s), s = 2, 4, 8, 16, 32, sizes rounded
        up.
        """
        x = x.contiguous(memory_format=torch.channels_last)    # fastest for convolutions, on CPU and GPU alike
        maps = [F.relu(self.bn1(self.conv1(x)))]
        x = F.max_pool2d(maps[0], 3, stride=2, padding=1)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            maps.append(x)
        return maps

    def forward(self, x):
        """x (B, C, H, W): standardised images. Returns logits (B, K), or features (B, 512 or 2048) if there are no
        outputs.
        """
        return self.fc(self.pyramid(x)[-1].mean((2, 3)))


def load_imagenet(network, state, bands):
    """Load torchvision's ImageNet weights into a ResNet, all but those of fc.

    network: a ResNet of width 1. state: the published dict, for 1000 classes and the bands R, G, B.
    bands: names of the network's bands, such as ("NIR", "G", "B", "R"). The first filters of R, G and B go to the
    bands of these names, their mean to any other; all are scaled by 3 / C, so that a response to C bands is no larger
    than one to 3.
    Errors: ValueError if the width is not 1, if the bands are not as many as the network's, and for another dict,
    naming what differs.
    """
    if network.width != 1:
        raise ValueError(f"ImageNet's weights are for width 1, not {network.width:g}")
    if len(bands) != network.conv1.in_channels:
        raise ValueError(f"the network takes {network.conv1.in_channels} bands, not {len(bands)}: {', '.join(bands)}")
    with torch.device("meta"):
        published = ResNet(network.depth, len(RGB), 1000)
    try:
        published.load_state_dict(state, assign=True)    # files of before num_batches_tracked may lack it
    except RuntimeError as error:
        raise ValueError(f"not the weights of a ResNet-{network.depth} for ImageNet: {error}") from error
    weights = {name: value for name, value in published.state_dict().items() if not name.startswith("fc.")}
    # not in the paper: the official code gives filters to bands by position, whatever their names
    filters = weights["conv1.weight"]                                         # D x 3 x 7 x 7
    by_band = [filters[:, RGB.index(band)] if band in RGB else filters.mean(1) for band in bands]
    weights["conv1.weight"] = torch.stack(by_band, dim=1) * (len(RGB) / len(bands))
    fc = {f"fc.{name}": value for name, value in network.fc.state_dict().items()}
    network.load_state_dict(weights | fc)
