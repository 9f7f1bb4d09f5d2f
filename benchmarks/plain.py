"""The straightforward form of pretraining, to measure against and to test with: the same weights, masks and loss.

What one writes first, and much of what published code does: tile after tile, patches in the default memory layout, all
tokens decoded at all dates and the unwanted errors thrown away, whole matrices of attention scores and of
similarities, boolean indexing.
Dimensions: B tiles, M modalities, P patches, T dates, D embedding, H heads, N = B M P tokens.
"""
import torch
import torch.nn.functional as F

from losses.reconstruction import token_error, top_dates
from models.combiner import distance_buckets
from models.omnisat import DATE_SHARE


def pretrain_loss(model, batch, masks):
    """OmniSat.pretrain_loss: the loss and its terms."""
    tokens, present, context = encode(model, batch)
    f = combine(model, tokens, masks["is_masked"].to(tokens.device))
    terms = {"contrastive": contrastive(tokens, present),
             "reconstruction": reconstruct(model, f, masks["is_masked"].to(tokens.device), batch, context)}
    return sum(terms.values()), terms


def encode(model, batch):
    """tokens (B, M, P, D), present (B, M) bool, and (patches, indices or attention) by modality."""
    tokens, present, context = [], [], {}
    for key, sensor in model.sensors.items():
        x = model.patches(key, batch[key])                                    # B x P x ...
        if sensor.kind == "image":
            token, indices = zip(*(encode_image(model.encoders[key], tile.contiguous()) for tile in x))
            context[key], is_there = (x, indices), torch.ones(len(x), dtype=torch.bool, device=x.device)
            token = torch.stack(token)
        else:
            padded = batch[f"{key}_padded"]
            token, attention = encode_series(model.encoders[key], x, batch[f"{key}_dates"], padded)
            context[key], is_there = (x, attention), ~padded.all(1)
        tokens.append(token)
        present.append(is_there)
    return torch.stack(tokens, 1), torch.stack(present, 1), context


def encode_image(encoder, x):
    """Patches of one tile (P, C, W, W) to tokens (P, D) and pooling indices."""
    x, indices = F.gelu(as_torch_does(encoder.stem, x)), []
    for block, size in zip([*encoder.blocks, None], encoder.sizes):
        x, index = F.max_pool2d(x, 2 if block else size, return_indices=True)
        indices.append(index)
        if block:
            y = x
            for layer in block.body:
                y = as_torch_does(layer, y)
            x = F.gelu(x + y)
    return x.flatten(1), indices


def as_torch_does(layer, x):
    """The layer's result by the forward of the class of torch.nn that it is a kind of, with the same weights."""
    return next(kind for kind in type(layer).__mro__ if kind.__module__.startswith("torch.nn")).forward(layer, x)


def encode_series(encoder, x, dates, padded):
    """Dates that exist are picked out for the batch norm, and put back; each head has keys of its own."""
    valid = x.transpose(1, 2)[~padded]                                        # dates x P x C
    embedded = x.new_zeros(*padded.shape, x.shape[1], encoder.dates.shape[1])
    embedded[~padded] = encoder.embed(valid.flatten(0, 1)).unflatten(0, valid.shape[:2])
    x = encoder.norm(embedded.transpose(1, 2) + encoder.dates[dates][:, None])    # B x P x T x D
    heads, size = encoder.query.shape
    keys = encoder.key(x).unflatten(-1, (heads, size))                        # B x P x T x H x 8
    scores = (keys * encoder.query).sum(-1) / size ** 0.5
    attention = scores.masked_fill(padded[:, None, :, None], -torch.inf).softmax(2)
    attention = attention.masked_fill(padded[:, None, :, None], 0)            # also of an empty series
    token = (attention[..., None] * x.unflatten(-1, (heads, -1))).sum(2).flatten(2)
    return encoder.out(token), attention.mean(-1)


def combine(model, tokens, is_masked):
    """Equations 1, 2 and 4, tile after tile, each pair of tokens with its own score. Returns f* (B, P, D)."""
    side = int(tokens.shape[2] ** 0.5)
    where = torch.cartesian_prod(*(torch.arange(side, device=tokens.device),) * 2)
    buckets, combiner, out = distance_buckets(where), model.combiner, []
    for tile, mask in zip(torch.where(is_masked[..., None], model.mask_token, tokens), is_masked):
        g = tile.flatten(0, 1)[None]
        f = combiner.token.expand(1, tile.shape[1], -1)
        for block in combiner.blocks:
            g = attention_block(block, g, g, buckets.repeat(len(mask), len(mask)))
        out.append(combiner.norm(attention_block(combiner.cross, f, g, buckets.repeat(1, len(mask)))))
    return torch.cat(out)


def attention_block(block, x, context, buckets):
    """Softmax of q_i . (k_j + r_bucket(i,j)), residual, then the MLP."""
    attention, queries = block.attention, block.norm(x)
    context = block.norm(context) if block.norm_context is None else block.norm_context(context)
    q = attention.query(queries).unflatten(-1, (attention.heads, -1)).transpose(1, 2)
    k, v = attention.key_value(context).unflatten(-1, (2, attention.heads, -1)).permute(2, 0, 3, 1, 4)
    bias = (q @ attention.relative.t()).gather(-1, buckets.expand(*q.shape[:2], *buckets.shape))
    scores = (q @ k.transpose(-1, -2) + bias) / q.shape[-1] ** 0.5
    x = x + attention.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
    return x + block.mlp(x)


def contrastive(tokens, present, temperature=0.1):
    """Equation 3 with one matrix of similarities, in which excluded and positive pairs are marked."""
    batch, modalities, patches, _ = tokens.shape
    f = F.normalize(tokens.flatten(0, 2), dim=-1)
    is_token = present[:, :, None].expand(-1, -1, patches).flatten()
    number = torch.arange(len(f), device=f.device)
    group, patch = number // patches, number // (modalities * patches) * patches + number % patches    # T(m, p); B x P
    is_excluded = (group[:, None] == group) | ~is_token
    is_positive = (patch[:, None] == patch) & (group[:, None] != group) & is_token & is_token[:, None]
    similarity = f @ f.t() / temperature
    numerator = similarity.masked_fill(~is_positive, -torch.inf).logsumexp(-1)
    denominator = similarity.masked_fill(is_excluded, -torch.inf).logsumexp(-1)
    is_anchor = is_positive.any(1)
    return (denominator - numerator)[is_anchor].sum() / is_anchor.sum().clamp(min=1)


def reconstruct(model, f, is_masked, batch, context):
    """Equation 5: every patch of every tile is decoded at every date, then what counts is kept."""
    errors = []
    for m, (key, sensor) in enumerate(model.sensors.items()):
        x, found = context[key]
        for b in range(len(f)):
            if sensor.kind == "series" and batch[f"{key}_padded"][b].all():
                continue                                                      # what is not there is no target
            if sensor.kind == "image":
                error = token_error(decode_image(model.decoders[key], f[b], found[b]), x[b])
            else:
                padded = batch[f"{key}_padded"][b].expand(f.shape[1], -1)
                index, is_used = top_dates(found[b].detach(), padded, DATE_SHARE)
                is_chosen = torch.zeros_like(padded, dtype=torch.bool).scatter(1, index, is_used)
                prediction = model.decoders[key](f[b], batch[f"{key}_dates"][b].expand(f.shape[1], -1))
                error = token_error(prediction, x[b], is_chosen)
            errors.append(error[is_masked[b, m]])
    return torch.cat(errors).mean()


def decode_image(decoder, token, indices):
    """Tokens of one tile (P, D) to patches (P, C, W, W)."""
    sizes = list(reversed(decoder.sizes))
    x = F.max_unpool2d(token[:, :, None, None], indices[-1], sizes[0], output_size=(sizes[0],) * 2)
    for block, index, size in zip(decoder.blocks, reversed(indices[:-1]), sizes[1:]):
        x = F.max_unpool2d(F.gelu(as_torch_does(block, x)), index, 2, output_size=(size,) * 2)
    return as_torch_does(decoder.last, x)
