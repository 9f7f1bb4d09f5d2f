"""DOFA: the names of its published weights, kernels made from wavelengths, places, and what is pooled."""
import math

import pytest
import torch
import torch.nn.functional as F

from models.compared.dofa import DOFA, GENERATOR_HEADS, S2, WAVELENGTHS, WEIGHT_TOKENS, WeightGenerator, wavelengths_of

RGB = wavelengths_of("RGB")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def network():
    """A small one: D = 24 and E = 4. Kernels and tokens weigh enough to be seen."""
    network = DOFA(width=1 / 32, depth=2).eval()
    for parameter in (network.patch_embed.weight_generator.fc_weight.weight,
                      network.patch_embed.weight_generator.weight_tokens,
                      network.cls_token):
        torch.nn.init.normal_(parameter)
    return network


def images(bands=3, batch=2):
    return torch.randn(batch, bands, 224, 224)


def published(dim, inner, depth):
    """Names and shapes of the published weights, by rule."""
    def linear(name, outputs, inputs):
        return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}

    def norm(name, size):
        return {f"{name}.weight": (size,), f"{name}.bias": (size,)}
    generator = "patch_embed.weight_generator"
    layer = f"{generator}.transformer_encoder.layers.0"
    shapes = {"cls_token": (1, 1, dim), "pos_embed": (1, 197, dim),
              f"{generator}.weight_tokens": (128, inner), f"{generator}.bias_token": (1, inner),
              f"{layer}.self_attn.in_proj_weight": (3 * inner, inner), f"{layer}.self_attn.in_proj_bias": (3 * inner,),
              **linear(f"{layer}.self_attn.out_proj", inner, inner), **linear(f"{layer}.linear1", 16 * inner, inner),
              **linear(f"{layer}.linear2", inner, 16 * inner), **norm(f"{layer}.norm1", inner),
              **norm(f"{layer}.norm2", inner),
              **linear(f"{generator}.fc_weight", 16 * 16 * dim, inner), **linear(f"{generator}.fc_bias", dim, inner),
              **linear("patch_embed.fclayer.w1", inner, inner), **linear("patch_embed.fclayer.w2", inner, inner)}
    for i in range(depth):
        block = f"blocks.{i}"
        shapes |= {**norm(f"{block}.norm1", dim), **linear(f"{block}.attn.qkv", 3 * dim, dim),
                   **linear(f"{block}.attn.proj", dim, dim),
                   **norm(f"{block}.norm2", dim), **linear(f"{block}.mlp.fc1", 4 * dim, dim),
                   **linear(f"{block}.mlp.fc2", dim, 4 * dim)}
    return shapes


def test_names_and_shapes_are_the_published_ones():
    """ViT-B, 111 M parameters in the paper of OmniSat; only the norm of the pooled patches is new."""
    with torch.device("meta"):
        network = DOFA()
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert shapes == published(768, 128, 12) | {"fc_norm.weight": (768,), "fc_norm.bias": (768,)}
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 2) == 111.16
    # nothing is made on the CPU
    assert network(images(3).to("meta"), RGB.to("meta")).shape == (2, 768)


def test_published_weights_are_taken_strictly(network):
    """All of them but those of pretraining; the norm that is not among them stays; nothing else may lack, be more or
    differ.
    """
    state = {name: torch.randn(shape) for name, shape in published(24, 4, 2).items()}
    dropped = {"mask_token": torch.zeros(1, 1, 24), "norm.weight": torch.zeros(24), "norm.bias": torch.zeros(24),
               "projector.weight": torch.zeros(24, 24), "projector.bias": torch.zeros(24)}
    network.load_published(state | dropped)
    assert all(torch.equal(network.state_dict()[name], value) for name, value in state.items())
    assert (network.fc_norm.weight == 1).all()
    network.load_published(state)                                   # other copies of the weights are without them
    lacking = dict(list(state.items())[1:])
    for wrong, message in ((lacking, "cls_token"), (state | {"head.weight": torch.zeros(1)}, "head.weight"),
                           (state | {"cls_token": torch.zeros(1, 1, 25)}, "cls_token")):
        with pytest.raises(RuntimeError, match=message):
            network.load_published(wrong)


def test_generator_is_a_transformer_over_bands():
    """Xiong et al., section 3: learned tokens, bands, bias token; a band's kernel is of its token plus its wavelength,
    times 0.01.
    """
    inner, dim, bands = 8, 3, 4
    generator = WeightGenerator(inner, dim).double()
    waves = torch.randn(bands, inner, dtype=torch.float64)
    layer, size = generator.transformer_encoder.layers[0], inner // GENERATOR_HEADS
    x = torch.cat([generator.weight_tokens, waves, generator.bias_token])
    q, k, v = F.linear(x, layer.self_attn.in_proj_weight, layer.self_attn.in_proj_bias).view(len(x), 3, GENERATOR_HEADS,
                                                                                             size).unbind(1)
    rows = []
    for i in range(len(x)):
        heads = []
        for h in range(GENERATOR_HEADS):
            weight = torch.exp(k[:, h] @ q[i, h] / math.sqrt(size))
            heads.append(weight / weight.sum() @ v[:, h])
        rows.append(torch.cat(heads))
    x = layer.norm1(x + layer.self_attn.out_proj(torch.stack(rows)))
    x = layer.norm2(x + layer.linear2(F.gelu(layer.linear1(x))))
    kernels, bias = generator(waves)
    for c in range(bands):
        kernel = generator.fc_weight(x[WEIGHT_TOKENS + c] + waves[c]).view(16, 16, dim)     # row, column, D
        torch.testing.assert_close(kernels[:, c], 0.01 * kernel.permute(2, 0, 1))
    torch.testing.assert_close(bias, 0.01 * generator.fc_bias(x[-1]))


def test_kernels_follow_wavelengths(network):
    """A band given twice has one kernel twice; bands are a set; of VV and VH only the sum is seen."""
    seen = []
    network.patch_embed.weight_generator.register_forward_hook(lambda module, inputs, output: seen.append(output[0]))
    x, twice = images(), torch.tensor([0.665, 0.49, 0.665])
    network(x, twice)
    torch.testing.assert_close(seen[0][:, 0], seen[0][:, 2])
    assert (seen[0][:, 0] - seen[0][:, 1]).abs().max() > 1e-3
    x, bands, order = images(9), wavelengths_of(S2), torch.randperm(9)
    first = network(x, bands)
    torch.testing.assert_close(network(x[:, order], bands[order]), first, rtol=0, atol=1e-5)
    assert (network(x[:, order], bands) - first).abs().max() > 1e-3
    x, radar = images(2), wavelengths_of(("VV", "VH"))
    torch.testing.assert_close(network(x + torch.tensor([1., -1])[:, None, None], radar), network(x, radar), rtol=0,
                               atol=1e-4)


def test_wavelengths_are_encoded_in_nanometres(network):
    """E / 2 sines and cosines of base 10,000, then x + ReLU(W2 ReLU(W1 x))."""
    seen = []
    network.patch_embed.fclayer.register_forward_hook(lambda module, inputs, output: seen.extend([*inputs, output]))
    network(images(1), torch.tensor([0.665]))
    waves = torch.tensor([[math.sin(665), math.sin(6.65), math.cos(665), math.cos(6.65)]])
    torch.testing.assert_close(seen[0], waves, rtol=0, atol=1e-3)   # a wavelength has 7 digits
    layers = network.patch_embed.fclayer
    torch.testing.assert_close(seen[1], seen[0] + F.relu(layers.w2(F.relu(layers.w1(seen[0])))))


def test_tokens_are_patches_and_their_places(network):
    """A patch of 16 x 16 pixels, which begins one pixel above and left of its own; sines and cosines of column, then
    of row.
    """
    x, inputs, kernels = images(), [], []
    network.patch_embed.weight_generator.register_forward_hook(lambda module, given, output: kernels.extend(output))
    network.blocks[0].register_forward_pre_hook(lambda block, given: inputs.extend(given))
    network(x, RGB)
    padded = F.pad(x, (1, 1, 1, 1))
    frequency = 10000 ** (-torch.arange(6) / 6)
    for row, column in ((0, 0), (2, 5), (13, 13)):
        patch = padded[1, :, 16 * row:16 * row + 16, 16 * column:16 * column + 16]
        place = torch.cat([(column * frequency).sin(), (column * frequency).cos(), (row * frequency).sin(),
                           (row * frequency).cos()])
        expected = (kernels[0] * patch).sum((1, 2, 3)) + kernels[1] + place
        torch.testing.assert_close(inputs[0][1, 1 + 14 * row + column], expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(inputs[0][:, 0], network.cls_token[:, 0].expand(2, -1))              # which is nowhere


def test_patches_are_pooled_without_the_class_token(network):
    """Mean of the patches, then the norm; the class token is attended to."""
    x, last = images(), []
    network.blocks[-1].register_forward_hook(lambda block, given, output: last.append(output))
    vectors = network(x, RGB)
    torch.testing.assert_close(vectors, network.fc_norm(last[0][:, 1:].sum(1) / 196))
    network.cls_token.data *= -1
    assert (network(x, RGB) - vectors).abs().max() > 1e-3


def test_each_tile_is_apart_and_gradients_reach_all(network):
    x = images(batch=3)
    vectors = network(x, RGB)
    assert vectors.shape == (3, 24) and torch.equal(network(x, RGB), vectors)
    for i in range(3):
        torch.testing.assert_close(network(x[i:i + 1], RGB), vectors[i:i + 1], rtol=0, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        (network.train()(x, RGB).float() ** 3).sum().backward()     # the sum of squares behind a norm hardly changes
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_bands_and_images_that_do_not_fit_are_refused(network):
    assert len(S2) == 9 and wavelengths_of(S2).tolist() == pytest.approx([0.665, 0.56, 0.49, 0.705, 0.74, 0.783, 0.842,
                                                                          1.61, 2.19])
    assert set(WAVELENGTHS) == {*S2, *"RGB", "VV", "VH"}
    with pytest.raises(ValueError, match="no wavelength of B8A, NIR: there are those of B02"):
        wavelengths_of(("B8A", "B02", "NIR"))
    with pytest.raises(ValueError, match=r"images are \(3, 224, 208\)"):
        network(torch.zeros(1, 3, 224, 208), RGB)
    with pytest.raises(ValueError, match=r"images are \(2, 224, 224\) with 3 wavelengths"):
        network(images(2), RGB)
