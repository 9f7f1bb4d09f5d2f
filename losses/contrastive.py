"""Contrastive loss across modalities (section 3.2, equation 3, figure 4).

Dimensions: B tiles, M modalities, P patches, D embedding.
"""
import torch
import torch.nn.functional as F


def contrastive_loss(tokens, present, temperature=0.1, naive=False):
    """Minus the mean of equation 3's logarithm (the printed equation lacks the minus sign).

    tokens (B, M, P, D): the encoders' f_p^m. present (B, M) bool: False where a tile lacks a modality; such tokens are
    neither anchor, positive nor negative. temperature: gamma. naive: the ablation of table 5, whose denominator leaves
    out only the anchor itself, not all of T(m, p). Positives of (m, p): the tokens (n, p) with n != m.
    Returns a scalar, 0 where no token has a positive (a single modality).
    """
    batch, modalities, patches, _ = tokens.shape
    f = F.normalize(tokens, dim=-1)                                           # cosine similarity
    same_patch = torch.einsum("bmpd,bnpd->bmpn", f, f) / temperature
    is_self = torch.eye(modalities, dtype=torch.bool, device=f.device)
    is_positive = present[:, :, None, None] & present[:, None, None, :] & ~is_self[:, None]    # B x M x 1 x M
    numerator = same_patch.masked_fill(~is_positive, -torch.inf).logsumexp(-1)          # B x M x P

    f = f.flatten(0, 2)                                                       # BMP x D
    similarity = f @ f.t() / temperature
    group = torch.arange(len(f), device=f.device)
    if not naive:
        group = group // patches                                              # T(m, p): one number per (tile, modality)
    is_excluded = (group[:, None] == group[None]) | ~present[:, :, None].expand(-1, -1, patches).flatten()[None]
    denominator = similarity.masked_fill(is_excluded, -torch.inf).logsumexp(-1).view(batch, modalities, patches)

    is_anchor = is_positive.any(-1).expand(-1, -1, patches)
    if not is_anchor.any():
        return tokens.sum() * 0
    return (denominator - numerator)[is_anchor].mean()
