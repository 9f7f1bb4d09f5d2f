"""Published weights that some rows of the tables start from: where they lie, where they come from, how they are read.
"""
import hashlib
import io
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple
from urllib.request import urlopen

import torch
from tqdm import tqdm

from utils.errors import UserError
from utils.files import check_pointer, written_whole

FOLDER = Path(__file__).parent.parent / "weights"
BLOCK = 2 ** 20    # bytes read at once


class Weights(NamedTuple):
    """A published file: its name in the folder, its url, the first hex digits of its sha256, and in words what it is.
    """
    file: str
    url: str
    sha256: str    # "" where none was at hand: then only what is in the file is checked
    about: str


TABLE = {
    "resnet34": Weights("resnet34-b627a593.pth",
                        "https://download.pytorch.org/models/resnet34-b627a593.pth", "b627a593",
                        "ResNet-34, ImageNet (torchvision, IMAGENET1K_V1)"),
    "resnet50": Weights("resnet50-0676ba61.pth",
                        "https://download.pytorch.org/models/resnet50-0676ba61.pth", "0676ba61",
                        "ResNet-50, ImageNet (torchvision, IMAGENET1K_V1)"),
    "dofa": Weights("dofa_base_patch16_224-a0275954.pth",
                    "https://hf.co/torchgeo/dofa/resolve/b8db318b64a90b9e085ec04ba8851233c5893666/"
                    "dofa_base_patch16_224-a0275954.pth",
                    "", "DOFA ViT-B after 100 epochs (torchgeo's copy of DOFA_ViT_base_e100.pth)"),
    "presto": Weights("presto_default_model.pt",
                      "https://github.com/nasaharvest/presto/raw/main/data/default_model.pt", "559c9d76",
                      "PRESTO (nasaharvest/presto, default_model.pt)"),
}


def find(name, folder=None):
    """The Path of weights of TABLE; folder: FOLDER unless given. Errors: UserError that says where they belong and how
    to get them.
    """
    weights = TABLE[name]
    path = Path(folder or FOLDER) / weights.file
    if not path.is_file():
        raise UserError(f"{path}: no such file, it is to hold {weights.about}; python prepare.py weights downloads it "
                        f"from {weights.url}"
                        + (f" (sha256 {weights.sha256}...)" if weights.sha256 else ""))
    return path


def load(name, folder=None):
    """The state dict of weights of TABLE, on the CPU. Errors: UserError if they are missing, cut off or not the
    published ones.
    """
    path = find(name, folder)
    check_pointer(path)
    content = path.read_bytes()
    check(path, hashlib.sha256(content), TABLE[name])
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:    # damaged archives raise many kinds
        raise UserError(f"{path}: cannot be read as weights ({type(error).__name__}): cut off, or another file; python "
                        "prepare.py weights downloads it again") from error
    if not isinstance(state, dict) or not all(torch.is_tensor(value) for value in state.values()):
        raise UserError(f"{path}: holds other things than a dict of tensors")
    return state


def check(source, digest, weights):
    """Errors: UserError if a sha256 of what was read from the source is not that of the published weights."""
    if not digest.hexdigest().startswith(weights.sha256):
        raise UserError(f"{source}: its sha256 is {digest.hexdigest()[:8]}..., that of {weights.about} is "
                        f"{weights.sha256}...: cut off, or another file; python prepare.py weights downloads it again")


def fetch(name, folder=None):
    """Download weights of TABLE, unless they are there and whole. Returns their Path.

    Errors: UserError if they cannot be had, or what comes is not the published file; then what was there before stays.
    """
    weights = TABLE[name]
    path = Path(folder or FOLDER) / weights.file
    if path.is_file():
        with suppress(UserError):
            load(name, folder)
            return path
    digest = hashlib.sha256()
    with written_whole(path, "wb") as file:
        for block in download(weights.url, path):
            digest.update(block)
            file.write(block)
        check(weights.url, digest, weights)
    load(name, folder)
    return path


def download(url, path):
    """The blocks of bytes of a file, with a bar; path: where it belongs. Errors: UserError if the url cannot be read
    to its end.
    """
    try:
        with urlopen(url, timeout=60) as response:
            size, done = int(response.headers["Content-Length"] or 0), 0
            with tqdm(total=size or None, desc=path.name, unit="B", unit_scale=True) as bar:
                while block := response.read(BLOCK):
                    yield block
                    done += len(block)
                    bar.update(len(block))
            if done < size:
                raise OSError(f"it ended after {done} of {size} bytes")
    except (OSError, HTTPException) as error:
        raise UserError(f"{url}: cannot be downloaded ({str(error).strip('<>')}); without a network, put it at {path} "
                        "by hand") from error
