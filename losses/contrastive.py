"""Contrastive loss across modalities (section 3.2, equation 3, figure 4).

Dimensions: B tiles, M modalities, P patches, D embedding, N = B M P tokens.
By default models/fast/contrastive.py runs in its place, in memory linear in N, to the same results; OMNISAT_PLAIN=1
runs this file.
"""
import torch
import torch.nn.functional as F


def contrastive_loss(tokens, present, temperature=0.1, naive=False):
    """Equation 3, the mean over the anchors. The printed equation lacks the minus sign; its products are cosines here,
    as in the official code.

    tokens (B, M, P, D): the encoders' f_p^m. present (B, M) bool: False where a tile lacks a modality; such tokens are
    neither anchor, positive nor negative. temperature: gamma. naive: the ablation of table 5, whose denominator leaves
    out only the anchor itself, not all of T(m, p).
    Positives of (m, p): the tokens (n, p) with n != m; a token without one, of a tile seen by a single sensor, is no
    anchor. Returns a scalar, 0 without an anchor.
    """
    with torch.autocast(tokens.device.type, enabled=False):
        modalities, patches = tokens.shape[1:3]
        f = F.normalize(tokens.flatten(0, 2), dim=-1)                         # cosine similarity
        is_token = present[:, :, None].expand(-1, -1, patches).flatten()
        index = torch.arange(len(f), device=f.device)
        group = index // patches                                              # T(m, p): a tile and a modality
        patch = index // (modalities * patches) * patches + index % patches   # a tile and a patch
        is_excluded = index[:, None] == index if naive else group[:, None] == group
        is_positive = (patch[:, None] == patch) & (group[:, None] != group) & is_token & is_token[:, None]    # N x N
        similarity = f @ f.t() / temperature
        numerator = similarity.masked_fill(~is_positive, -torch.inf).logsumexp(-1)
        denominator = similarity.masked_fill(is_excluded | ~is_token, -torch.inf).logsumexp(-1)
        is_anchor = is_positive.any(-1)
        return (denominator - numerator)[is_anchor].sum() / is_anchor.sum().clamp(min=1)
