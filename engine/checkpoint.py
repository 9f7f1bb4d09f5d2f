"""Checkpoints: written whole or not at all, their hash checked, loaded without running anything in them."""
import hashlib
from dataclasses import asdict
from pathlib import Path

import torch

from datasets import own
from datasets.files import misfit
from datasets.sensors import Sensor
from models.methods import build_model
from utils.errors import UserError
from utils.files import check_pointer, written_whole

SCRIPTS = {"pretrained": "pretrain.py", "finetuned": "finetune.py"}    # the kinds of checkpoint, and what writes them


def save(path, checkpoint):
    """Write a dict of tensors, numbers, strings, lists and dicts, and its hash. Errors: UserError if it cannot be
    written.
    """
    with written_whole(path, "wb") as file:
        try:
            torch.save(checkpoint | {"sha256": content_hash(checkpoint)}, file)
        except RuntimeError as error:                                         # torch's, on top of that of a full disk
            raise error.__context__ if isinstance(error.__context__, OSError) else error


def load(path, kind=None):
    """Read a checkpoint of a kind, see SCRIPTS; None takes any. A dataset of one's own is known from then on.

    Errors: UserError that says what is wrong with it.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such checkpoint") from error
    except Exception as error:    # damaged archives raise many kinds
        check_pointer(path)
        raise UserError(f"{path}: cannot be read as a checkpoint ({type(error).__name__}): cut off, or not written by "
                        "these scripts") from error
    found = checkpoint.get("kind", "unknown") if isinstance(checkpoint, dict) else "unknown"
    if found not in SCRIPTS or kind not in (None, found):
        kinds = [f"{name!r}, as {script} writes it" for name, script in SCRIPTS.items() if kind in (None, name)]
        raise UserError(f"{path}: a checkpoint of kind {found!r}, expected {' or '.join(kinds)}")
    kind = found
    if checkpoint.get("sha256") != content_hash(checkpoint):
        raise UserError(f"{path}: its content does not have the hash that was written with it: damaged, or changed "
                        f"since; delete it and run {SCRIPTS[kind]} again")
    if "config" in checkpoint:                                                # words that sensors did not have then
        checkpoint["config"]["sensors"] = [asdict(Sensor(**sensor)) for sensor in checkpoint["config"]["sensors"]]
        own.adopt(checkpoint["dataset"], checkpoint.get("table", checkpoint["config"]["sensors"]), path)
    return checkpoint


def load_finished(path, kind=None):
    """load, of a training that came to its end. Errors: UserError for one that did not."""
    saved = load(path, kind)
    if not saved["finished"]:
        raise UserError(f"{path}: its training stopped in epoch {len(saved['history']) + 1}; run it to its end first")
    return saved


def content_hash(checkpoint):
    """sha256 (64 hex digits) of nested dicts, lists, tensors, numbers and strings, but for an entry "sha256" at the
    top.
    """
    digest = hashlib.sha256()

    def add(value):
        if torch.is_tensor(value):
            value = value.detach().cpu().contiguous()
            digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
            digest.update(value.reshape(-1).view(torch.uint8).numpy())
        elif isinstance(value, dict):
            digest.update(f"dict {len(value)}".encode())
            for key, item in value.items():
                add(key)
                add(item)
        elif isinstance(value, (list, tuple)):
            digest.update(f"list {len(value)}".encode())
            for item in value:
                add(item)
        else:
            digest.update(f"{type(value).__name__} {value!r};".encode())
    add({name: value for name, value in checkpoint.items() if name != "sha256"})
    return digest.hexdigest()


def rebuild(path, checkpoint):
    """The model of a checkpoint with its weights, its sensors as they were when it was trained. path: for the error.

    Errors: UserError for weights of a model that has changed since.
    """
    config = checkpoint["config"]
    model = build_model(config["model"], [Sensor(**sensor) for sensor in config["sensors"]], **config["options"])
    try:
        model.load_state_dict(checkpoint["weights"])
    except RuntimeError as error:                                             # other names or shapes
        raise UserError(f"{path}: its weights are not those of today's {config['model']}; commit "
                        f"{checkpoint['source']['commit']}, which wrote it, reads it ({misfit(error)})") from error
    return model


def start_from(model, pretrained):
    """Load into a model what pretrained checkpoints have for it: all but the heads, which are new.

    pretrained: [(path, checkpoint)]. Of these, what only pretraining needs and what belongs to modalities that the
    model lacks stay unused.
    Errors: UserError if a modality of the model is in none of them, if sizes differ, or if a checkpoint's whole model
    has changed since, what only pretraining needs too: another pretraining would be another method.
    """
    for path, checkpoint in pretrained:
        rebuild(path, checkpoint)
    paths, trained, weights = " and ".join(str(path) for path, _ in pretrained), {}, {}
    for _, checkpoint in pretrained:
        trained |= {sensor["key"]: Sensor(**sensor) for sensor in checkpoint["config"]["sensors"]}
        weights |= checkpoint["weights"]
    for key, sensor in model.sensors.items():
        if key not in trained:
            raise UserError(f"{paths}: pretrained on {', '.join(trained)}, not on {key}")
        if trained[key] != sensor:
            raise UserError(f"{paths}: its {key} is {trained[key]}, here it is {sensor}: pretrained on another dataset")
    wanted = {name: value for name, value in model.state_dict().items() if not name.startswith("head")}
    found = {name: weights.get(name) for name in wanted}
    for name, value in found.items():
        if value is None or value.shape != wanted[name].shape:
            raise UserError(f"{paths}: {name} is {'missing' if value is None else tuple(value.shape)}, today's model "
                            f"has {tuple(wanted[name].shape)}; its options are "
                            f"{pretrained[0][1]['config']['options']}, it was written at commit "
                            f"{pretrained[0][1]['source']['commit']}")
    model.load_state_dict(found, strict=False)


def file_hash(path):
    """sha256 of a file (64 hex digits)."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
