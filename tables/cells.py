"""The cells that the paper prints, those of a method that it does not know, and what each of them needs."""
from utils.errors import UserError
from utils.results import KEYS, TABLES, key_of, read_cells

MODALITIES = ("all", "s1", "s2", "vhr")    # in the order that the tables show them


def paper_cells(table):
    """Rows of cells.csv, of a table or of all; fig5: those of table 2 with all labels; demo: OmniSat's of TreeSatAI-TS
    in table 2; probe: of each dataset OmniSat's that begins with the pretraining.
    """
    rows = [row for row in read_cells() if row["table"] in TABLES]
    if table == "probe":
        wanted = {"model": "omnisat", "pretraining": "self", "ablation": "none", "modality": "all",
                  "label_percent": "100"}
        return list({row["dataset"]: row for row in reversed(rows) if wanted.items() <= row.items()}.values())[::-1]
    if table == "demo":
        wanted = {"table": "table2", "dataset": "treesatai-ts", "model": "omnisat"}
        return [row for row in rows if wanted.items() <= row.items()]
    if table == "fig5":
        return [row for row in rows if row["table"] == "table2" and row["label_percent"] == "100"]
    return [row for row in rows if table in ("all", row["table"])]


def cells_of(table, name):
    """A method's cells: of one of the paper's those that it prints; of another all places of the table, pretrained or
    not, that its entry fills; of table probe its pretrainings. Errors: UserError if there is none.
    """
    method, cells = method_of({"model": name}), [cell for cell in paper_cells(table) if cell["model"] == name]
    if table == "probe":
        cells = cells or [dict(zip(KEYS, ("probe", dataset, name, "self", "none", modality, "100")))
                          for dataset in dict(method.cells()) for modality in method.pretrained_on(dataset)]
    elif not any(row["model"] == name for row in read_cells()):
        places = dict.fromkeys((row["table"], row["dataset"], row["modality"], row["label_percent"])
                               for row in paper_cells(table) if row["table"] != "table5")    # of ablations
        cells = [dict(zip(KEYS, (place, dataset, name, start, "none", modality, percent)))
                 for place, dataset, modality, percent in places if method.fills(dataset, modality)
                 for start in method.starts(dataset)]
    if not cells:
        raise UserError(f"--model {name}: it has no cell in {table}" if table != "probe" else
                        f"--model {name}: it has no pretraining whose features could be looked at; see probe.py")
    return cells


def method_of(cell):
    """The cell's entry in the table of methods. Errors: UserError that lists them, for another name."""
    from models.methods import METHODS                                        # torch is only loaded where it is needed
    if cell["model"] not in METHODS:
        raise UserError(f"{cell['model']!r} is no method of models/methods.py: there are {', '.join(METHODS)}")
    return METHODS[cell["model"]]


def published_start(cell):
    """"imagenet" or "external" if a part of the cell's model begins with published weights, else None."""
    method = method_of(cell)
    return method.init if cell["modality"] in method.published else None


def pretrained_on(cell):
    """The modalities of the pretrainings that a cell starts from: one for each that it sees, or one of all of them."""
    if cell["pretraining"] != "self":
        return ()
    method = method_of(cell)
    known, seen = method.pretrained_on(cell["dataset"]), method.sees.get(cell["modality"], (cell["modality"],))
    return tuple(modality for modality in seen if modality in known) or known


def sees_s1(cell):
    """Whether Sentinel-1 of TreeSatAI-TS is among what a cell, or a pretraining that it starts from, sees."""
    if cell["dataset"] != "treesatai-ts":
        return False
    sees, modalities = method_of(cell).sees, (cell["modality"], *pretrained_on(cell))
    return any({"all", "s1"} & {*sees.get(modality, (modality,))} for modality in modalities)


def key(cell):
    """The cell's key columns as a CSV line, what --only is matched against."""
    return ",".join(key_of(cell))
