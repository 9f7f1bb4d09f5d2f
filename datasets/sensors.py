"""The one table of sensors: what each dataset's modalities look like on the ground and in the file.

A new sensor is a new entry here, a dataset of one's own a new table, or a file (datasets/own.py): readers, models and
losses take everything from it and name no sensor. docs/own.md shows how.
"""
from dataclasses import dataclass, field, replace
from typing import Optional, Tuple


@dataclass(frozen=True)
class Sensor:
    """One modality of one dataset.

    key: the name in batches, files, arguments, logs and CSV (vhr, s2, s1, s1-des).
    kind: "image" (C x H x W, one date) or "series" (T x C x H x W).
    bands: band names in the order of the tensor's channels.
    resolution (m): side of a pixel on the ground.
    patch (pixels): side of a patch; resolution x patch is the patch on the ground and the same for all sensors.
    period (days): for a series, the largest day number its dates may hold; None for an image.
    origin: for a series, the date that is day 0, such as "2018-09-01"; None counts the days of the year, 1..366.
    files: where a tile's file lies below the dataset's folder, such as "thermal/{tile}.npz"; None where the dataset's
        reader knows. Images: .tif, .tiff or .npy (C, H, W). Series: .npz with data (T, C, H, W) and dates (T,) as
        YYYYMMDD.
    nodata: the value of pixels that were not seen, besides NaN and, in series of two bands and more, 0 in all of them.
    lowest: what is below cannot be of this sensor: pixels that were not seen, mixed with others by resampling.
    in_all: whether "all" modalities means this one too.
    extra_bands: what the file has behind these bands and OmniSat leaves out; some of the compared methods take it.
    """
    key: str
    kind: str
    bands: Tuple[str, ...]
    resolution: float
    patch: int
    period: Optional[int] = None
    origin: Optional[str] = None
    files: Optional[str] = field(default=None, compare=False)    # these say how to read, not what is learned:
    nodata: Optional[float] = field(default=None, compare=False)    # a checkpoint fits whatever they are
    lowest: Optional[float] = field(default=None, compare=False)
    in_all: bool = field(default=True, compare=False)
    extra_bands: Tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self):
        if self.kind not in ("image", "series"):
            raise ValueError(f"sensor {self.key}: kind is image or series, not {self.kind!r}")
        if (self.kind == "series") != (self.period is not None):
            raise ValueError(f"sensor {self.key}: a series needs a period, an image has none")

    def with_all_bands(self):
        """The same sensor with its extra bands behind the others."""
        return replace(self, bands=self.bands + self.extra_bands, extra_bands=())


def table_of(*sensors):
    """{key: Sensor} of a dataset. Errors: ValueError if their patches are not the same ground."""
    if len({round(sensor.resolution * sensor.patch, 6) for sensor in sensors}) > 1:
        raise ValueError("resolution x patch must be the same ground for all sensors: "
                         + ", ".join(f"{s.key} {s.resolution * s.patch:g} m" for s in sensors))
    return {sensor.key: sensor for sensor in sensors}


S2 = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")

SENSORS = {
    # 6 x 6 patches of 10 m (section 3.4); days of the year; radar in dB, s1 ascending, s1-des descending orbit
    "treesatai-ts": table_of(
        Sensor("vhr", "image", ("NIR", "G", "B", "R"), 0.2, 50),
        Sensor("s2", "series", S2, 10, 1, 366),
        Sensor("s1", "series", ("VV", "VH"), 10, 1, 366),
        Sensor("s1-des", "series", ("VV", "VH"), 10, 1, 366, in_all=False),
    ),
    "treesatai": table_of(                # the order of the bands in these files is another
        Sensor("vhr", "image", ("NIR", "G", "B", "R"), 0.2, 50),
        Sensor("s2", "series", ("B02", "B03", "B04", "B08", "B05", "B06", "B07", "B8A", "B11", "B12"), 10, 1, 366,
               extra_bands=("B01", "B09")),
        Sensor("s1", "series", ("VV", "VH"), 10, 1, 366, extra_bands=("VV/VH",)),
    ),
    # 32 x 32 patches of 40 m (section 3.4); days since September 2018, up to the end of 2019. Reflectance x 10,000, of
    # which -0.1 is the least; the 20 m bands were enlarged bilinearly, nodata with the rest, see PAPER.md
    "pastis-hd": table_of(
        Sensor("vhr", "image", ("R", "G", "B"), 1, 40,
               files="DATA_SPOT/PASTIS_SPOT6_RVB_1M00_2019/SPOT6_RVB_1M00_2019_{tile}.tif"),
        Sensor("s2", "series", S2, 10, 4, 486, "2018-09-01", files="DATA_S2/S2_{tile}.npy", nodata=-10000,
               lowest=-1000),
        Sensor("s1", "series", ("VV", "VH", "VV-VH"), 10, 4, 486, "2018-09-01", files="DATA_S1A/S1A_{tile}.npy"),
        Sensor("s1-des", "series", ("VV", "VH", "VV-VH"), 10, 4, 486, "2018-09-01", files="DATA_S1D/S1D_{tile}.npy",
               in_all=False),
    ),
    # 10 x 10 patches of 10 m (section 3.4); days of the year; elevation above ground in steps of 0.2 m
    "flair": table_of(
        Sensor("vhr", "image", ("R", "G", "B", "NIR", "elevation"), 0.2, 50),
        Sensor("s2", "series", S2, 10, 1, 366),
    ),
}
