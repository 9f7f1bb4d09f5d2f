"""losses/contrastive.py in memory that grows with the tokens: held to the plain form by tests/test_losses.py.

Dimensions: B tiles, M modalities, P patches, D embedding, N = B M P tokens.
The denominator of equation 3 sums over all pairs of tokens. `Denominator` walks through the N x N similarities in
blocks; the few positives are worked out apart.
"""
import functools

import torch
import torch.nn.functional as F

from losses.contrastive import contrastive_loss as plain_loss

BLOCK, BLOCK_GPU = 1024, 8192    # tokens; measured on a CPU: 512 to 1536 are alike


def contrastive_loss(tokens, present, temperature=0.1, naive=False, compiled=False):
    """losses.contrastive.contrastive_loss, which temperatures under 0.025 go to: sums of exp(1 / temperature) must be
    finite.

    compiled: what is done to each block of similarities is one kernel of torch.compile.
    """
    if temperature < 0.025:
        return plain_loss(tokens, present, temperature, naive)
    kind = tokens.device.type
    product_type = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else tokens.dtype
    with torch.autocast(kind, enabled=False):                                 # but for Denominator's products
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
        log_denominator = Denominator.apply(f.flatten(0, 2), is_token, group, temperature, product_type, compiled)
        loss = torch.where(is_anchor, log_denominator.view_as(is_anchor) - numerator, 0)
        return loss.sum() / is_anchor.sum().clamp(min=1)


class Denominator(torch.autograd.Function):
    """Logarithm of equation 3's denominator, (N,), -inf where no token counts.

    f (N, D) of norm 1; is_token (N,) bool: those that count; group: so many tokens in a row are one T(m, p).
    The similarities are symmetric: each pair of blocks is multiplied once, for the rows of both. They are from -1 to
    1, so exp(s / temperature) needs no maximum of its row. Of 2 N^2 D operations a matrix, forward does a half and
    backward three. product_type: of the factors of matrix products; sums and everything else are in the type of f.
    compiled: whether torch.compile fuses what is done to a block.
    """

    @staticmethod
    def forward(ctx, f, is_token, group, temperature, product_type, compiled):
        ctx.settings = group, temperature, product_type, compiled
        counts, total = is_token.to(f.dtype), f.new_zeros(len(f))
        sums = compile_once(block_sums) if compiled else block_sums
        for i, j, *block in blocks(f, *ctx.settings[:3]):
            rows, columns = sums(*block, counts[i], counts[j])
            total[i] += rows
            if i != j:
                total[j] += columns
        ctx.save_for_backward(f, counts, total)
        return total.log()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        f, counts, total = ctx.saved_tensors
        group, temperature, product_type, compiled = ctx.settings
        weight = torch.where(total > 0, gradient / total, 0) / temperature    # of e[a, b] in the gradient of row a
        result, weights = torch.zeros_like(f), compile_once(block_weights) if compiled else block_weights
        with torch.autocast(f.device.type, enabled=False):                    # of whoever calls backward
            for i, j, left, right, *block in blocks(f, group, temperature, product_type):
                e = weights(left, right, *block, counts[i], counts[j], weight[i], weight[j])
                result[i] += product(e, right.t(), f.dtype)
                if i != j:
                    result[j] += product(e.t(), left, f.dtype)
        return result, None, None, None, None, None


def blocks(f, group, temperature, product_type):
    """Each pair of blocks of the tokens once: slices i and j, and what block_exponentials takes."""
    size = max(1, (BLOCK_GPU if f.is_cuda else BLOCK) // group) * group       # a T(m, p) lies within one block
    slices = [slice(at, min(at + size, len(f))) for at in range(0, len(f), size)]
    factors = f.to(product_type)
    for at, i in enumerate(slices):
        for j in slices[at:]:
            yield i, j, factors[i], factors[j].t(), 1 / temperature, f.dtype, group if i == j else 0


def block_exponentials(left, right, scale, dtype, group):
    """exp(f_i . f_j scale) of two blocks of tokens, excluded pairs 0. scale: 1 / temperature; group: 0 excludes none.
    """
    e = product(left, right, dtype, scale).exp_()
    if group:
        number = torch.arange(len(e), device=e.device) // group
        e.masked_fill_(number[:, None] == number, 0)
    return e


def block_sums(left, right, scale, dtype, group, counts_i, counts_j):
    """What a block adds to the denominators of its rows and of its columns."""
    e = block_exponentials(left, right, scale, dtype, group)
    return e @ counts_j, counts_i @ e


def block_weights(left, right, scale, dtype, group, counts_i, counts_j, weight_i, weight_j):
    """The derivative of the loss by each similarity of a block, in the type of the products."""
    # similarity (a, b) is in the sum of row a if b counts, and in that of row b if a does
    e = block_exponentials(left, right, scale, dtype, group)
    return e.mul_(torch.addr(torch.outer(weight_i, counts_j), counts_i, weight_j)).to(left.dtype)


def product(a, b, dtype, factor=1):
    """factor x a @ b, added up and given in the type, which may be wider than theirs."""
    if a.is_cuda and a.dtype != dtype:
        return torch.mm(a, b, out_dtype=dtype) * factor
    zero = a.new_zeros((), dtype=dtype)
    return torch.addmm(zero, a.to(dtype), b.to(dtype), beta=0, alpha=factor)  # the CPU has no such product


@functools.cache
def compile_once(function):
    """The function, compiled when it is first called."""
    return torch.compile(function)
