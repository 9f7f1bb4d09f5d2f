"""MOSAIKS: random convolutional features of images (Rolf et al., 2021), and the nearest neighbours among the training
tiles.

OmniSat's table 2 quotes 56.0 from Corley et al. (2024), whose sizes we take: 256 patches of 3 x 3 pixels, both signs
of the answer to each, enlarged images, features standardised on the training tiles, k = 5.
But 56.0 is a micro F1, of images of 200 m, with a label for any area of a class: no F1 of 60 m tiles compares with it.
Dimensions: B tiles, N training tiles, C bands, H x W pixels, D = 9 C, F features, K classes.
"""
import torch
import torch.nn.functional as F
from torch import nn

ZOOM = 34 / 20                # Corley et al. enlarge their 20 x 20 pixels to 34 x 34; here 6 x 6 to 10 x 10
SIDE = 3                      # pixels of a patch
DRAWN = 2 ** 15               # patches that the whitening is learned from
RIDGE = 1e-3                  # added to the variances that whitening divides by, as in torchgeo's copy of Rolf et al.
THRESHOLD = 1                 # taken off each answer of a filter, likewise
NEIGHBOURS = 5                # k, of Corley et al.
TILES = 64                    # worked on at a time


def zoom(x):
    """Images enlarged as in the source, bilinear: (B, C, H, W) -> (B, C, 1.7 H, 1.7 W), rounded."""
    return F.interpolate(x.float(), size=[round(ZOOM * side) for side in x.shape[2:]], mode="bilinear")


def draw_patches(x, generator):
    """DRAWN patches of 3 x 3 pixels from images x (N, C, H, W), any of them and any place: (DRAWN, D) float64."""
    rows, columns = (side - SIDE + 1 for side in zoom(x[:1]).shape[2:])
    image = torch.randint(len(x), (DRAWN,), generator=generator)
    place = torch.randint(rows * columns, (DRAWN,), generator=generator)
    patches = [F.unfold(zoom(x[i]), SIDE).take_along_dim(at[:, None, None], 2)
               for i, at in zip(image.split(TILES), place.split(TILES))]
    return torch.cat(patches).squeeze(2).double()


def whitening(patches):
    """ZCA: patches (n, D) -> mean (D,) and W (D, D), symmetric, such that (patches - mean) W has the identity as
    covariance.
    """
    mean = patches.mean(0)
    variances, axes = torch.linalg.eigh((patches - mean).t() @ (patches - mean) / len(patches))
    return mean, axes / (variances.clamp(min=0) + RIDGE).sqrt() @ axes.t()


def near(distances, k):
    """Which are the k smallest of each row, of equal ones those that come first: (B, N) -> (B, N) bool."""
    kth = distances.topk(k, largest=False).values[:, -1:]
    nearer, equal = distances < kth, distances == kth
    return nearer | equal & (equal.cumsum(1) <= k - nearer.sum(1, keepdim=True))


class MOSAIKS(nn.Module):
    """Patches of training tiles as filters, a tile's mean answers to each as its features; k nearest neighbours vote.

    bands: C; num_classes: K; filters: F / 2, each gives relu(answer - 1) and relu(1 - answer). Nothing here has a
    gradient. First prepare, then features of all training tiles, then fit.
    """

    def __init__(self, bands, num_classes, filters=256):
        super().__init__()
        self.filters = filters
        self.register_buffer("weight", torch.zeros(0, bands, SIDE, SIDE))     # F / 2 filters, from prepare on
        self.register_buffer("bias", torch.zeros(0))
        self.register_buffer("mean", torch.zeros(2 * filters))    # of the features of training tiles, from fit on
        self.register_buffer("deviation", torch.ones(2 * filters))
        self.register_buffer("tiles", torch.zeros(0, 2 * filters))    # of N training tiles, standardised by these
        self.register_buffer("labels", torch.zeros(0, num_classes, dtype=torch.bool))

    def prepare(self, x, seed):
        """Draw the filters and learn the whitening. x (N, C, H, W): all training tiles, standardised.

        The same arguments give the same filters, whatever the number of threads. Errors: ValueError for other bands.
        """
        x, generator = torch.as_tensor(x).cpu(), torch.Generator().manual_seed(seed)
        self.check(x)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)                                              # sums in one order
        try:
            patches = draw_patches(x, generator)
            mean, whiten = whitening(patches)
            chosen = F.normalize((patches[:self.filters] - mean) @ whiten)    # F/2 x D; their answers have variance 1
            weight = chosen @ whiten    # <chosen, (patch - mean) W> = <weight, patch - mean>
            bias = -weight @ mean - THRESHOLD
        finally:
            torch.set_num_threads(threads)
        self.weight, self.bias = weight.view(-1, *self.weight.shape[1:]).to(self.weight), bias.to(self.bias)

    def features(self, inputs):
        """Mean answers above 1, then below: (B, F) float32. inputs: {key: (B, C, H, W), standardised}, one entry.

        Errors: ValueError for other bands; RuntimeError before prepare.
        """
        x, = inputs.values()
        self.check(x)
        if not len(self.weight):
            raise RuntimeError("MOSAIKS has its filters after prepare, or from a checkpoint")
        weight, bias = self.weight.double(), self.bias.double()    # in float32 a GPU would round the factors to 10 bits
        answers = (F.conv2d(zoom(part).double(), weight, bias) for part in x.split(TILES))
        return torch.cat([torch.cat([y.relu(), (-y).relu()], 1).mean((2, 3)).float() for y in answers])

    def check(self, x):
        if x.shape[1] != self.weight.shape[1]:
            raise ValueError(f"images of {x.shape[1]} bands, the model is for {self.weight.shape[1]}")

    def fit(self, x, y, seed):
        """x (N, F): features of all training tiles; y (N, K): whether a tile has a class. seed: unused, nothing is
        drawn here.

        Errors: ValueError if x and y do not belong together, or are too few.
        """
        x, y = torch.as_tensor(x).to(self.tiles), torch.as_tensor(y).to(self.labels)
        if len(x) < NEIGHBOURS or x.shape[1:] != self.tiles.shape[1:] or y.shape != (len(x), self.labels.shape[1]):
            raise ValueError(f"features {tuple(x.shape)} and labels {tuple(y.shape)}, expected "
                             f"(N, {2 * self.filters}) and "
                             f"(N, {self.labels.shape[1]}) of at least {NEIGHBOURS} tiles")
        rows = x.double().cpu().numpy()                                       # there sums have one order
        mean, deviation = rows.mean(0), rows.std(0)
        deviation[deviation <= 1e-6 * abs(mean)] = 1    # a feature that is the same for all, but for rounding
        self.mean, self.deviation = (torch.from_numpy(value).to(self.mean) for value in (mean, deviation))
        self.tiles, self.labels = self.standardized(x), y

    def standardized(self, x):
        """Features (N, F) with mean 0 and variance 1 over the training tiles."""
        return (x - self.mean) / self.deviation

    def forward(self, inputs):
        """Logits (B, K) of the share of the k nearest training tiles that have a class. inputs: of features.

        Errors: RuntimeError before fit.
        """
        if not len(self.tiles):
            raise RuntimeError("MOSAIKS predicts after fit, or from a checkpoint")
        shares = []
        for x in self.standardized(self.features(inputs)).split(TILES):
            # distances term by term: a matrix product loses the small ones
            distances = torch.cdist(x, self.tiles, compute_mode="donot_use_mm_for_euclid_dist")    # B x N
            # B x K, whole numbers, exact in bfloat16 too
            votes = near(distances, NEIGHBOURS).float() @ self.labels.float()
            shares.append(votes.float() / NEIGHBOURS)
        return torch.cat(shares).logit(1e-6)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        """The numbers of filters and of training tiles are those of the checkpoint."""
        for name, buffer in self.named_buffers():
            if prefix + name in state_dict:
                setattr(self, name, buffer.new_empty(len(state_dict[prefix + name]), *buffer.shape[1:]))
        super()._load_from_state_dict(state_dict, prefix, *args)
