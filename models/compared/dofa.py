"""DOFA (Xiong et al., 2024): one vision transformer for images of any bands, which is told their wavelengths.

A small transformer reads the wavelengths and writes the kernels of the patch embedding; behind them is a ViT-B of
patches of 16 pixels (Dosovitskiy et al., 2021). Attributes have the names of the published weights,
DOFA_ViT_base_e100.pth.
Dimensions: B tiles, C bands, P patches, N tokens, D embedding, E embedding of wavelengths, A heads.
"""
import torch
import torch.nn.functional as F
from torch import nn

from models.compared.mae import encoding
from models.compared.transformer import Block

SIDE, PATCH, HEADS = 224, 16, 12
WEIGHT_TOKENS, GENERATOR_HEADS, SCALE = 128, 4, 0.01

# micrometres, as published; radar has the frequency in GHz in that place
WAVELENGTHS = {"B02": 0.49, "B03": 0.56, "B04": 0.665, "B05": 0.705, "B06": 0.74, "B07": 0.783, "B08": 0.842,
               "B11": 1.61, "B12": 2.19, "R": 0.665, "G": 0.56, "B": 0.49, "VV": 5.405, "VH": 5.405}
S2 = "B04", "B03", "B02", "B05", "B06", "B07", "B08", "B11", "B12"    # the nine bands of Sentinel-2 that DOFA takes

# of the published weights, what pretraining alone needs; their norm is that of the class token, which is not pooled
LEFT_OUT = "mask_token", "norm.", "projector.", "decoder"
NEW = "fc_norm.weight", "fc_norm.bias"                                # not among the published weights


def wavelengths_of(bands):
    """The wavelengths of bands, by their names: (C,). Errors: ValueError naming those that are not in the table."""
    missing = [band for band in bands if band not in WAVELENGTHS]
    if missing:
        raise ValueError(f"no wavelength of {', '.join(missing)}: there are those of {', '.join(WAVELENGTHS)}")
    return torch.tensor([WAVELENGTHS[band] for band in bands])


class WeightGenerator(nn.Module):
    """Kernels and bias of the patch embedding. Bands are a set among learned tokens; what a band's token becomes is
    its kernel.

    inner: E. dim: D.
    """

    def __init__(self, inner, dim):
        super().__init__()
        layer = nn.TransformerEncoderLayer(inner, GENERATOR_HEADS, 16 * inner, dropout=0., activation="gelu")
        self.transformer_encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.weight_tokens = nn.Parameter(0.02 * torch.randn(WEIGHT_TOKENS, inner))
        self.bias_token = nn.Parameter(0.02 * torch.randn(1, inner))
        self.fc_weight, self.fc_bias = nn.Linear(inner, PATCH ** 2 * dim), nn.Linear(inner, dim)

    def forward(self, waves):
        """waves (C, E). Returns kernels (D, C, PATCH, PATCH) and bias (D,)."""
        x = self.transformer_encoder(torch.cat([self.weight_tokens, waves, self.bias_token]))
        # C x PATCH x PATCH x D
        kernels = self.fc_weight(x[WEIGHT_TOKENS:-1] + waves).unflatten(1, (PATCH, PATCH, -1))
        return SCALE * kernels.permute(3, 0, 1, 2), SCALE * self.fc_bias(x[-1])


class Residual(nn.Module):
    """x + ReLU(W2 ReLU(W1 x)), on the encoded wavelengths."""

    def __init__(self, dim):
        super().__init__()
        self.w1, self.w2 = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x):
        return x + self.w2(self.w1(x).relu()).relu()


class PatchEmbedding(nn.Module):
    """Patches to tokens, by kernels made for the wavelengths. Arguments: as WeightGenerator."""

    def __init__(self, inner, dim):
        super().__init__()
        self.fclayer, self.weight_generator = Residual(inner), WeightGenerator(inner, dim)
        self.register_buffer("frequency", 10000 ** (-torch.arange(inner // 2) / (inner // 2)), persistent=False)

    def forward(self, x, wavelengths):
        """x (B, C, SIDE, SIDE), wavelengths (C,). Returns (B, P, D)."""
        angle = 1000 * wavelengths[:, None] * self.frequency                  # of nanometres
        waves = self.fclayer(torch.cat([angle.sin(), angle.cos()], 1))        # C x E
        # patches begin one pixel outside the image, above and left: so the published weights were trained
        return F.conv2d(x, *self.weight_generator(waves), stride=PATCH, padding=1).flatten(2).transpose(1, 2)


class DOFA(nn.Module):
    """DOFA ViT-B: images of any bands to vectors of D = 768 numbers. 111 M parameters, 25 M of them the layer that
    writes kernels.

    width: multiplies D and E. depth: number of blocks.
    """

    def __init__(self, width=1.0, depth=12):
        super().__init__()
        self.dim = HEADS * max(1, round(64 * width))
        inner = GENERATOR_HEADS * max(1, round(32 * width))
        self.patch_embed = PatchEmbedding(inner, self.dim)
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, self.dim))
        places = encoding(1, SIDE // PATCH, 1, self.dim, 0)    # P x D, sines and cosines of column and row
        self.register_buffer("pos_embed", F.pad(places, (0, 0, 1, 0))[None])  # 1 x N x D, the class token is nowhere
        self.blocks = nn.Sequential(*(Block(self.dim, HEADS, 1e-6) for _ in range(depth)))
        self.fc_norm = nn.LayerNorm(self.dim, 1e-6)

    def forward(self, x, wavelengths):
        """x (B, C, 224, 224): images. wavelengths (C,): of their bands, on the same device. Returns (B, D), the normed
        mean of patches.

        Bands are of mean 0 and standard deviation 1 in the training split; DOFA's own statistics are of 8-bit images
        and make radar in linear power a constant image. Bands of one wavelength have one kernel: of VV and VH the
        network sees the sum. Errors: ValueError for another size of images or number of wavelengths.
        """
        if x.shape[2:] != (SIDE, SIDE) or wavelengths.shape != x.shape[1:2]:
            raise ValueError(f"images are {tuple(x.shape[1:])} with {len(wavelengths)} wavelengths, "
                             f"this network takes {SIDE} x {SIDE} pixels and a wavelength for each band")
        x = self.patch_embed(x, wavelengths) + self.pos_embed[:, 1:]
        token = (self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1)
        x = self.blocks(torch.cat([token, x], 1))                             # B x N x D, N = 1 + P
        return self.fc_norm(x[:, 1:].mean(1))

    def load_published(self, state):
        """Take the published weights, a state dict; LEFT_OUT of them are not in this model, and NEW keep their values.

        Errors: RuntimeError naming other weights that lack or are too many, or of another shape.
        """
        state = {name: value for name, value in state.items() if not name.startswith(LEFT_OUT)}
        own = self.state_dict()
        self.load_state_dict({name: own[name] for name in NEW} | state)
