"""Reconstruction loss (section 3.3, equation 5) and the choice of the dates it looks at (section 3.1)."""
import math

import torch


def token_error(prediction, target, is_used=None):
    """Squared error of each token divided by its dimension, the summand of equation 5; of a series, by that of the
    dates that count.

    prediction, target (N, C, W, W) for an image, (N, T, C) for a series; is_used (N, T) bool: the dates that count,
    None for all. Returns (N,).
    """
    error = (prediction - target) ** 2
    if is_used is None:
        return error.flatten(1).mean(1)
    error = error.mean(-1) * is_used                                          # N x T
    return error.sum(1) / is_used.sum(1).clamp(min=1)


def top_dates(attention, padded, share=0.25):
    """The dates with the highest attention of each patch: the date filter of section 3.1, of radar too.

    attention (N, T); padded (N, T) bool, True where there is no date; share: of the valid dates, rounded up, so that
    a series of one date keeps it. Returns index (N, L) int64 and is_used (N, L) bool with L = ceil(share x T).
    """
    wanted = ((~padded).sum(1).double() * share - 1e-9).ceil()                # N; 1e-9: 0.3 x 50 is 15 dates, not 16
    most = max(1, math.ceil(attention.shape[1] * share - 1e-9))
    index = attention.masked_fill(padded, -1).topk(most, dim=1).indices
    return index, torch.arange(most, device=padded.device) < wanted[:, None]
