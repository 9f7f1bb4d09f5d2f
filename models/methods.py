"""The one table of methods: what each is called, which network it is, and what the protocol asks of it.

A new method is a file, a copy of models/template.py, and an entry here. Scripts, run_tables.py and tables/ take
everything from it; networks know nothing of cells, rates and pools. Rates and pools are those of the official
configurations, which made the printed numbers, unless rates_from says otherwise.
"""
from typing import NamedTuple, Optional

from datasets import READERS, default_modalities
from datasets.tiles import MAX_DATES
from models.compared.fitted import RandomFeatures, Trees
from models.compared.mosaiks import NEIGHBOURS
from models.compared.self_supervised import AnyBands, PixelTransformer, RadarOptical, SatMAE, ScaleMAE
from models.compared.supervised import Perceptron, PixelSets, PixelSetSeries, ResNet50, UTAEs, VisionTransformer
from models.compared.utt import UTT
from models.fast.omnisat import fast_form
from models.omnisat import OmniSat


class Method(NamedTuple):
    """One method.

    network: its class, see build_model.
    rates: {dataset: {modality: learning rate of fine-tuning}}, the cells that it fills; "all" is every sensor.
    rates_from: whose the rates are.
    rate, scratch_rates, pretrain_rate: in place of rates and pretrain_rates, of what takes any sensors of any dataset,
        as OmniSat does: of fine-tuning; {dataset: another one from random weights}; of one pretraining on all sensors.
    pretrain_rates: {dataset: {modality: learning rate}} of its own pretrainings.
    sees: {modality: keys of the sensors}, where a modality is not what its name says.
    forms: {dataset: what its network makes of a series}: "date", the only one, "median" of all dates, or "seasons",
        four medians.
    all_bands: whether it sees the sensors' extra bands.
    pretraining: the tables' word for how it usually starts.
    published: the modalities of which a part begins with published weights. init: what finetune.py --init calls these.
    is_fitted: whether it learns from all tiles at once, by a method fit, and not in epochs.
    tunes_threshold: whether it chooses on the validation tiles from which probability on a class counts, see
        evaluate.score.
    widths: the modalities for which --width changes something; None: all.
    pools: {dataset: tiles in a forward pass}, where 128 do not fit.
    least_tiles: training tiles that it needs.
    unused: parts of the names of parameters that have no part in some cell, and so no gradient there.
    """
    network: type
    rates: dict = {}
    rates_from: str = "official code"
    rate: Optional[float] = None
    scratch_rates: dict = {}
    pretrain_rate: Optional[float] = None
    pretrain_rates: dict = {}
    sees: dict = {}
    forms: dict = {}
    all_bands: bool = False
    pretraining: str = "none"
    published: tuple = ()
    init: str = "imagenet"
    is_fitted: bool = False
    tunes_threshold: bool = False
    widths: Optional[tuple] = None
    pools: dict = {}
    least_tiles: int = 1
    unused: tuple = ()

    def fills(self, dataset, modality):
        """Whether it is made for a modality of a dataset."""
        return self.rate is not None or modality in self.rates.get(dataset, ())

    def cells(self):
        """The (dataset, modality) of the paper's datasets that it fills: all sensors, and each alone."""
        return [(dataset, modality) for dataset in READERS for modality in ("all", *default_modalities(dataset))
                if self.fills(dataset, modality)]

    def starts(self, dataset):
        """The tables' words for how a fine-tuning on a dataset can begin."""
        if self.pretrain_rates:
            return ("self",) if self.pretrained_on(dataset) else ()
        return (self.pretraining,) if self.pretrain_rate is None else ("none", "self")

    def pretrained_on(self, dataset):
        """The modalities that the tables pretrain it on."""
        return tuple(self.pretrain_rates.get(dataset, ())) if self.pretrain_rate is None else ("all",)

    def pretraining_rate(self, dataset, modality):
        """Learning rate of a pretraining; None where there is none."""
        found = self.pretrain_rates.get(dataset, {}).get(modality)
        return found if self.pretrain_rate is None else self.pretrain_rate

    def finetune_rate(self, dataset, modality, is_pretrained):
        """Learning rate of a fine-tuning; None for what is fitted."""
        if self.rate is None:
            return self.rates[dataset][modality]
        return self.rate if is_pretrained else self.scratch_rates.get(dataset, self.rate)

    def max_dates(self, dataset):
        """How many dates of a series it is given at most: None, all, for medians."""
        return None if self.forms.get(dataset) in ("median", "seasons") else MAX_DATES

    def pool(self, dataset):
        """Tiles in a forward pass, where nobody says otherwise."""
        return self.pools.get(dataset, 128)

    def has_width(self, modality):
        """Whether --width changes anything."""
        return self.widths is None or modality in self.widths

    def pretrains(self):
        """Whether pretrain.py knows it."""
        return self.pretrain_rate is not None or bool(self.pretrain_rates)


def alike(datasets, modalities, rate):
    """The same rate for some modalities of some datasets."""
    return {dataset: dict.fromkeys(modalities, rate) for dataset in datasets}


EVERY, IMAGES = ("vhr", "s2", "s1", "all"), ("vhr", "s2", "all")
# of SatMAE and Scale-MAE, which have 2,352 tokens of a tile's S2 on treesatai. FLAIR's late fusion has seasons, so its
# S2 alone has them too
AUTOENCODER = {"pretraining": "self", "sees": {"all": ("vhr", "s2")}, "pools": {"treesatai": 32},
               "forms": {"treesatai": "date", "treesatai-ts": "seasons", "pastis-hd": "median", "flair": "seasons"}}

METHODS = {
    # fine-tuning not as in the paper, 2e-5 for pretrained weights: too slow for the short trainings, see the rehearsal
    # in PAPER.md
    "omnisat": Method(OmniSat, rate=2e-4, scratch_rates={"flair": 2e-3}, pretrain_rate=1e-4, unused=("mask_token",)),
    "pse": Method(PixelSets, {"treesatai": {"s1": 1e-3, "s2": 4e-3, "all": 2e-3}}, published=("all",), all_bands=True),
    "vit": Method(VisionTransformer, {"treesatai": {"vhr": 1e-3, "s2": 1e-3, "s1": 1e-5, "all": 2e-3}}, all_bands=True),
    "mlp": Method(Perceptron, {"treesatai": {"s1": 1e-3, "s2": 1e-3, "all": 2e-3}}, published=("all",), all_bands=True),
    "resnet50": Method(ResNet50, {"treesatai": {"vhr": 1e-3}, "pastis-hd": {"vhr": 2e-4}}, pretraining="imagenet",
                       published=("vhr",), pools={"pastis-hd": 8}),
    "pse_ltae": Method(PixelSetSeries, {"treesatai-ts": {"s1": 2e-3, "s2": 2e-3, "all": 2e-3}}, published=("all",)),
    "utt": Method(UTT, alike(("treesatai-ts", "pastis-hd"), EVERY, 1e-3) | alike(("flair",), IMAGES, 1e-3),
                  pretraining="imagenet", published=("vhr", "all"), pools={"pastis-hd": 8, "flair": 32}),
    "utae": Method(UTAEs, {"pastis-hd": {"s2": 1e-3, "s1": 1e-3, "all": 2e-3}}, published=("all",),
                   pools={"pastis-hd": 8}),
    # of all modalities the image enters by the features of a ResNet-50 as ImageNet left it
    "lightgbm": Method(Trees, alike(("treesatai",), EVERY, None), pretraining="imagenet", published=("all",),
                       all_bands=True, is_fitted=True, widths=("all",)),
    "mosaiks": Method(RandomFeatures, {"treesatai": {"s2": None}}, pretraining="self", all_bands=True, is_fitted=True,
                      widths=(), least_tiles=NEIGHBOURS),
    "satmae": Method(SatMAE, alike(("treesatai",), IMAGES, 2e-4),
                     pretrain_rates=alike(("treesatai",), ("vhr", "s2"), 1e-4), **AUTOENCODER),
    "scalemae": Method(ScaleMAE, alike(("treesatai", "treesatai-ts"), IMAGES, 2e-4)
                       | dict.fromkeys(("pastis-hd", "flair"), {"vhr": 1e-3, "s2": 1e-3, "all": 2e-4}),
                       pretrain_rates=alike(("treesatai", "treesatai-ts", "pastis-hd", "flair"), ("vhr", "s2"), 1e-4),
                       **AUTOENCODER),
    # pretrained on S1 and S2 together, for one of them or both; it has no place for an image
    "croma": Method(RadarOptical, alike(("treesatai", "pastis-hd"), ("s2", "s1", "all"), 2e-5), pretraining="self",
                    pretrain_rates={"treesatai": {"all": 2e-5}, "pastis-hd": {"all": 2e-4}}, all_bands=True,
                    sees={"all": ("s2", "s1")}, forms={"treesatai": "date", "pastis-hd": "seasons"},
                    unused=("croma.vectors",)),
    # not in the paper: the rate, which is the paper's for OmniSat
    "dofa": Method(AnyBands, alike(("treesatai", "treesatai-ts", "pastis-hd"), EVERY, 2e-5)
                   | alike(("flair",), IMAGES, 2e-5), "section 3.4", pretraining="external", published=EVERY,
                   init="external", forms={"treesatai": "date", "treesatai-ts": "median", "pastis-hd": "median",
                                           "flair": "median"}),
    "presto": Method(PixelTransformer, {"treesatai": {"s2": 3e-4, "s1": 3e-4}}, "its authors", pretraining="external",
                     published=("s2", "s1"), init="external", tunes_threshold=True, widths=(),
                     unused=("patch_embed", "dw_embed", "month_embed")),
}


def build_model(name, sensors, **options):
    """A new model. sensors: list of datasets.sensors.Sensor; options: of the network's constructor, as checkpoints
    have them.
    """
    method = METHODS[name]
    form = {"form": method.forms[options["dataset"]]} if method.forms else {}
    return fast_form(method.network(sensors, **options, **form))
