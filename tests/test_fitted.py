"""The two methods that are fitted at once, against the libraries, naive loops, and what must survive a checkpoint."""
import lightgbm
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from models.compared.lightgbm import LightGBM
from models.compared.mosaiks import MOSAIKS, near, whitening, zoom

KINDS = ["lightgbm", "mosaiks"]
RARE, COMMON = 1, 2               # of scene's four classes the one that no tile has, and the one that all have


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)                          # for so little, more would only wait for each other
    yield
    torch.set_num_threads(threads)


def scene(tiles=300):
    """Tiles of 6 x 6 pixels: class 0 is bright in band 0, 3 is rough in band 1; no tile has RARE, all have COMMON."""
    x = torch.randn(tiles, 2, 6, 6)
    y = torch.rand(tiles, 4) < 0.4
    y[:, RARE], y[:, COMMON] = False, True
    x[:, 0] += 2 * y[:, 0, None, None]
    x[:, 1] *= 1 + 2 * y[:, 3, None, None]
    return x, y


def fresh(kind):
    return LightGBM({"a": 2}, 4) if kind == "lightgbm" else MOSAIKS(2, 4, filters=12)


def fitted(kind, x, y, seed=0):
    """As finetune.py does it."""
    model = fresh(kind)
    if kind == "mosaiks":
        model.prepare(x, seed)
    model.fit(model.features({"a": x}).numpy(), y.numpy(), seed)
    return model


# Both

@pytest.mark.parametrize("kind", KINDS)
def test_rule_is_learned(kind):
    """On new tiles, decisions by sigmoid > 0.5; a class that no tile or every tile had is predicted so, by finite
    logits.
    """
    model = fitted(kind, *scene())
    x, y = scene(200)
    logits = model({"a": x})
    assert logits.shape == (200, 4) and logits.dtype == torch.float32 and logits.isfinite().all()
    right = ((logits.sigmoid() > 0.5) == y).float().mean(0)
    assert right[0] > 0.9 and right[3] > 0.8 and right[RARE] == right[COMMON] == 1    # always "no": 0.6


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoint_gives_the_same_logits(kind, tmp_path):
    """Tensors only, loaded strictly into a new module, which was not told how many tiles it was fitted on."""
    x, y = scene(60)
    model = fitted(kind, x, y)
    torch.save({"method." + name: value for name, value in model.state_dict().items()}, tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert all(torch.is_tensor(value) for value in state.values())
    again = torch.nn.ModuleDict({"method": fresh(kind)})
    again.load_state_dict(state)
    assert torch.equal(again["method"]({"a": x}), model({"a": x}))
    for name in state:
        with pytest.raises(RuntimeError, match=f'Missing key.*{name}'):
            torch.nn.ModuleDict({"method": fresh(kind)}).load_state_dict({key: state[key] for key in state
                                                                          if key != name})
    empty = fresh(kind)
    empty.load_state_dict(fresh(kind).state_dict())
    with pytest.raises(RuntimeError, match="after fit"):
        empty({"a": x})


@pytest.mark.parametrize("kind", KINDS)
def test_fit_is_deterministic(kind):
    """The same bytes with one and two threads. Another seed: other filters, and the same trees."""
    (x, y), states = scene(60), []
    for number in (1, 2):
        torch.set_num_threads(number)
        states.append(fitted(kind, x, y).state_dict())
        assert torch.get_num_threads() == number
    one, two = states
    assert list(one) == list(two) and all(torch.equal(one[name], two[name]) for name in one)
    one, two = (fitted(kind, x, y, seed)({"a": x}) for seed in (0, 1))
    assert torch.equal(one, two) == (kind == "lightgbm")


@pytest.mark.parametrize("kind", KINDS)
def test_tiles_are_not_mixed(kind):
    x, y = scene(60)
    model = fitted(kind, x, y)
    together = model({"a": x})
    for i in range(0, 60, 7):
        assert torch.equal(model({"a": x[i:i + 1]}), together[i:i + 1])


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_arguments_are_refused(kind):
    x, y = scene(60)
    model = fresh(kind)
    with pytest.raises(RuntimeError, match="after fit"):
        model({"a": x})
    model = fitted(kind, x, y)
    with pytest.raises(ValueError, match="3 bands, the model is for 2"):
        model({"a": torch.zeros(1, 3, 6, 6)})
    features = model.features({"a": x}).numpy()
    for labels in (y[1:], y[:, 1:]):
        with pytest.raises(ValueError, match="labels"):
            model.fit(features, labels.numpy(), 0)


# LightGBM

def test_lightgbm_is_the_library():
    """One binary model a class with the library's defaults, nothing else: its raw scores are the logits."""
    x, y = scene()
    model = fitted("lightgbm", x, y)
    rows, logits = model.features({"a": x}).numpy(), model({"a": x})
    for k in (0, 3):
        alone = lightgbm.LGBMClassifier(random_state=0, deterministic=True, force_row_wise=True, n_jobs=1, verbose=-1)
        probability = alone.fit(rows, y[:, k].numpy()).predict_proba(rows)[:, 1]
        np.testing.assert_allclose(logits[:, k].double().sigmoid(), probability, rtol=1e-6)


def test_lightgbm_features_by_hand():
    """Small images as they are with mean and deviation; large ones by statistics; vectors unchanged; in the order of
    the sensors.
    """
    a = 10 * torch.rand(3, 2, 6, 6)
    # quantiles are pixels: 1,680 / 20 is whole
    b = torch.rand(3, 1, 41, 41)
    vector = torch.rand(3, 5)
    features = LightGBM({"b": 1, "vector": 5, "a": 2}, 4).features({"a": a, "b": b, "vector": vector}).double().numpy()
    assert features.shape == (3, 11 + 5 + 72 + 4)
    for i in range(3):
        small, large = a[i].double().numpy(), b[i, 0].double().numpy()
        blocks = np.array([[large[r:r + 4, c:c + 4].mean() for c in range(0, 40, 4)] for r in range(0, 40, 4)])
        wanted = [large.mean(), large.std(), *np.quantile(large, [0.05, 0.25, 0.5, 0.75, 0.95])]
        for image in (large, blocks):
            wanted += [abs(image[1:] - image[:-1]).mean(), abs(image[:, 1:] - image[:, :-1]).mean()]
        wanted = [*wanted, *vector[i].tolist(), *small.flatten(), *small.mean((1, 2)), *small.std((1, 2))]
        np.testing.assert_allclose(features[i], wanted, rtol=1e-5)


def test_lightgbm_checkpoint_of_other_classes_is_refused():
    with pytest.raises(ValueError, match="trees of 4 classes, the model has 5"):
        LightGBM({"a": 2}, 5).load_state_dict(fitted("lightgbm", *scene(60)).state_dict())


# MOSAIKS

def test_whitening_gives_the_identity_as_covariance():
    """ZCA: symmetric too, so that whitened patches look like patches."""
    patches = torch.randn(5000, 12, dtype=torch.float64) @ torch.randn(12, 12, dtype=torch.float64).mul(3) + 7
    mean, whiten = whitening(patches)
    white = (patches - mean) @ whiten
    # the ridge's part
    torch.testing.assert_close(white.t() @ white / 5000, torch.eye(12).double(), rtol=0, atol=0.02)
    torch.testing.assert_close(white.mean(0), torch.zeros(12).double())
    torch.testing.assert_close(whiten, whiten.t())
    constant = torch.cat([patches, torch.ones(5000, 1).double()], 1)          # a band without variance is no problem
    mean, whiten = whitening(constant)
    assert ((constant - mean) @ whiten).isfinite().all()


def test_mosaiks_filters_are_whitened_patches_of_training_tiles():
    """Against loops over tiles, places and filters: means over the places of relu(answer - 1) and relu(1 - answer);
    the answer is <filter, (patch - mean) W>; 256 filters, 512 features."""
    x, model = scene(20)[0], MOSAIKS(2, 4)
    model.prepare(x, 0)
    assert model.weight.shape == (256, 2, 3, 3) and model.features({"a": x}).shape == (20, 512)
    big = F.interpolate(x, (10, 10), mode="bilinear", align_corners=False).double()
    # all there are
    patches = torch.stack([tile[:, r:r + 3, c:c + 3].flatten() for tile in big for r in range(8) for c in range(8)])
    mean, whiten = whitening(patches)
    chosen = (patches - mean) @ whiten
    chosen = chosen / chosen.norm(dim=1, keepdim=True)
    # each filter is one of the patches; the model's own whitening is of patches drawn from these, so it is not the same
    # to the digit
    filters = F.normalize(model.weight.double().flatten(1) @ torch.linalg.inv(whiten))
    likeness, which = (filters @ chosen.t()).max(1)
    assert likeness.min() > 0.99 and len(set(which.tolist())) > 200           # 256 draws of 1,280: 232 different ones
    features = model.features({"a": x})
    for i in (0, 19):
        for k in (0, 255):
            answers = [float(chosen[which[k]] @ ((patch - mean) @ whiten)) - 1
                       for patch in patches[64 * i:64 * (i + 1)]]
            assert features[i, k] == pytest.approx(sum(max(0, answer) for answer in answers) / 64, abs=0.03)
            answers = [float((model.weight[k] * patch.view(2, 3, 3)).sum() + model.bias[k])
                       for patch in patches[64 * i:64 * (i + 1)]]
            assert features[i, k] == pytest.approx(sum(max(0, answer) for answer in answers) / 64, abs=1e-5)
            assert features[i, 256 + k] == pytest.approx(sum(max(0, -answer) for answer in answers) / 64, abs=1e-5)


def test_answers_of_filters_are_on_one_scale():
    """Whatever the bands' scales: variance 1 over the training patches, so no filter rules the distances."""
    x, model = scene(200)[0], MOSAIKS(2, 4, filters=50)
    model.prepare(x * torch.tensor([1., 20.])[:, None, None] + 5, 0)
    answers = F.conv2d(zoom(x * torch.tensor([1., 20.])[:, None, None] + 5), model.weight, model.bias)
    torch.testing.assert_close(answers.var((0, 2, 3)), torch.ones(50), rtol=0, atol=0.15)
    torch.testing.assert_close(answers.mean((0, 2, 3)), -torch.ones(50), rtol=0, atol=0.1)


def test_zoom_is_the_sources():
    assert zoom(torch.zeros(1, 2, 20, 20)).shape == (1, 2, 34, 34) and zoom(torch.zeros(1, 2, 6, 6)).shape == (1, 2, 10,
                                                                                                               10)


def test_neighbours_are_sklearns():
    """Shares of the 5 nearest by Euclidean distance of features standardised on the training tiles, as scikit-learn."""
    (x, y), new = scene(), scene(100)[0]
    y ^= torch.rand(y.shape) < 0.2                                            # so that neighbours differ
    model = fitted("mosaiks", x, y)
    logits = model({"a": new})
    scaler = StandardScaler().fit(model.features({"a": x}).numpy())
    library = KNeighborsClassifier(5).fit(scaler.transform(model.features({"a": x}).numpy()), y[:, [0, 3]].numpy())
    rows = scaler.transform(model.features({"a": new}).numpy())
    wanted = torch.stack([torch.from_numpy(p[:, 1]) for p in library.predict_proba(rows)], 1)
    torch.testing.assert_close(logits[:, [0, 3]].sigmoid().double(), wanted, rtol=0, atol=2e-6)
    assert len(wanted.unique()) == 6                                          # 0, 1, ... 5 of 5
    assert (logits[:, [0, 3]].sigmoid().numpy() > 0.5).tolist() == library.predict(rows).tolist()


def test_features_that_say_nothing_weigh_nothing():
    """One that is the same for all training tiles, but for its last digit, decides nothing; all others weigh alike."""
    model, x = fresh("mosaiks"), torch.rand(60, 24) * torch.logspace(-3, 3, 24)
    x[:, 5], x[:, 6] = 7., 0.
    x[::2, 5] = torch.nextafter(torch.tensor(7.), torch.tensor(8.))
    model.fit(x, torch.rand(60, 4) < 0.5, 0)
    spread = model.tiles.std(0, correction=0)
    assert spread[5] < 1e-5 and spread[6] == 0
    torch.testing.assert_close(spread[[k for k in range(24) if k not in (5, 6)]], torch.ones(22))


def test_neighbours_are_told_apart_however_alike_they_are():
    """Tiles on a line, 0.0001 of a standard deviation from one to the next: the nearest are the two on either side."""
    x, y = scene(60)
    model, line = fitted("mosaiks", x, y), torch.arange(41).view(-1, 1, 1, 1) * 1e-4 * torch.randn(2, 6, 6) + x[:1]
    features = model.features({"a": line})
    for i in (10, 30):
        model.fit(features, (torch.arange(41)[:, None] - i).abs().expand(41, 4) <= 2, 0)
        assert (model({"a": line[i:i + 1]}).sigmoid() > 0.99).all()


def test_equal_distances_go_to_the_first():
    distances = torch.tensor([[3., 1, 3, 3, 2], [0, 0, 0, 0, 0], [5, 4, 3, 2, 1]])
    assert near(distances, 3).int().tolist() == [[1, 1, 0, 0, 1], [1, 1, 1, 0, 0], [0, 0, 1, 1, 1]]
    x, y = torch.randn(1, 2, 6, 6).expand(40, 2, 6, 6), torch.arange(40)[:, None].expand(40, 4) < 3    # equal tiles
    assert (fitted("mosaiks", torch.cat([scene(9)[0], x]), torch.cat([scene(9)[1], y]))({"a": x}).sigmoid() > 0.5).all()


def test_mosaiks_needs_filters_and_five_tiles():
    x, y = scene(60)
    with pytest.raises(RuntimeError, match="after prepare"):
        fresh("mosaiks").features({"a": x})
    with pytest.raises(ValueError, match="3 bands, the model is for 2"):
        fresh("mosaiks").prepare(torch.zeros(60, 3, 6, 6), 0)
    with pytest.raises(ValueError, match="at least 5 tiles"):
        fitted("mosaiks", x[:4], y[:4])
    state = fitted("mosaiks", x, y).state_dict()
    for other in (MOSAIKS(3, 4, filters=12), MOSAIKS(2, 5, filters=12), MOSAIKS(2, 4, filters=13)):
        with pytest.raises(RuntimeError, match="size mismatch"):
            other.load_state_dict(state)
