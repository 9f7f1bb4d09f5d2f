"""Models by the name used in arguments, checkpoints and CSV."""
from models.omnisat import OmniSat

MODELS = {"omnisat": OmniSat}


def build_model(name, sensors, **options):
    """A new model. sensors: list of datasets.sensors.Sensor; options: of the model's constructor."""
    return MODELS[name](sensors, **options)
