"""Contrastive loss across modalities (section 3.2, equation 3, figure 4).

Dimensions: B tiles, M modalities, P patches, D embedding, N = B M P tokens.
The denominator of equation 3 sums over all pairs of tokens. `Denominator` walks through the N x N similarities in blocks, so
that memory grows with N; `dense_denominator` is the same in one matrix, readable, and the tests hold the two together.
"""
import torch
import torch.nn.functional as F

BLOCK, BLOCK_GPU = 1536, 8192    # tokens; measured on a CPU: 512 to 2048 differ by a tenth


def contrastive_loss(tokens, present, temperature=0.1, naive=False, dense=False):
    """Minus the mean of equation 3's logarithm (the printed equation lacks the minus sign).

    tokens (B, M, P, D): the encoders' f_p^m. present (B, M) bool: False where a tile lacks a modality; such tokens are
    neither anchor, positive nor negative. temperature: gamma. naive: the ablation of table 5, whose denominator leaves
    out only the anchor itself, not all of T(m, p). dense: with the N x N matrix, as are temperatures under 0.025.
    Positives of (m, p): the tokens (n, p) with n != m. Returns a scalar, 0 where no token has a positive (a single modality).
    """
    kind = tokens.device.type
    product_type = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else tokens.dtype
    with torch.autocast(kind, enabled=False):                                 # only the products of Denominator are in that type
        modalities, patches = tokens.shape[1:3]
        f = F.normalize(tokens, dim=-1)                                       # cosine similarity
        same_patch = torch.einsum("bmpd,bnpd->bmpn", f, f) / temperature
        is_self = torch.eye(modalities, dtype=torch.bool, device=f.device)
        is_positive = present[:, :, None, None] & present[:, None, None, :] & ~is_self[:, None]    # B x M x 1 x M
        is_anchor = is_positive.any(-1).expand(-1, -1, patches)               # B x M x P
        # where there is no positive the value is not used; 0 in place of -inf keeps its gradient finite
        numerator = same_patch.masked_fill(~is_positive, -torch.inf).masked_fill(~is_anchor[..., None], 0).logsumexp(-1)

        is_token = present[:, :, None].expand(-1, -1, patches).flatten()
        group = 1 if naive else patches                                       # T(m, p): so many tokens in a row
        if dense or temperature < 0.025:                                      # exp(-2 / temperature) would be 0 in float32
            log_denominator = dense_denominator(f.flatten(0, 2), is_token, group, temperature)
        else:
            log_denominator = Denominator.apply(f.flatten(0, 2), is_token, group, temperature, product_type)
        loss = torch.where(is_anchor, log_denominator.view_as(is_anchor) - numerator, 0)
        return loss.sum() / is_anchor.sum().clamp(min=1)


def dense_denominator(f, is_token, group, temperature):
    """Logarithm of equation 3's denominator.

    f (N, D) of norm 1; is_token (N,) bool: those that count; group: so many tokens in a row are one T(m, p). Returns (N,), -inf
    where no token counts.
    """
    number = torch.arange(len(f), device=f.device) // group
    is_excluded = (number[:, None] == number[None]) | ~is_token[None]
    return (f @ f.t() / temperature).masked_fill(is_excluded, -torch.inf).logsumexp(-1)


class Denominator(torch.autograd.Function):
    """dense_denominator with memory linear in N.

    The similarities are symmetric: each pair of blocks is multiplied once, for the rows of both. They are at most 1, so
    exp((s - 1) / temperature) needs no maximum of its row. Of 2 N^2 D operations a matrix, forward does a half and backward three.
    product_type: of the factors of matrix products; sums and everything else are in the type of f.
    """

    @staticmethod
    def forward(ctx, f, is_token, group, temperature, product_type):
        size = BLOCK_GPU if f.is_cuda else BLOCK
        ctx.settings = max(1, size // group) * group, group, temperature, product_type    # groups lie within blocks
        counts = is_token.to(f.dtype)
        total = f.new_zeros(len(f))
        for i, j, e in pairs(f, *ctx.settings):
            total[i] += e @ counts[j]
            if i != j:
                total[j] += counts[i] @ e
        ctx.save_for_backward(f, counts, total)
        return total.log() + 1 / temperature

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        f, counts, total = ctx.saved_tensors
        *_, temperature, product_type = ctx.settings
        weight = torch.where(total > 0, gradient / total, 0) / temperature    # of e[a, b] in the gradient of row a
        factors, result = f.to(product_type), torch.zeros_like(f)
        with torch.autocast(f.device.type, enabled=False):                    # of whoever calls backward
            for i, j, e in pairs(f, *ctx.settings):
                # similarity (a, b) is in the sum of row a if b counts, and in that of row b if a does
                e *= torch.addr(torch.outer(weight[i], counts[j]), counts[i], weight[j])
                e = e.to(product_type)
                add_product(result[i], e, factors[j])
                if i != j:
                    add_product(result[j], e.t(), factors[i])
        return result, None, None, None, None


def pairs(f, size, group, temperature, product_type):
    """Each pair of blocks of the tokens once: (slice i, slice j, exp((f_i . f_j - 1) / temperature)), excluded pairs 0."""
    blocks = [slice(at, min(at + size, len(f))) for at in range(0, len(f), size)]
    factors, number = f.to(product_type), torch.arange(size, device=f.device) // group
    is_excluded = number[:, None] == number[None]
    for at, i in enumerate(blocks):
        for j in blocks[at:]:
            e = f.new_full((i.stop - i.start, j.stop - j.start), -1 / temperature)
            add_product(e, factors[i], factors[j].t(), 1 / temperature).exp_()
            if i == j:                                                        # a T(m, p) lies within one block
                e.masked_fill_(is_excluded[:len(e), :len(e)], 0)
            yield i, j, e


def add_product(total, a, b, factor=1):
    """total += factor x a @ b, in place, added up in the type of total even if a and b are narrower."""
    if a.dtype == total.dtype:
        return total.addmm_(a, b, alpha=factor)
    if a.is_cuda:
        return total.add_(torch.mm(a, b, out_dtype=total.dtype), alpha=factor)
    return total.addmm_(a.to(total.dtype), b.to(total.dtype), alpha=factor)   # no such product on the CPU
