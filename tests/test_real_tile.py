"""The real tile through every stage, at the paper's full size."""
import torch
import torch.nn.functional as F

from datasets.loading import collate
from datasets.sensors import SENSORS
from datasets.treesatai import choose_dates, read_h5, read_vhr
from models.omnisat import OmniSat

STEM = "Abies_alba_1_1005_WEFL_NLF"


def real_batch(real, keys):
    """The tile with at most 50 dates, and a second one: the same turned by 180 degrees."""
    image, series = read_vhr(real / "aerial" / f"{STEM}.tif"), read_h5(real / "sentinel-ts" / f"{STEM}_2020.h5", ["s2", "s1"])
    tiles = []
    for turn in (0, 2):
        tile = {"name": STEM, "label": F.one_hot(torch.tensor(0), 15).float()}
        for key in keys:
            data, days = (image, None) if key == "vhr" else series[key]
            if days is not None:
                chosen = choose_dates(len(days), 50)
                data, tile[f"{key}_dates"] = data[chosen], torch.from_numpy(days[chosen])
            tile[key] = torch.rot90(torch.from_numpy(data), turn, (-2, -1))
        tiles.append(tile)
    return collate(tiles)


def full_model(batch, keys, **options):
    torch.manual_seed(0)
    model = OmniSat([SENSORS["treesatai-ts"][key] for key in keys], **options)
    statistics = {}
    for key in keys:
        x = batch[key].float().transpose(0, -3).flatten(1)
        statistics[key] = {"mean": x.mean(1).tolist(), "std": x.std(1).tolist()}
    model.set_statistics(statistics)
    return model


def test_pretraining_steps_lower_the_loss(real):
    keys = ("vhr", "s2", "s1")
    batch = real_batch(real, keys)
    assert batch["vhr"].shape == (2, 4, 300, 300) and batch["s2"].shape == (2, 50, 10, 6, 6) and batch["s1"].shape == (2, 50, 2, 6, 6)
    model = full_model(batch, keys)
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)
    losses = []
    for _ in range(4):
        loss, terms = model.pretrain_loss(batch, torch.Generator().manual_seed(0))
        losses.append((loss.item(), terms["contrastive"].item()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1][0] < losses[0][0] and losses[-1][1] < losses[0][1]


def test_fine_tuning_steps_and_evaluation(real):
    for keys in (("vhr", "s2", "s1"), ("s2",)):
        batch = real_batch(real, keys)
        model = full_model(batch, keys, num_classes=15)
        optimizer = torch.optim.Adam(model.parameters(), 2e-4)
        losses = []
        for _ in range(3):
            loss = F.binary_cross_entropy_with_logits(model(batch), batch["label"])
            losses.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert losses[-1] < losses[0]
        with torch.no_grad():
            assert model.eval()(batch).shape == (2, 15)
