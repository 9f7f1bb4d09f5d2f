"""The one table of sensors: what each dataset's modalities look like on the ground and in the file.

A new sensor is a new entry here; models and losses read everything from it and name no sensor.
"""
from dataclasses import dataclass
from typing import Optional, Tuple


@dataclass(frozen=True)
class Sensor:
    """One modality of one dataset.

    key: the name in batches, files, arguments, logs and CSV (vhr, s2, s1, s1-des).
    kind: "image" (C x H x W, one date) or "series" (T x C x H x W).
    bands: band names in the order of the tensor's channels.
    resolution (m): side of a pixel on the ground.
    patch (pixels): side of a patch; resolution x patch is the patch on the ground (10 m in TreeSatAI).
    period (days): for a series, the largest day number its dates may hold; None for an image.
    """
    key: str
    kind: str
    bands: Tuple[str, ...]
    resolution: float
    patch: int
    period: Optional[int] = None

    def __post_init__(self):
        if self.kind not in ("image", "series"):
            raise ValueError(f"sensor {self.key}: kind is image or series, not {self.kind!r}")
        if (self.kind == "series") != (self.period is not None):
            raise ValueError(f"sensor {self.key}: a series needs a period, an image has none")


def _table(*sensors):
    return {sensor.key: sensor for sensor in sensors}


# Day numbers in TreeSatAI are days of the year, 1..366. Its grid is 6 x 6 patches of 10 m (section 3.4).
# S2 bands stand in the order of the files: it differs between the series and the single-date release.
SENSORS = {
    "treesatai-ts": _table(
        Sensor("vhr", "image", ("NIR", "G", "B", "R"), 0.2, 50),
        Sensor("s2", "series", ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12"), 10, 1, 366),
        Sensor("s1", "series", ("VV", "VH"), 10, 1, 366),        # ascending orbit, in dB
        Sensor("s1-des", "series", ("VV", "VH"), 10, 1, 366),    # descending orbit, in dB
    ),
    "treesatai": _table(
        Sensor("vhr", "image", ("NIR", "G", "B", "R"), 0.2, 50),
        Sensor("s2", "series", ("B02", "B03", "B04", "B08", "B05", "B06", "B07", "B8A", "B11", "B12"), 10, 1, 366),
        Sensor("s1", "series", ("VV", "VH"), 10, 1, 366),
    ),
}
