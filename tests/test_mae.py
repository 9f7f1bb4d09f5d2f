"""SatMAE and Scale-MAE: sizes, groups of bands, what a token is told of itself, masks, and the loss of masked tokens.
"""
import math

import pytest
import torch
from torch import nn

from models.compared.mae import HEADS, S2_GROUPS, satmae, scalemae
from models.compared.supervised import FusionHead
from models.compared.transformer import Block

BANDS, GROUPS = ("a", "b", "c", "d"), (("c", "a"), ("d",))              # b is in no group
S2 = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
METHODS = {"satmae": satmae, "scalemae": lambda *args, **options: scalemae(*args, gsd=0.3, **options)}
UNUSED_LAYER = 385_000                  # 384 -> 1000, in the official Scale-MAE only


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def build(name="satmae", groups=GROUPS, **options):
    """A small network: 2 seasons of 4 bands, 2 x 2 places, so 4 groups and 16 tokens of 48 numbers."""
    return METHODS[name](BANDS, groups,
                         **{"side": 16, "seasons": 2, "depth": 2, "decoder_depth": 1, "width": 1 / 8}
                         | options).double()


@pytest.fixture(params=METHODS)
def network(request):
    """One of the two, small; its tokens weigh enough to be seen."""
    network = build(request.param)
    nn.init.normal_(network.encoder.token), nn.init.normal_(network.decoder.mask_token)
    return network


def images(batch=3):
    return torch.randn(batch, 8, 16, 16, dtype=torch.float64)


def pixels(token):
    """By hand: channels, rows and columns of a token of the small network."""
    group, place = divmod(token, 4)
    row, column = divmod(place, 2)
    return [[2, 0], [3], [6, 4], [7]][group], slice(8 * row, 8 * row + 8), slice(8 * column, 8 * column + 8)


def count(*modules):
    return sum(p.numel() for module in modules for p in module.parameters())


def test_parameter_counts_are_the_official_ones():
    """Official configuration, in millions: pretraining, and fine-tuning with a linear layer or the late fusion's."""
    rgb, nir, once, seasons = ("R", "G", "B"), ("R", "G", "B", "NIR"), {"gsd": 26.7, "side": 48}, {"gsd": 2, "side": 48,
                                                                                                   "seasons": 4}
    with torch.device("meta"):
        networks = [satmae(nir, (nir,)), satmae(S2, S2_GROUPS), scalemae(rgb, (rgb,), 5.7),
                    scalemae(S2, S2_GROUPS, **once),
                    scalemae(S2, S2_GROUPS, **seasons)]
        linear, fusion = nn.Linear(384, 15), [nn.Linear(384, 128), nn.Linear(384, 128), FusionHead(256, 15)]
    encoders = [network.encoder for network in networks]
    assert [len(encoder.encoding) for encoder in encoders] == [784, 2352, 784, 108, 432]      # tokens
    for number, extra, pretraining, tuning in ((0, 0, 35.8, 21.4), (1, 0, 36.1, 21.5), (2, 1, 36.2, 21.8),
                                               (4, 1, 38.0, 22.7)):
        counts = count(networks[number]), count(encoders[number], linear)
        assert [round((n + extra * UNUSED_LAYER) / 1e6, 1) for n in counts] == [pretraining, tuning]
    # late fusion
    for one, other, extra, millions in ((0, 1, 0, 43.1), (0, 1, 2, 43.8), (2, 3, 2, 43.8), (0, 4, 2, 44.6)):
        assert round((count(encoders[one], encoders[other], *fusion) + extra * UNUSED_LAYER) / 1e6, 1) == millions


def naive_sinusoids(at, dim):
    """Vaswani et al., 2017, sines before cosines."""
    angles = [at / 10000 ** (2 * i / dim) for i in range(dim // 2)]
    return [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]


def naive_encoding(group, row, column, scale, place_dim, group_dim):
    return (naive_sinusoids(scale * column, place_dim // 2) + naive_sinusoids(scale * row, place_dim // 2)
            + naive_sinusoids(group, group_dim))


@pytest.mark.parametrize("name, scale, encoder, decoder",
                         [("satmae", 1, (16, 32), (16, 32)), ("scalemae", 0.3, (48, 0), (32, 16))])
def test_encodings_are_place_and_group(name, scale, encoder, decoder):
    """Cong et al., 3.3: place beside group. Reed et al., 3.1: sin(g/G pos / 10000^(2i/D)), G = 1 m."""
    network = build(name, side=24)
    tokens = [(group, row, column) for group in range(4) for row in range(3) for column in range(3)]
    for part, dims in ((network.encoder, encoder), (network.decoder, decoder)):
        expected = torch.tensor([naive_encoding(*token, scale, *dims) for token in tokens], dtype=torch.float64)
        torch.testing.assert_close(part.encoding, expected, rtol=0, atol=1e-6)


def test_twice_the_ground_sample_distance_is_twice_the_place():
    """Reed et al., 3.1, in the encoder and in the decoder, where the group's part stays."""
    networks = [scalemae(("a",), (("a",),), gsd, side=40, depth=1, decoder_depth=1, width=1 / 8) for gsd in (0.2, 0.4)]
    fine, coarse = (network.encoder.encoding.unflatten(0, (5, 5)) for network in networks)
    torch.testing.assert_close(coarse[:3, :3], fine[::2, ::2])
    assert (coarse - fine)[1:].abs().amax(-1).min() > 0.1
    fine, coarse = (network.decoder.encoding.unflatten(0, (5, 5)) for network in networks)
    torch.testing.assert_close(coarse[:3, :3, :32], fine[::2, ::2, :32])
    assert torch.equal(coarse[..., 32:], fine[..., 32:])


def first_block_sees(network, x, **options):
    seen = []
    hook = network.encoder.blocks[0].register_forward_pre_hook(lambda block, inputs: seen.extend(inputs))
    network.encoder(network.patches(x), **options)
    hook.remove()
    return seen[0]


def test_tokens_are_bands_of_a_group_at_a_place(network):
    """By band names, season after season: each group has its own matrix, and a band of no group is not looked at."""
    x = images()
    tokens = first_block_sees(network, x)
    torch.testing.assert_close(tokens[:, 0], network.encoder.token.expand(3, -1))
    for token in range(16):
        bands, rows, columns = pixels(token)
        patch = torch.stack([x[:, band, rows, columns] for band in bands], 1).flatten(1)
        torch.testing.assert_close(tokens[:, 1 + token],
                                   network.encoder.embed[token // 4](patch) + network.encoder.encoding[token])
    other = x.clone()
    other[:, [1, 5]] += 1
    assert torch.equal(network(other), network(x))


def test_order_of_groups_is_known_by_encodings_only():
    """Groups in another order, their matrices with them: the same vector where encodings tell no group, another in
    SatMAE.
    """
    x = images()
    for name, is_same in (("scalemae", True), ("satmae", False)):
        one, other = build(name), build(name, groups=GROUPS[::-1])
        state = one.state_dict()
        for mine, yours in ((0, 1), (1, 0), (2, 3), (3, 2)):
            for part in ("encoder.embed", "decoder.heads"):
                state |= {f"{part}.{mine}.{key}": one.state_dict()[f"{part}.{yours}.{key}"]
                          for key in ("weight", "bias")}
        other.load_state_dict(state)
        assert torch.allclose(one(x), other(x), rtol=0, atol=1e-10) == is_same
    other.encoder.encoding[:, 16:], one.encoder.encoding[:, 16:] = 0, 0            # SatMAE without groups, with places
    torch.testing.assert_close(one(x), other(x), rtol=0, atol=1e-10)


def test_block_is_attention_then_mlp():
    """Dosovitskiy et al., 2021: softmax_j of q_i . k_j / sqrt(d) in each head, pre-norm, residual; values and
    gradients.
    """
    block, size = Block(48, HEADS).double(), 3
    x = torch.randn(2, 4, 48, dtype=torch.float64, requires_grad=True)
    rows = []
    for b in range(2):
        q, k, v = block.attn.qkv(block.norm1(x[b])).view(4, 3, HEADS, size).unbind(1)
        for i in range(4):
            pieces = []
            for h in range(HEADS):
                weight = [torch.exp(q[i, h] @ k[j, h] / size ** 0.5) for j in range(4)]
                pieces.append(sum(weight[j] / sum(weight) * v[j, h] for j in range(4)))
            y = x[b, i] + block.attn.proj(torch.cat(pieces))
            rows.append(y + block.mlp.fc2(nn.functional.gelu(block.mlp.fc1(block.norm2(y)))))
    expected, value = torch.stack(rows).view_as(x), block(x)
    torch.testing.assert_close(value, expected)
    weight, inputs = torch.randn_like(value), [x, *block.parameters()]
    torch.testing.assert_close(torch.autograd.grad((value * weight).sum(), inputs),
                               torch.autograd.grad((expected * weight).sum(), inputs))


def test_a_quarter_of_the_tokens_is_visible_uniformly():
    """Cong et al., independent masking: exactly a quarter of a tile's tokens, whatever their group; each tile draws
    alone.
    """
    network = build()
    kept = network.draw_masks(4000, torch.Generator().manual_seed(3))
    assert kept.shape == (4000, 4) and kept.device.type == "cpu"
    is_kept = torch.zeros(4000, 16).scatter_add_(1, kept, torch.ones(4000, 4))
    assert is_kept.max() == 1                                                     # none twice
    assert (is_kept.mean(0) - 1 / 4).abs().max() < 0.03                           # 4.4 standard deviations
    # of two tokens: 4/16 x 3/15, same place or not
    together = is_kept.t() @ is_kept / 4000
    assert (together.fill_diagonal_(0.05) - 0.05).abs().max() < 0.016
    agree = (is_kept[1:] * is_kept[:-1]).sum(1).mean().item()                     # of two tiles: 4 x 1/4
    assert agree == pytest.approx(1, abs=0.06)
    assert torch.equal(network.draw_masks(4000, torch.Generator().manual_seed(3)), kept)
    assert not torch.equal(network.draw_masks(4000, torch.Generator().manual_seed(4)), kept)


def naive_loss(network, x, kept):
    """Token by token: which go into the encoder, what the decoder starts from, and the error of those that it did not
    see.
    """
    encoder, decoder, errors = network.encoder, network.decoder, []
    for b in range(len(x)):
        patches = []
        for token in range(16):
            bands, rows, columns = pixels(token)
            patches.append(torch.cat([x[b, band, rows, columns].flatten() for band in bands]))
        visible = kept[b].tolist()
        tokens = [encoder.embed[token // 4](patches[token]) + encoder.encoding[token] for token in visible]
        y = decoder.embed(encoder.norm(encoder.blocks(torch.stack([encoder.token, *tokens])[None])))[0]
        places = [y[1 + visible.index(token)] if token in visible else decoder.mask_token for token in range(16)]
        z = torch.stack([y[0], *(place + decoder.encoding[token] for token, place in enumerate(places))])
        z = decoder.norm(decoder.blocks(z[None]))[0]
        for token in set(range(16)) - set(visible):
            difference = decoder.heads[token // 4](z[1 + token]) - patches[token]
            errors.append((difference @ difference) / len(difference))
    return sum(errors) / len(errors)


def test_loss_is_the_error_of_masked_tokens(network):
    """He et al., 2022: against the loop, in value and gradient."""
    x, kept = images().requires_grad_(), network.draw_masks(3)
    value, expected = network.pretrain_loss(x, kept), naive_loss(network, x, kept)
    assert value.shape == ()
    torch.testing.assert_close(value, expected)
    inputs = [x, *network.parameters()]
    torch.testing.assert_close(torch.autograd.grad(value, inputs), torch.autograd.grad(expected, inputs))


def test_masked_tokens_are_targets_and_visible_ones_are_inputs(network, monkeypatch):
    """Pixels of a masked token do not reach the encoder; those of a visible one reach the loss by the encoder alone."""
    x, kept = images(1), torch.tensor([[6, 1, 12, 11]])
    changed = {}
    for token in (6, 7):                                                          # 7 is masked
        bands, rows, columns = pixels(token)
        changed[token] = x.clone()
        changed[token][:, bands, rows, columns] += 1
    encoded = network.encoder(network.patches(x), kept)
    assert torch.equal(network.encoder(network.patches(changed[7]), kept), encoded)
    assert not torch.equal(network.encoder(network.patches(changed[6]), kept), encoded)
    loss = network.pretrain_loss(x, kept)
    assert network.pretrain_loss(changed[6], kept) != loss
    monkeypatch.setattr(network.encoder, "forward", lambda patches, kept: encoded)
    assert network.pretrain_loss(changed[6], kept) == loss and network.pretrain_loss(changed[7], kept) != loss


def test_gradients_reach_all(network):
    """Every parameter in pretraining, the encoder's in fine-tuning, also in bfloat16, also of one tile."""
    network.float()
    with torch.autocast("cpu", torch.bfloat16):
        loss = network.pretrain_loss(images(8).float(), network.draw_masks(8))
    assert loss.dtype == torch.float32
    loss.backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []
    network.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        network(images(1).float()).float().square().sum().backward()
    assert {name.split(".")[0] for name,
            p in network.named_parameters() if p.grad is not None and p.grad.any()} == {"encoder"}
    assert all(p.grad.any() for p in network.encoder.parameters())
    assert network.pretrain_loss(images(1).float(), network.draw_masks(1)).isfinite()


@pytest.mark.parametrize("name", METHODS)
def test_fine_tuning_starts_from_the_encoder(name):
    """Without a decoder all other names are the same, and load strictly."""
    pretrained, tuned, x = build(name), build(name, decoder_depth=0), images()
    state = pretrained.state_dict()
    assert {key.split(".")[0] for key in state} == {"encoder", "decoder"}
    tuned.load_state_dict({key: value for key, value in state.items() if not key.startswith("decoder.")})
    assert torch.equal(tuned(x), pretrained(x))


def test_vectors_are_of_each_tile(network):
    x = images(4)
    vectors = network(x)
    assert vectors.shape == (4, 48) and torch.equal(network.eval()(x), vectors)
    for i in range(4):
        torch.testing.assert_close(network(x[i:i + 1]), vectors[i:i + 1])


def test_what_does_not_fit_is_refused(network):
    for shape in ((3, 8, 24, 24), (3, 4, 16, 16)):
        with pytest.raises(ValueError,
                           match=rf"images are \({shape[1]}, {shape[2]}, {shape[3]}\), this network takes \(8, 16, "
                                 rf"16\)"):
            network(torch.zeros(shape))
    with pytest.raises(ValueError, match="no band e: there are a, b, c, d"):
        build(groups=(("a", "e"),))
    with pytest.raises(ValueError, match="20 x 20 pixels cannot be cut into patches of 8"):
        build(side=20)
