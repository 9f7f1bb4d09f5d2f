"""The multi-layer perceptron of the TreeSatAI benchmark (Ahlswede et al., 2023), for one date of a few pixels.

Dimensions: B tiles, C bands, H x W pixels.
"""
from torch import nn

DROP = 0.3


class MLP(nn.Sequential):
    """Flattened images (B, C, H, W), standardised, to (B, outputs). 1.29 M parameters for 12 bands of 6 x 6 pixels,
    1.12 M for 3.

    bands: C. side (pixels): H = W. width: multiplies the hidden layers' units.
    """

    def __init__(self, bands, outputs, side=6, width=1.0):
        hidden, last = max(1, round(512 * width)), max(1, round(1024 * width))
        super().__init__(
            nn.Flatten(),
            nn.Linear(bands * side * side, hidden), nn.ReLU(), nn.Dropout(DROP),
            nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(DROP),
            nn.Linear(hidden, hidden), nn.ReLU(),
            nn.Linear(hidden, last), nn.ReLU(), nn.Dropout(DROP),
            nn.Linear(last, outputs))
