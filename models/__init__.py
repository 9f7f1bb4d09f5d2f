"""Models by the name used in arguments, checkpoints and CSV."""
from datasets.tiles import MAX_DATES
from models.compared import Perceptron, PixelSets, PixelSetSeries, ResNet50, UTAEs, VisionTransformer
from models.fitted import RandomFeatures, Trees
from models.omnisat import OmniSat
from models.self_supervised import AnyBands, PixelTransformer, RadarOptical, SatMAE, ScaleMAE
from models.utt import UTT

MODELS = {"omnisat": OmniSat, "pse": PixelSets, "vit": VisionTransformer, "mlp": Perceptron, "resnet50": ResNet50,
          "pse_ltae": PixelSetSeries, "utt": UTT, "utae": UTAEs, "lightgbm": Trees, "mosaiks": RandomFeatures, "satmae": SatMAE,
          "scalemae": ScaleMAE, "croma": RadarOptical, "dofa": AnyBands, "presto": PixelTransformer}


def max_dates(name, dataset):
    """How many dates of a series a method is given at most: None, all, for those on medians."""
    is_median = getattr(MODELS[name], "forms", {}).get(dataset) in ("median", "seasons")
    return None if is_median else MAX_DATES


def build_model(name, sensors, **options):
    """A new model. sensors: list of datasets.sensors.Sensor; options: of the model's constructor."""
    return MODELS[name](sensors, **options)
