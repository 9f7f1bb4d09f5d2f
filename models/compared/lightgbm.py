"""LightGBM: gradient boosted trees (Ke et al., 2017), a method of TreeSatAI's own benchmark (Ahlswede et al., 2023).

Neither that benchmark's nor OmniSat's authors' code for these rows is public: features and settings are ours.
Dimensions: B tiles, N training tiles, C bands, H x W pixels, F features, K classes.
"""
import json

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

PIXELS = 8 * 8    # images of up to so many are read pixel by pixel, larger ones by statistics
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def pixel_features(x):
    """All values, then mean and standard deviation of each band: x (B, C, H, W) -> (B, C H W + 2 C)."""
    return torch.cat([x.flatten(1), x.mean((2, 3)), x.std((2, 3), correction=0)], 1)


def image_features(x):
    """What is bright and how rough: x (B, C, H, W) -> (B, 11 C).

    Of each band mean, standard deviation and QUANTILES; then the mean absolute difference of pixels above and beside
    each other, at full resolution and of means of 4 x 4 pixels.
    """
    ranks = [round(q * (x[0, 0].numel() - 1)) for q in QUANTILES]
    ranked = x.flatten(2).sort().values
    features = [x.mean((2, 3)), x.std((2, 3), correction=0), *(ranked[:, :, rank] for rank in ranks)]
    for image in (x, F.avg_pool2d(x, 4)):
        features += [image.diff(dim=dim).abs().mean((2, 3)) for dim in (2, 3)]
    return torch.cat(features, 1)


class LightGBM(nn.Module):
    """One model of 100 trees for each class, with the library's defaults, on features made by hand.

    sensors: {key: C} of the inputs, for a vector its length; num_classes: K. Nothing here has a gradient.
    """

    def __init__(self, sensors, num_classes):
        super().__init__()
        self.sensors, self.num_classes = dict(sensors), num_classes
        self.load_texts([])

    def features(self, inputs):
        """inputs: {key: (B, C, H, W), standardised, or (B, C), a vector of another network}. Returns (B, F) float32.

        Errors: ValueError naming an input that has not the bands of the constructor.
        """
        features = []
        for key, bands in self.sensors.items():
            x = inputs[key].float()
            if x.shape[1] != bands:
                raise ValueError(f"{key}: {x.shape[1]} bands, the model is for {bands}")
            if x.dim() == 4:
                x = pixel_features(x) if x[0, 0].numel() <= PIXELS else image_features(x)
            features.append(x)
        return torch.cat(features, 1)

    def fit(self, x, y, seed):
        """x (N, F): features of all training tiles; y (N, K): whether a tile has a class.

        The same arguments give the same trees, whatever the number of threads; the library's defaults draw nothing at
        random from under 200,000 tiles, so all seeds give the same too. A class that all tiles have, or none, has that
        as its prediction. Errors: ValueError if x and y do not belong together.
        """
        import lightgbm
        x, y = np.asarray(x, np.float32), np.asarray(y, bool)
        if y.shape != (len(x), self.num_classes):
            raise ValueError(f"features of {len(x)} tiles and {self.num_classes} classes, but labels {y.shape}")
        threads = torch.get_num_threads()
        options = {"objective": "binary", "seed": seed, "num_threads": threads, "deterministic": True,
                   "force_row_wise": True, "verbosity": -1}
        data = lightgbm.Dataset(x, params=options)
        texts = [lightgbm.train(options, data.set_label(has_class)).model_to_string() for has_class in y.T]
        self.load_texts([text.replace(f"[num_threads: {threads}]", "[num_threads: 0]") for text in texts])

    def load_texts(self, texts):
        """texts: the trees of each class as the library writes them; [] before fit. Errors: ValueError for another
        number.
        """
        if len(texts) not in (0, self.num_classes):
            raise ValueError(f"trees of {len(texts)} classes, the model has {self.num_classes}")
        if texts:
            import lightgbm
        self.texts, self.boosters = texts, [lightgbm.Booster(model_str=text) for text in texts]

    def get_extra_state(self):
        """What state_dict holds: the trees as text, in bytes."""
        return torch.frombuffer(bytearray(json.dumps(self.texts).encode()), dtype=torch.uint8)

    def set_extra_state(self, state):
        self.load_texts(json.loads(state.cpu().numpy().tobytes()))

    def forward(self, inputs):
        """Logits (B, K) of the probabilities. inputs: of features. Errors: RuntimeError before fit."""
        if not self.boosters:
            raise RuntimeError("LightGBM predicts after fit, or from a checkpoint")
        x = self.features(inputs)
        rows, threads = x.detach().cpu().numpy(), torch.get_num_threads()
        logits = [booster.predict(rows, raw_score=True, num_threads=threads) for booster in self.boosters]
        return torch.from_numpy(np.stack(logits, 1)).float().to(x.device)
