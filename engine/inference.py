"""A trained model asked about tiles: its checkpoint, the tiles, and a pass over them; for embed.py and predict.py."""
import math

from datasets import open_dataset
from datasets.loading import make_loader
from datasets.sensors import SENSORS, Sensor
from datasets.tiles import MAX_DATES
from engine import checkpoint, distributed, options
from models.methods import METHODS, build_model
from utils.errors import UserError
from utils.numbers import whole
from utils.results import s1_of

SPLITS = "all", "train", "val", "test"
PATCHES, GPU_PATCHES = 576, 4608    # in a forward pass: 16 and 128 tiles of TreeSatAI-TS; more are no faster on a CPU


def add_options(arguments, which):
    """Which checkpoint, which tiles, and how they are read. which: help of --checkpoint."""
    arguments.add_argument("--checkpoint", required=True, metavar="FILE", help=which)
    arguments.add_argument("--data-root", required=True, metavar="DIR",
                           help="folder of the raw files; labels need not be there")
    arguments.add_argument("--split", choices=SPLITS, default="all",
                           help="all: every tile that has files, whatever lists say; the others are those of training "
                                "and need its lists")
    arguments.add_argument("--modalities", default="all", metavar="KEYS",
                           help="of omnisat: see the tiles by these of the checkpoint's sensors only, such as s2,s1; "
                                "files of the others are not needed, and their tokens are masked as in pretraining")
    arguments.add_argument("--workers", type=whole(0), default=4,
                           help="reading processes beside each process; 0 reads in the process itself")
    arguments.add_argument("--pool", type=whole(1), metavar="TILES",
                           help="tiles in a forward pass; results depend on it by rounding only (default: of omnisat "
                                f"as many as have {PATCHES} patches, on a GPU {GPU_PATCHES:,}, of others as in "
                                "training)")


def opened(args, kind=None, check=lambda saved, keys: None):
    """What --checkpoint, --data-root, --split and --modalities name: checkpoint, tiles, model.

    kind: of checkpoint; None takes any. check(checkpoint, keys) is called before tiles are looked for. To be called by
    all processes. Errors: UserError, told once.
    """
    def look():
        saved = checkpoint.load_finished(args.checkpoint, kind)
        keys = chosen_sensors(args.checkpoint, saved, args.modalities)
        check(saved, keys)
        model = model_of(args.checkpoint, saved)
        return saved, open_tiles(args.checkpoint, saved, args.data_root, args.split, keys), model
    return distributed.first_alone(look)


def chosen_sensors(path, saved, text):
    """The keys of --modalities. path: of the checkpoint. Errors: UserError for such as it has not, or cannot do
    without.
    """
    there = [sensor["key"] for sensor in saved["config"]["sensors"]]
    keys = options.chosen_sensors(text, there, path)
    if len(keys) < len(there):
        check_can_lack(saved["config"]["model"], f"--modalities {text}")
    return keys


def check_can_lack(name, option):
    """Errors: UserError for a model that an option would have do without a sensor, unless it masks its tokens."""
    if name != "omnisat":
        raise UserError(f"{option}: {name} cannot do without a sensor that it was trained on, only omnisat can; leave "
                        "the option out")


def open_as_trained(saved, data_root, split, keys, **choice):
    """A split seen by some of a checkpoint's sensors as its training saw it. choice: of datasets.tiles.Choices, where
    it is to be another.
    """
    settings = saved["settings"]
    return open_dataset(saved["dataset"], data_root, split, keys, **{
        "seed": saved["seed"], "parts": settings["parts"], "all_bands": METHODS[saved["config"]["model"]].all_bands,
        "max_cloud": settings["max_cloud"] if "s2" in keys else None, "max_dates": saved.get("max_dates", MAX_DATES),
        "s1": s1_of(saved)} | choice)


def open_tiles(path, saved, data_root, split, keys):
    """The tiles, without labels, as the checkpoint's training saw them. path: of the checkpoint.

    The sensors of a dataset of one's own came along in the checkpoint (engine.checkpoint.load), those of
    datasets/sensors.py are today's. Errors: UserError if these are others than it was trained with, or if a split needs
    a list that is not there, besides those of the reader.
    """
    name, all_bands = saved["dataset"], METHODS[saved["config"]["model"]].all_bands
    for sensor in (Sensor(**sensor) for sensor in saved["config"]["sensors"] if sensor["key"] in keys):
        today = SENSORS.get(name, {}).get(sensor.key)
        if today is None or sensor != (today.with_all_bands() if all_bands else today):
            raise UserError(f"{path}: its {sensor.key} of {name} is {sensor}, datasets/sensors.py has "
                            f"{today or 'no such entry'}; restore the entry that it was trained with")
    tiles = open_as_trained(saved, data_root, split, keys, labelled=False)
    if not tiles.has_list and saved.get("has_list", True):
        raise UserError(f"{tiles.table}: cannot be read, it is not there; --split {split} needs the list that training "
                        "had")
    return tiles


def model_of(path, saved):
    """The checkpoint's model with its weights, in evaluation."""
    config = saved["config"]
    if saved["kind"] == "finetuned" or config["model"] == "omnisat":
        return checkpoint.rebuild(path, saved).eval()
    sensors = [Sensor(**sensor) for sensor in config["sensors"]]    # without what only its pretraining needs
    model = build_model(config["model"], sensors, **config["options"] | {"num_classes": 1})
    checkpoint.start_from(model, [(path, saved)])
    return model.eval()


def pool_of(args, saved, dataset, device):
    """Tiles in a forward pass, --pool or what it is by default."""
    if args.pool:
        return args.pool
    if (name := saved["config"]["model"]) != "omnisat":
        return METHODS[name].pool(saved["dataset"])
    return max(1, (GPU_PATCHES if device.type == "cuda" else PATCHES) // math.prod(dataset.grid))


def batches(dataset, pools, workers, device):
    """Yields a batch for each of some pools, lists of indices, on the device."""
    for batch in make_loader(dataset, pools, workers) if pools else ():
        yield distributed.to_device(batch, device)


def check_finite(values, names, what):
    """Errors: UserError that names the tile of which a value (B, ...) is not finite. what: the value, for the error."""
    is_bad = ~values.flatten(1).isfinite().all(1)
    if is_bad.any():
        raise UserError(f"{names[int(is_bad.int().argmax())]}: {what} is not finite; was the checkpoint trained with "
                        "too high an --lr?")
