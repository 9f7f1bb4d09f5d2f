"""A method of one's own, to begin with: it works as it is, on any sensors. Copy it to models/compared/mine.py, and add
its import and an entry to models/methods.py:

    "mine": Method(Mine, rate=1e-3, rates_from="chosen by hand")

`python -m models.contract mine` then says what it lacks, `bash run_tables.sh table2 --demo --model mine` runs it.
B tiles, K classes, T dates, C bands, H x W pixels, D features.
"""
import torch
from torch import nn

from models.compared.supervised import Compared


class Mine(Compared):
    """Each sensor's mean over the dates there are, its convolution, and their vectors side by side.

    Of Compared it has the constructor, which sets self.sensors {key: Sensor}, self.dataset and self.standardize, and
    calls build; and inputs, forward and features. Weights and all that a result depends on are parameters or buffers.
    """

    def build(self, num_classes, width):
        """num_classes: K. width: of the layers, 1 as it is meant to be, less in the demo."""
        size = max(1, round(64 * width))
        self.networks = nn.ModuleDict({key: nn.Sequential(                    # what --compile compiles
            nn.Conv2d(len(sensor.bands), size, 3, padding=1), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            for key, sensor in self.sensors.items()})
        self.head = nn.Linear(size * len(self.sensors), num_classes)          # "head...": new in each fine-tuning

    def vector(self, batch):
        """(B, D), what probe.py and embed.py take. batch: a dict of, for each sensor, <key> (B, C, H, W) of an image or
        (B, T, C, H, W) of a series, and then <key>_dates (B, T) days and <key>_padded (B, T), True where there is no
        date: its values mean nothing, and a tile may have no date at all. inputs gives these three, standardised.
        """
        return torch.cat([self.networks[key](mean_date(*self.inputs(key, batch))) for key in self.sensors], 1)

    def all_logits(self, batch):
        """What is trained, [logits (B, K)]; the first are the prediction. In evaluation no tile may see another."""
        return [self.head(self.vector(batch))]


def mean_date(x, dates=None, padded=None):
    """An image as it is; of a series the mean of its dates (B, C, H, W), 0, which is the mean of all, of none."""
    if padded is None:
        return x
    there = ~padded[:, :, None, None, None]
    return (x * there).sum(1) / there.sum(1).clamp(min=1)


# To pretrain it without labels: pretrain_rate=1e-4 in the entry; no head if num_classes is 0; terms = ("my_loss",), the
# names of its losses; draw_masks(batch, generator), all that is drawn at random; and pretrain_loss(batch, masks), the
# sum and {"my_loss": ...}, scalars. models/compared/self_supervised.py has three that do.
