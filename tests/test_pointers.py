"""What Git LFS leaves in place of a file is told as such, whatever reads it; errors about other people's files stay
short.
"""
import json

import pytest
import torch

from datasets.files import misfit, read_json, read_npy, read_npz, read_text, read_tif
from datasets.treesatai_h5 import read_h5
from engine import checkpoint
from models.compared.resnet import ResNet, load_imagenet
from models.methods import build_model
from utils import unpack, weights
from utils.errors import UserError

POINTER = ("version https://git-lfs.github.com/spec/v1\noid sha256:"
           "4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n")
READERS = {
    "a.tif": lambda path: read_tif(path, 3), "a.npy": read_npy, "a.npz": read_npz, "labels.csv": read_text,
    "a.geojson": lambda path: read_json(path, "metadata"), "a.h5": lambda path: read_h5(path, ["s2"]),
    "pretrained.pt": lambda path: checkpoint.load(path, "pretrained"),
    "presto_default_model.pt": lambda path: weights.load("presto", path.parent),
}


@pytest.mark.parametrize("name", READERS)
def test_a_pointer_is_named(name, tmp_path):
    path = tmp_path / (name if name != "presto_default_model.pt" else weights.TABLE["presto"].file)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(POINTER)
    with pytest.raises(UserError, match=f"{path.name}: a Git LFS pointer, not the file itself; run `git lfs pull`"):
        READERS[name](path)


def test_a_pointer_in_place_of_a_zip(tmp_path):
    (tmp_path / "aerial.zip").write_text(POINTER)
    _, findings = unpack.unpack(str(tmp_path))
    assert [kind for kind, _,
            _ in findings] == ["broken zip"] and findings[0][1].startswith("a Git LFS pointer, not the file itself")


def test_a_file_about_lfs_is_no_pointer(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"text": "version https://git-lfs"}))
    assert read_json(tmp_path / "a.json", "a text")["text"].endswith("git-lfs")


def test_wrong_weights_are_told_in_one_short_line():
    """Hundreds of names differ; the error names the first of them."""
    state = {f"layer{i}.weight": torch.zeros(1) for i in range(500)}
    with pytest.raises(ValueError) as error:
        load_imagenet(ResNet(50, 3, 2), state, ("R", "G", "B"))
    assert "not the weights of a ResNet-50" in (text := misfit(error.value)) and len(text) < 500
    assert "Unexpected key(s)" in text and " and 497 more" in text
    model = build_model("dofa", [], num_classes=2, dataset="treesatai", width=0.25)
    with pytest.raises((RuntimeError, ValueError)) as error:
        model.load_published(lambda name: state)
    assert len(misfit(error.value)) <= 600
