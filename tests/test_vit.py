"""The ViT and the MLP that OmniSat is compared with: sizes, positions, and what each dropout leaves out."""
import pytest
import torch
from torch import nn

from models.compared.mlp import MLP
from models.compared.vit import DROP, HEADS, Attention, Block, image_vit, pixel_vit
from models.omnisat import patchify

KINDS = {"image": lambda: image_vit(2, 5, side=24, patch=4, width=0.125), "pixel": lambda: pixel_vit(3, 5, width=0.25)}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(params=KINDS)
def network(request):
    """One of the two kinds, small, both with 6 x 6 patches; layers and relative positions weigh enough to be seen."""
    network = KINDS[request.param]().double().eval()
    for module in (*network.blocks.modules(), network.head):
        if isinstance(module, nn.Linear):
            module.reset_parameters()
    for block in network.blocks:
        nn.init.normal_(block.attention.relative)
    return network


def images(network, batch=3):
    return torch.randn(batch, network.bands, network.side, network.side, dtype=torch.float64)


def blocks_see(network, x):
    """What reaches the first block: tokens (B, N, D) and is_bucket (B, N, K, N)."""
    seen = []
    hook = network.blocks[0].register_forward_pre_hook(lambda block, inputs: seen.extend(inputs))
    network(x)
    hook.remove()
    return seen


def test_parameter_counts_are_the_official_ones():
    """Official configuration: ViT 13.0 M and 0.80 M, MLP 1.29 M and 1.12 M, 15 classes."""
    with torch.device("meta"):
        networks = image_vit(4, 15), pixel_vit(12, 15), pixel_vit(3, 15), MLP(12, 15), MLP(3, 15)
    counts = [sum(p.numel() for p in network.parameters()) / 1e6 for network in networks]
    assert [round(count, 2) for count in counts] == [13.05, 0.80, 0.80, 1.29, 1.12]


def test_attention_is_contextual_relative_attention():
    """Wu et al., 2021: softmax_j of q_i . (k_j + r_bucket(i,j)) / sqrt(d), one table for all heads, another grid for
    each tile.
    """
    attention, dim, size = Attention(16).double().eval(), 16, 2
    nn.init.normal_(attention.relative)
    x, buckets = torch.randn(2, 5, dim, dtype=torch.float64, requires_grad=True), torch.randint(5, (2, 5, 5))
    rows = []
    for b in range(2):
        q, k, v = attention.query_key_value(x[b]).view(5, 3, HEADS, size).unbind(1)
        for i in range(5):
            pieces = []
            for h in range(HEADS):
                weight = [torch.exp(q[i, h] @ (k[j, h] + attention.relative[buckets[b, i, j]]) / size ** 0.5)
                          for j in range(5)]
                pieces.append(sum(weight[j] / sum(weight) * v[j, h] for j in range(5)))
            rows.append(attention.out(torch.cat(pieces)))
    expected = torch.stack(rows).view(2, 5, dim)
    value = attention(x, buckets[:, :, None] == torch.arange(5)[:, None])
    torch.testing.assert_close(value, expected)
    weight, inputs = torch.randn_like(value), [x, *attention.parameters()]
    torch.testing.assert_close(torch.autograd.grad((value * weight).sum(), inputs),
                               torch.autograd.grad((expected * weight).sum(), inputs))


def permuted(x, patch, order):
    """Images (B, C, H, H) whose patches change places: that of number order[i] comes to place i."""
    x, rows = patchify(x, patch)[:, order], x.shape[-1] // patch
    return x.unflatten(1, (rows, rows)).permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("relative", [False, True])
def test_patches_have_places_by_positions_only(network, absolute, relative):
    """Without both positions patches are a set; the relative ones know distances, which a mirror keeps; the absolute
    ones all.
    """
    for block in network.blocks:
        block.attention.relative.data *= relative
    network.absolute.data *= 50 * absolute
    x, grid = images(network), torch.arange(36).view(6, 6)
    logits = network(x)
    for order, kept in ((torch.randperm(36), not absolute and not relative), (grid.flip(1).flatten(), not absolute)):
        other = network(permuted(x, network.patch, order))
        assert torch.allclose(other, logits, atol=1e-10) if kept else (other - logits).abs().max() > 1e-3


def test_relative_positions_by_hand():
    """2 x 2 pixels: rounded distances 0, 1, 1, 1; the class token has a bucket of its own, as query and as key."""
    _, is_bucket = blocks_see(pixel_vit(3, 5, side=2, width=0.25).eval(), torch.randn(1, 3, 2, 2))
    assert is_bucket[0].int().argmax(1).tolist() == [[4] * 5, [4, 0, 1, 1, 1], [4, 1, 0, 1, 1], [4, 1, 1, 0, 1],
                                                     [4, 1, 1, 1, 0]]
    assert (is_bucket.sum(2) == 1).all()


def test_class_token_is_attended_to_and_not_pooled(network):
    """Official configuration: pooling of the patches only, mean then norm for images, norm then maximum for pixels."""
    x, last = images(network), []
    network.blocks[-1].register_forward_hook(lambda block, inputs, output: last.append(output))
    logits = network(x)
    patches = last[0][:, 1:]
    pooled = network.norm(patches).amax(1) if network.patch == 1 else network.norm(patches.sum(1) / 36)
    torch.testing.assert_close(logits, network.head(pooled))
    nn.init.normal_(network.token)
    assert (network(x) - logits).abs().max() > 1e-3


def test_tokens_are_patches_and_their_places():
    """Official configuration: a matrix for a pixel, OmniSat's image encoder for a patch; then the absolute embedding,
    row by row.
    """
    network = KINDS["pixel"]()
    x = torch.randn(2, 3, 6, 6)
    tokens, _ = blocks_see(network.eval(), x)
    torch.testing.assert_close(tokens[:, 0], network.token.expand(2, -1))
    torch.testing.assert_close(tokens[1, 1 + 6 * 2 + 5], network.embed.weight @ x[1, :, 2, 5] + network.absolute[17])
    network = KINDS["image"]().eval()
    x = torch.randn(2, 2, 24, 24)
    token, _ = network.embed(x[1:, :, 8:12, 20:])
    torch.testing.assert_close(blocks_see(network, x)[0][1, 1 + 6 * 2 + 5], token[0] + network.absolute[17], rtol=0,
                               atol=1e-5)


@pytest.mark.parametrize("kind, linears", [("image", 12 * 4 + 1), ("pixel", 4 * 4 + 1)])
def test_weights_begin_as_in_the_official_code(kind, linears):
    """Linear layers of the blocks and the head: normally distributed, 0.02, biases 0; norms add 1e-6 to variances."""
    network = image_vit(4, 15) if kind == "image" else pixel_vit(12, 15)
    found = [module for module in (*network.blocks.modules(), network.head) if isinstance(module, nn.Linear)]
    assert len(found) == linears and not any(module.bias.any() for module in found)
    for module in found:
        assert module.weight.std().item() == pytest.approx(0.02, rel=0.1) and module.weight.abs().max() < 0.12
    norms = [module for module in (*network.blocks.modules(), network.norm) if isinstance(module, nn.LayerNorm)]
    assert {norm.eps for norm in norms} == {1e-6}


def test_patch_dropout_keeps_four_fifths_and_their_places():
    """28 of 36 patches of each tile and the class token; what is left keeps its absolute and its relative positions."""
    network = KINDS["pixel"]()
    assert blocks_see(network.eval(), torch.zeros(2, 3, 6, 6))[0].shape[1] == 37
    tokens, is_bucket = blocks_see(network.train(), torch.zeros(500, 3, 6, 6))    # of zeros only positions are left
    assert tokens.shape[1] == 29 and torch.equal(tokens[:, 0], network.token.expand(500, -1))
    place = torch.cdist(tokens[:, 1:], network.absolute).argmin(2)                # which patch each of the 28 is
    torch.testing.assert_close(tokens[:, 1:], network.absolute[place])
    counts = nn.functional.one_hot(place, 36).sum(1)
    assert counts.max() == 1 and (counts.float().mean(0) - 28 / 36).abs().max() < 0.08    # 4.5 standard deviations
    at = nn.functional.pad(place + 1, (1, 0))
    for b in range(5):
        expected = [[network.buckets[i, j] for j in at[b]] for i in at[b]]
        assert torch.equal(is_bucket[b].int().argmax(1), torch.tensor(expected))


def test_stochastic_depth_drops_whole_branches_of_tiles():
    """Huang et al., 2016: a tile's branch is whole or nothing, its expectation is kept, and in evaluation nothing is
    dropped.
    """
    block, x = Block(16, 0.2), torch.randn(4000, 2, 16)
    kept = block.whole(torch.ones_like(x))
    assert set(kept.unique().tolist()) == {0, 1.25} and (kept == kept[:, :1, :1]).all()
    assert kept.mean().item() == pytest.approx(1, abs=0.04)                              # 5 standard deviations
    assert torch.equal(block.eval().whole(x), x)
    is_bucket = torch.ones(4000, 2, 1, 2, dtype=torch.bool).repeat(1, 1, 5, 1)
    assert torch.equal(Block(16, 1.)(x, is_bucket), x)                            # both branches
    rates = [block.drop_path for block in image_vit(2, 5, side=24, patch=4, width=0.125).blocks]
    torch.testing.assert_close(torch.tensor(rates), torch.linspace(0, DROP, 12))


def test_dropout_in_four_places(network, monkeypatch):
    """Official configuration: a fifth of what each branch gives, of the MLP's hidden units, and of the pooled features.
    """
    block, shares = network.blocks[0], []

    def see(x):
        shares.append((x == 0).double().mean().item())
        return x
    monkeypatch.setattr(block, "whole", see)
    for linear in (block.mlp[-2], network.head):
        linear.register_forward_pre_hook(lambda layer, inputs: see(*inputs))
    for mode, share in ((False, 0), (True, DROP)):
        network.train(mode)(images(network, 60))
        assert shares == pytest.approx([share] * 4, abs=0.05)       # attention, hidden units, MLP, pooled
        shares.clear()


def test_attention_dropout_is_of_single_weights():
    """One token has one weight a head, 1: in training 0 for a fifth of tiles and heads, else 1.25."""
    attention = Attention(HEADS)
    nn.init.zeros_(attention.query_key_value.weight), nn.init.ones_(attention.query_key_value.bias)
    nn.init.eye_(attention.out.weight), nn.init.zeros_(attention.out.bias)
    x, is_bucket = torch.randn(1000, 1, HEADS), torch.zeros(1000, 1, 5, 1, dtype=torch.bool)
    out = attention(x, is_bucket)
    assert (out.isclose(torch.zeros(())) | out.isclose(torch.tensor(1.25))).all()
    assert out.mean().item() == pytest.approx(1, abs=0.03)
    # heads draw apart
    assert (out[:, 0, 0] != out[:, 0, 1]).float().mean().item() == pytest.approx(2 * 0.2 * 0.8, abs=0.07)
    torch.testing.assert_close(attention.eval()(x, is_bucket), torch.ones_like(x))


def test_evaluation_is_deterministic_and_of_each_tile(network):
    x = images(network, 4)
    logits = network(x)
    assert logits.shape == (4, 5) and torch.equal(network(x), logits)
    for i in range(4):
        torch.testing.assert_close(network(x[i:i + 1]), logits[i:i + 1])
    torch.manual_seed(1)
    first = network.train()(x)
    assert not torch.equal(network(x), first)
    torch.manual_seed(1)                                            # torch's own generator draws all dropouts
    assert torch.equal(network(x), first)


def test_gradients_reach_all_in_training(network):
    """Every parameter, every row of the tables, also of one tile, also in bfloat16."""
    network.float().train()
    with torch.autocast("cpu", torch.bfloat16):
        network(images(network, 8).float()).float().square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []
    for table in (network.absolute, *(block.attention.relative for block in network.blocks)):
        assert table.grad.any(1).all()
    assert network(images(network, 1).float()).isfinite().all()


def test_sizes_that_do_not_fit_are_refused(network):
    for shape in ((3, network.bands, network.side, network.side + network.patch),
                  (3, network.bands + 1, network.side, network.side)):
        with pytest.raises(ValueError, match=rf"images are \({shape[1]}, {shape[2]}, {shape[3]}\)"):
            network(torch.zeros(shape))
    with pytest.raises(ValueError, match="304 x 304 pixels cannot be cut into patches of 50"):
        image_vit(4, 15, side=304)


def test_mlp_is_five_layers_with_three_dropouts():
    """Ahlswede et al., 2023: ReLU between all, and 30 % dropped behind the first, second and fourth."""
    network, inputs = MLP(3, 5, width=0.5), []
    linears = [layer for layer in network if isinstance(layer, nn.Linear)]
    x = torch.randn(4, 3, 6, 6)
    plain = x.flatten(1)
    for linear in linears:
        plain = linear(plain if linear is linears[0] else plain.clamp(min=0))
    torch.testing.assert_close(network.eval()(x), plain)
    for linear in linears:                                          # all activations above 0: a zero was dropped
        nn.init.constant_(linear.weight, 1e-2), nn.init.ones_(linear.bias)
        linear.register_forward_pre_hook(lambda layer, values: inputs.append((values[0] == 0).float().mean().item()))
    network.train()(torch.ones(200, 3, 6, 6)).sum().backward()
    assert inputs == pytest.approx([0, DROP + 0.1, DROP + 0.1, 0, DROP + 0.1], abs=0.02)
    assert all(p.grad.any() for p in network.parameters())
