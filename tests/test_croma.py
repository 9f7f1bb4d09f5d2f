"""CROMA: 2D-ALiBi, what is visible to whom, both losses against loops, and which weights each use of it trains."""
import math

import pytest
import torch

from models.compared.croma import CROMA, Attention, Transformer, alibi, info_nce, normalized_patches, take
from models.omnisat import patchify

BANDS = {"radar": 2, "optical": 3}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def toy(radar=2, optical=3, decoder=False):
    """4 x 4 patches of 4 x 4 pixels, 32 numbers a token."""
    return CROMA(radar, optical, width=1 / 12, depth=2, side=16, patch=4, decoder=decoder).double()


def images(batch=3):
    return {sensor: torch.randn(batch, bands, 16, 16, dtype=torch.float64) for sensor, bands in BANDS.items()}


def pretrain(model, x, masks):
    """The terms of the loss, and by name what goes into the decoder's transformer and what the decoder gives."""
    seen = {}
    hooks = [model.decoder.transformer.register_forward_pre_hook(lambda module, inputs: seen.update(filled=inputs[0])),
             model.cross_encoder.register_forward_hook(lambda module, inputs, output: seen.update(fused=output)),
             model.decoder.register_forward_hook(lambda module, inputs, output: seen.update(predictions=output))]
    loss, terms = model.pretrain_loss(x["radar"], x["optical"], masks)
    for hook in hooks:
        hook.remove()
    return loss, terms, seen


def assert_same(value, expected, inputs):
    """Same value, same gradients."""
    weight = torch.randn_like(value)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(torch.autograd.grad((value * weight).sum(), inputs),
                               torch.autograd.grad((expected * weight).sum(), inputs))


def test_parameter_counts_are_the_official_ones():
    """Official configuration, with the head of 15 and 18 classes: TreeSatAI has 3 and 12 bands, PASTIS-HD 12 and 40."""
    def count(*bands, **options):
        with torch.device("meta"):
            return sum(p.numel() for p in CROMA(*bands, **options).parameters()) / 1e6
    for classes, radar, optical, counts in ((15, 3, 12, [50.3, 11.9, 22.8, 48.8]),
                                            (18, 12, 40, [51.8, 12.1, 23.5, 49.8])):
        head = 385 * classes / 1e6
        assert [round(count(radar, optical, decoder=True), 1), round(count(radar) + head, 1),
                round(count(0, optical) + head, 1),
                round(count(radar, optical) + head, 1)] == counts


@pytest.mark.parametrize("heads", [8, 16])
def test_alibi_is_its_definition(heads):
    """Press et al., 2022: slopes 2^(-8/A), its square, ...; distances between the patches of a query and a key, of
    other grids too.
    """
    places, others = torch.randint(15, (2, 5, 2)).double(), torch.randint(15, (2, 7, 2)).double()
    value = alibi(places, others, heads)
    assert value.shape == (2, heads, 5, 7)
    for b in range(2):
        for i in range(5):
            for j in range(7):
                distance = math.dist(places[b, i], others[b, j])
                expected = [-distance * (2 ** (-8 / heads)) ** (h + 1) for h in range(heads)]
                torch.testing.assert_close(value[b, :, i, j], torch.tensor(expected, dtype=torch.float64))
    # row, column: 5 patches away, and itself
    by_hand = alibi(torch.zeros(1, 1, 2), torch.tensor([[[3., 4.], [0., 0.]]]), 8)
    assert by_hand[0, :2, 0].tolist() == [[-2.5, 0], [-1.25, 0]]


def test_bias_of_visible_patches_is_that_of_their_places():
    """Of all patches, the rows and columns that are visible; in cross attention rows of the radar's and columns of the
    optical ones.
    """
    model = toy()
    every = alibi(model.places, model.places, 16)[0]
    masks = model.draw_masks(3)
    rows, columns = (masks[sensor]["visible"] for sensor in BANDS)
    value = alibi(take(model.places, rows), take(model.places, columns), 16)
    for b in range(3):
        torch.testing.assert_close(value[b], every[:, rows[b]][:, :, columns[b]])


@pytest.mark.parametrize("cross", [False, True])
def test_attention_is_its_definition(cross):
    """softmax_j of q_i . k_j / sqrt(D/A) + bias, head by head, over what is attended to."""
    attention, heads, size = Attention(8, 4).double(), 4, 2
    x, bias = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True), torch.randn(2, heads, 3,
                                                                                         5 if cross else 3).double()
    context = torch.randn(2, 5, 8, dtype=torch.float64, requires_grad=True) if cross else None
    rows, inputs = [], [x, *attention.parameters()] + ([context] if cross else [])
    for b in range(2):
        queries, keys = attention.norm(x[b]), attention.norm(context[b] if cross else x[b])
        q = attention.query(queries).view(-1, heads, size)
        k, v = attention.key_value(keys).view(-1, 2, heads, size).unbind(1)
        for i in range(3):
            pieces = []
            for h in range(heads):
                weight = [torch.exp(q[i, h] @ k[j, h] / size ** 0.5 + bias[b, h, i, j]) for j in range(len(keys))]
                pieces.append(sum(weight[j] / sum(weight) * v[j, h] for j in range(len(keys))))
            rows.append(attention.out(torch.cat(pieces)))
    assert_same(attention(x, bias, context), torch.stack(rows).view(2, 3, 8), inputs)


def test_cross_encoder_attends_to_itself_then_to_the_context():
    """Section 3: in each block self-attention, cross attention and the feed-forward network, each residual; a last
    norm.
    """
    transformer = Transformer(32, 2, 16, cross=True).double()
    x, context, places, others = (torch.randn(2, n, d).double() for n, d in ((3, 32), (5, 32), (3, 2), (5, 2)))
    expected = x
    for block in transformer.blocks:
        expected = expected + block.attention(expected, alibi(places, places, 16))
        expected = expected + block.cross(expected, alibi(places, others, 16), context)
        expected = expected + block.feed_forward(expected)
    torch.testing.assert_close(transformer(x, places, context, others), transformer.norm(expected))


def test_places_are_known_by_distance_alone():
    """A mirror image keeps all distances and so the vector; patches in any other order do not."""
    model, x = toy(), images()
    grid = torch.arange(16).view(4, 4)
    for order, kept in ((grid.flip(1), True), (grid.t(), True), (torch.randperm(16).view(4, 4), False)):
        moved = {sensor: patchify(value, 4)[:, order.flatten()].unflatten(1, (4, 4)).permute(0, 3, 1, 4, 2,
                                                                                             5).flatten(4).flatten(2, 3)
                 for sensor, value in x.items()}
        for sensors in (["radar"], ["optical"], ["radar", "optical"]):
            difference = (model(**{s: moved[s] for s in sensors}) - model(**{s: x[s] for s in sensors})).abs().max()
            assert difference < 1e-10 if kept else difference > 1e-4


def test_vectors_are_those_of_the_paper():
    """One sensor: GAP-FFN of the mean token; both: mean of the radar's tokens that attended to the optical ones."""
    model, x = toy(), images()
    radar, optical = model.encode("radar", x["radar"]), model.encode("optical", x["optical"])
    assert radar.shape == optical.shape == (3, 16, 32)
    torch.testing.assert_close(model(radar=x["radar"]), model.vectors["radar"](radar.sum(1) / 16))
    torch.testing.assert_close(model(optical=x["optical"]), model.vectors["optical"](optical.sum(1) / 16))
    joint = model.cross_encoder(radar, model.places, optical, model.places)
    torch.testing.assert_close(model(**x), joint.sum(1) / 16)
    for sensor in BANDS:                                                                  # the joint vector sees each
        assert (model(**x | {sensor: images()[sensor]}) - model(**x)).abs().max() > 1e-3


def test_only_visible_patches_are_encoded():
    """In any order they have the same tokens; other patches change neither tokens nor predictions."""
    model, x = toy(decoder=True), images()
    order = torch.stack([torch.randperm(16) for _ in range(3)])
    for sensor in BANDS:
        torch.testing.assert_close(model.encode(sensor, x[sensor], order), take(model.encode(sensor, x[sensor]), order))
    masks = model.draw_masks(3)
    _, _, before = pretrain(model, x, masks)
    changed = {}
    for sensor, value in x.items():
        patches = patchify(value, 4).scatter(1,
                                             masks[sensor]["masked"][:, :, None, None,
                                                                     None].expand(-1, -1, BANDS[sensor], 4, 4), 7.)
        changed[sensor] = patches.unflatten(1, (4, 4)).permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
        assert (changed[sensor] != value).double().mean() == 0.75
    _, _, after = pretrain(model, changed, masks)
    torch.testing.assert_close(after, before)


def sinusoids_at(row, column, dim):
    """Base 10,000, a quarter of the numbers each: sines, cosines of the column, then of the row (He et al., 2022)."""
    rates = [1 / 10000 ** (i / (dim // 4)) for i in range(dim // 4)]
    numbers = [f(at * rate) for at in (column, row) for f in (math.sin, math.cos) for rate in rates]
    return torch.tensor(numbers, dtype=torch.float64)


def test_decoder_sees_fused_tokens_at_the_radars_patches():
    """Everywhere else the mask token. Places are fixed sinusoids, no ALiBi; each sensor's masked patches come out."""
    model = toy(decoder=True)
    masks = model.draw_masks(3)
    _, _, seen = pretrain(model, images(), masks)
    assert seen["filled"].shape == (3, 16, 24) and seen["fused"].shape == (3, 4, 32)
    for b in range(3):
        for at, patch in enumerate(masks["radar"]["visible"][b].tolist()):
            expected = model.decoder.embed(seen["fused"][b, at]) + sinusoids_at(patch // 4, patch % 4, 24)
            torch.testing.assert_close(seen["filled"][b, patch], expected, rtol=0, atol=1e-6)
        for patch in masks["radar"]["masked"][b].tolist():
            expected = model.decoder.mask_token + sinusoids_at(patch // 4, patch % 4, 24)
            torch.testing.assert_close(seen["filled"][b, patch], expected, rtol=0, atol=1e-6)
    (block,), x = model.decoder.transformer.blocks, seen["filled"]
    x = x + block.attention(x, torch.zeros(1, 8, 16, 16).double())                        # no bias on any score
    decoded = model.decoder.transformer.norm(x + block.feed_forward(x))
    for sensor, prediction in seen["predictions"].items():
        torch.testing.assert_close(prediction, model.decoder.outs[sensor](take(decoded, masks[sensor]["masked"])))


def test_info_nce_is_its_definition():
    """Each tile among all tiles, radar to optical and optical to radar, the mean of both."""
    a, b = (torch.randn(4, 6, dtype=torch.float64, requires_grad=True) for _ in range(2))
    log_scale = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    terms = []
    for x, y in ((a, b), (b, a)):
        for i in range(4):
            match = [torch.exp(log_scale.exp() * (x[i] @ y[j]) / (x[i].norm() * y[j].norm())) for j in range(4)]
            terms.append(-torch.log(match[i] / sum(match)))
    assert_same(info_nce(a, b, log_scale), sum(terms) / 8, [a, b, log_scale])


def test_contrast_is_of_the_projected_vectors():
    """Of the visible patches' tokens; the scale begins at 1 / 0.07."""
    model, x = toy(decoder=True), images()
    masks = model.draw_masks(3)
    _, terms, _ = pretrain(model, x, masks)
    a, b = (model.projections[sensor](
        model.vectors[sensor](model.encode(sensor, x[sensor], masks[sensor]["visible"]).mean(1)))
            for sensor in BANDS)
    torch.testing.assert_close(terms["contrastive"],
                               info_nce(a, b, torch.tensor(math.log(1 / 0.07), dtype=torch.float64)))


def test_reconstruction_is_of_masked_patches_normalised():
    """Pixel by pixel: targets have mean 0, unbiased variance 1 in each patch; both sensors' mean errors are added."""
    model, x = toy(decoder=True), {sensor: 5 + 3 * value for sensor, value in images().items()}
    masks = model.draw_masks(3)
    loss, terms, seen = pretrain(model, x, masks)
    expected = 0
    for sensor, bands in BANDS.items():
        errors = []
        for b in range(3):
            for at, patch in enumerate(masks[sensor]["masked"][b].tolist()):
                row, column = 4 * (patch // 4), 4 * (patch % 4)
                target = x[sensor][b, :, row:row + 4, column:column + 4]
                target = (target - target.mean()) / target.std(correction=1)
                prediction = seen["predictions"][sensor][b, at].view(bands, 4, 4)
                errors += [(prediction[c, i, j] - target[c, i, j]) ** 2 for c in range(bands) for i in range(4)
                           for j in range(4)]
        assert len(errors) == 3 * 12 * bands * 16
        expected += sum(errors) / len(errors)
    # of the 1e-6 added to variances
    torch.testing.assert_close(terms["reconstruction"], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loss, terms["contrastive"] + terms["reconstruction"])
    assert (normalized_patches(torch.full((1, 2, 8, 8), 3.), 4) == 0).all()                # a constant patch


def test_masks():
    """Three quarters of each tile's patches, uniformly, independent for sensors and tiles, by a seed, on the CPU."""
    model = CROMA(3, 12, width=1 / 24, depth=1, decoder=True)
    masks = model.draw_masks(400, torch.Generator().manual_seed(5))
    is_visible = {}
    for sensor in BANDS:
        visible, masked = masks[sensor]["visible"], masks[sensor]["masked"]
        assert visible.shape == (400, 56) and masked.shape == (400, 169)
        assert (torch.cat([visible, masked], 1).sort(1).values == torch.arange(225)).all()
        is_visible[sensor] = torch.zeros(400, 225).scatter(1, visible, 1)
        assert (is_visible[sensor].mean(0) - 56 / 225).abs().max() < 0.1                   # 4.6 standard deviations
    share = (56 / 225) ** 2
    assert (is_visible["radar"] * is_visible["optical"]).mean() == pytest.approx(share, abs=0.01)
    for value in is_visible.values():                                                      # neighbouring tiles
        assert (value[1:] * value[:-1]).mean() == pytest.approx(share, abs=0.01)
    again, other = (model.draw_masks(400, torch.Generator().manual_seed(number)) for number in (5, 6))
    torch.testing.assert_close(again, masks)
    assert not torch.equal(other["radar"]["visible"], masks["radar"]["visible"])


def without_gradient(model):
    return {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}


def test_pretraining_trains_all_also_in_bfloat16():
    model = toy(decoder=True).float()
    x = {sensor: value.float() for sensor, value in images(4).items()}
    with torch.autocast("cpu", torch.bfloat16):
        loss, _, _ = pretrain(model, x, model.draw_masks(4))
    loss.backward()
    assert without_gradient(model) == set()
    one = {sensor: value[:1] for sensor, value in x.items()}
    loss, terms, _ = pretrain(model, one, model.draw_masks(1))
    assert loss.isfinite() and terms["contrastive"].item() == pytest.approx(0, abs=1e-6)    # no other tile


@pytest.mark.parametrize("sensors", [["radar"], ["optical"], ["radar", "optical"]])
def test_fine_tuning_loads_by_name_and_trains_what_it_uses(sensors):
    """Each model takes all of its weights from a pretrained one; of both sensors all is used but the two GAP-FFNs."""
    pretrained, model = toy(decoder=True), toy(*(bands if sensor in sensors else 0 for sensor, bands in BANDS.items()))
    left = model.load_state_dict(pretrained.state_dict(), strict=False)
    assert left.missing_keys == [] and any(key.startswith("decoder.") for key in left.unexpected_keys)
    x = {sensor: value for sensor, value in images().items() if sensor in sensors}
    vector = model(**x)
    assert vector.shape == (3, 32)
    torch.testing.assert_close(vector, pretrained(**x))
    (vector ** 3).sum().backward()
    unused = {name for name, _ in model.named_parameters() if name.startswith("vectors.") and len(sensors) == 2}
    assert without_gradient(model) == unused


def test_tiles_are_apart():
    """A tile's vector, fused tokens and predictions do not depend on the others; nothing is drawn in forward."""
    model, x = toy(decoder=True), images()
    masks = model.draw_masks(3)
    _, _, seen = pretrain(model, x, masks)
    for b in range(3):
        tile = {sensor: value[b:b + 1] for sensor, value in x.items()}
        for inputs, every in ((tile, x), *(({s: tile[s]}, {s: x[s]}) for s in BANDS)):
            torch.testing.assert_close(model(**inputs), model(**every)[b:b + 1])
        own = {sensor: {name: index[b:b + 1] for name, index in mask.items()} for sensor, mask in masks.items()}
        _, _, alone = pretrain(model, tile, own)
        for sensor in BANDS:
            torch.testing.assert_close(alone["predictions"][sensor], seen["predictions"][sensor][b:b + 1])


def test_width_keeps_heads_whole():
    for width, dim, inner in ((1, 384, 256), (0.25, 96, 64), (0.01, 16, 8)):
        with torch.device("meta"):
            model = CROMA(3, 12, width=width, depth=1, decoder=True)
        assert model.dim == dim and model.decoder.mask_token.shape == (inner,)
        assert [len(t.blocks) for t in (model.encoders["optical"].transformer, model.cross_encoder)] == [1, 1]


def test_what_does_not_fit_is_refused():
    for options, message in (({}, "give the bands"), ({"radar_bands": 2, "decoder": True}, "pretraining needs"),
                             ({"radar_bands": 2, "side": 100}, "100 x 100 pixels cannot be cut into patches of 8")):
        with pytest.raises(ValueError, match=message):
            CROMA(**options)
    model, x = toy(2, 0), images()
    with pytest.raises(ValueError, match="no optical encoder"):
        model(**x)
    with pytest.raises(ValueError, match="give radar images"):
        model()
    for shape in ((1, 3, 16, 16), (1, 2, 16, 20)):
        with pytest.raises(ValueError, match="radar images are"):
            model.encode("radar", torch.zeros(shape))


def test_blocks_add_up_in_the_weights_type():
    """Under autocast products are in bfloat16, what goes from block to block is not."""
    model, types = toy().float(), []
    for encoder in model.encoders.values():
        encoder.transformer.blocks[0].register_forward_pre_hook(lambda _, inputs: types.append(inputs[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        model(**{sensor: x.float() for sensor, x in images().items()})
    assert types == [torch.float32] * 2
