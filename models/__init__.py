"""Models by the name used in arguments, checkpoints and CSV."""
from datasets.tiles import MAX_DATES
from models.compared.fitted import RandomFeatures, Trees
from models.compared.self_supervised import AnyBands, PixelTransformer, RadarOptical, SatMAE, ScaleMAE
from models.compared.supervised import Perceptron, PixelSets, PixelSetSeries, ResNet50, UTAEs, VisionTransformer
from models.compared.utt import UTT
from models.fast.omnisat import fast_form
from models.omnisat import OmniSat

MODELS = {"omnisat": OmniSat, "pse": PixelSets, "vit": VisionTransformer, "mlp": Perceptron, "resnet50": ResNet50,
          "pse_ltae": PixelSetSeries, "utt": UTT, "utae": UTAEs, "lightgbm": Trees, "mosaiks": RandomFeatures,
          "satmae": SatMAE, "scalemae": ScaleMAE, "croma": RadarOptical, "dofa": AnyBands, "presto": PixelTransformer}


def max_dates(name, dataset):
    """How many dates of a series a method is given at most: None, all, for those on medians."""
    is_median = getattr(MODELS[name], "forms", {}).get(dataset) in ("median", "seasons")
    return None if is_median else MAX_DATES


def build_model(name, sensors, **options):
    """A new model. sensors: list of datasets.sensors.Sensor; options: of the model's constructor."""
    return fast_form(MODELS[name](sensors, **options))
