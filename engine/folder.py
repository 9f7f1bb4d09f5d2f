"""The folder of a run: taken by one process, gone on with only by the command that began it."""
from engine import checkpoint, distributed
from utils.errors import UserError
from utils.files import lock

# options that may change from one start to the next: they change no weight, or (tiles_at_once, record) only by rounding
FREE = ("data_root", "sensors", "output", "csv", "workers", "tiles_at_once", "save_minutes", "record")
_locks = []    # of the folders that this process trains in, kept until it ends


def open_folder(target, kind, args, rank, **found):
    """Take the folder of a run. Returns its checkpoint (None if it begins), and the options that a later start must
    repeat.

    The folder is taken until this process ends; on several processes rank 0 does it. target: the checkpoint's path.
    found: options as they turned out, in place of those in args.
    Errors: UserError if another process has the folder, or if the run in it was begun with other options.
    """
    def take():
        if rank == 0:
            _locks.append(lock(target.parent / ".lock", "trains there"))
            for half in target.parent.glob(f".{target.name}.*.tmp"):          # written when the run was killed
                half.unlink()
    distributed.first_alone(take)
    settings = {name: value for name, value in vars(args).items() if name not in FREE} | found
    saved = checkpoint.load(target, kind) if target.exists() else None
    if len(set(distributed.gather(saved and saved["sha256"]))) > 1:
        raise UserError(f"{target}: the processes do not see the same checkpoint; it must be on a file system that "
                        "they share", is_told=rank > 0)
    if saved is not None:
        # what runs of before this option did; fine-tuning, whose head and choice of the epoch are others since, cannot
        # go on
        one_pass = {"epoch_steps": 1} if kind == "pretrained" and "epoch_steps" in settings else {}
        before = {"s1": "released"} | one_pass | saved["settings"]
        others = [f"--{name.replace('_', '-')} {before.get(name)}, not {settings.get(name)}"
                  for name in sorted({*before, *settings})
                  if before.get(name) != settings.get(name)]
        if others:
            raise UserError(f"{target} was begun with {', '.join(others)}: repeat these, choose another --output, or "
                            "delete it", is_told=rank > 0)
    return saved, settings
