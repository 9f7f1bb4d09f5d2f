"""Which files the tables need of each dataset, and what the host that has them says of their size and hash."""
import json
import os
from fnmatch import fnmatchcase
from http.client import HTTPException
from pathlib import PurePosixPath
from urllib.request import urlopen

from datasets.flair import CENTROIDS, read_domains
from datasets.sensors import SENSORS
from utils.errors import UserError
from utils.transfer import TIMEOUT, Remote

HUB = "huggingface_hub==2.4.0"    # as in requirements.txt
ZENODO, RECORD = "https://zenodo.org", "6780578"
SPECIES = ("abies_alba acer_pseudoplatanus alnus_spec betula_spec cleared fagus_sylvatica fraxinus_excelsior "
           "larix_decidua larix_kaempferi picea_abies pinus_nigra pinus_strobus pinus_sylvestris populus_spec "
           "prunus_spec pseudotsuga_menziesii quercus_petraea quercus_robur quercus_rubra tilia_spec").split()
MD5 = {"s1.zip": "bed4fc8cb65da46a24ec1bc6cea2763c", "s2.zip": "453ba69056aa33a3c6b97afb7b6afadb",
       "labels.zip": "656f1b68ec9ab70afd02bb127b75bb24", "train_filenames.lst": "a1a0148e8120b0268f76d2e98a68436f",
       "test_filenames.lst": "2166903d947f0025f61e342da466f917"}    # published; of aerial_60m_*.zip only Zenodo's own
REPOSITORIES = {"treesatai-ts": "IGNF/TreeSatAI-Time-Series", "treesatai": "IGNF/TreeSatAI-Time-Series",
                "pastis-hd": "IGNF/PASTIS-HD", "flair": "IGNF/FLAIR-1-2"}
SOURCES = {"huggingface": tuple(REPOSITORIES), "zenodo": ("treesatai",)}


def origin(dataset, source):
    """The name of the repository or record."""
    return f"zenodo {RECORD}" if source == "zenodo" else REPOSITORIES[dataset]


def needed(dataset, source):
    """{pattern of paths: the paths that must be there, () where their number is not known}."""
    if source == "zenodo":
        aerial = [f"aerial_60m_{species}.zip" for species in SPECIES]
        return {"aerial_60m_*.zip": aerial, **{name: [name] for name in MD5}}
    if dataset == "pastis-hd":
        sensors = [sensor.files.format(tile="*") for sensor in SENSORS[dataset].values() if sensor.in_all]
        return {"metadata.geojson": ["metadata.geojson"],
                **dict.fromkeys([*sensors, "ANNOTATIONS/TARGET_*.npy"], ())}
    if dataset == "flair":
        folders, zips = {True: "data/flair#2-test", False: "data/train-val"}, {}
        for domain, split in read_domains().items():
            folder = folders[split == "test"]
            zips.setdefault(f"{folder}/*.zip", []).append(f"{folder}/{domain}.zip")
        return {**zips, f"aux-data/{CENTROIDS}": [f"aux-data/{CENTROIDS}"]}
    sentinel = "sentinel-ts.zip" if dataset == "treesatai-ts" else "sentinel.zip"
    return {name: [name] for name in ("aerial.zip", sentinel, "labels.zip", "split.zip")}


def listing(dataset, source):
    """(where from, in words; {pattern: [Remote]} of what the tables need).

    Errors: UserError if the host cannot be asked, or lacks a file that is known to be needed.
    """
    about, files = on_zenodo() if source == "zenodo" else on_hub(REPOSITORIES[dataset])
    wanted, groups = needed(dataset, source), {}
    for pattern, paths in wanted.items():
        found = {path: remote for path, remote in files.items()
                 if fnmatchcase(path, pattern) and (not paths or path in paths)}
        missing = [path for path in paths if path not in found] if paths or found else [pattern]
        if missing:
            there = sorted({path.split("/")[0] for path in files})
            raise UserError(f"{about} has no {', '.join(missing[:3])}"
                            f"{f' and {len(missing) - 3} more' if len(missing) > 3 else ''}; it was arranged anew, or "
                            f"is a copy: there are {', '.join(there[:9]) or 'no files'}. Download by hand what "
                            "docs/data.md lists")
        if odd := [path for path in found if ".." in path.split("/") or PurePosixPath(path).is_absolute()]:
            raise UserError(f"{about}: {odd[0]!r} leads out of the folder; do not use this host")
        groups[pattern] = [found[path] for path in sorted(found)]
    return about, groups


def on_hub(repository):
    """(in words, {path: Remote}) of all files of a dataset of the Hugging Face hub, at the commit of now.

    HF_ENDPOINT and the token of `hf auth login` count, as everywhere. Errors: UserError.
    """
    try:
        from huggingface_hub import HfApi, hf_hub_url
        from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
        from huggingface_hub.utils import build_hf_headers
    except ImportError as error:
        raise UserError(f"the download needs huggingface_hub ({error}): pip install {HUB}") from error
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT", "").rstrip("/") or None)
    about = f"{api.endpoint}/datasets/{repository}"
    try:
        commit = api.dataset_info(repository, timeout=TIMEOUT).sha
        entries = [entry for entry in api.list_repo_tree(repository, repo_type="dataset", revision=commit,
                                                         recursive=True) if hasattr(entry, "blob_id")]
    except OfflineModeIsEnabled as error:
        raise UserError(f"{about}: HF_HUB_OFFLINE is set; unset it to download") from error
    except Exception as error:    # those of its http client have no base in common with the others
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        if status in (401, 403, 404):
            raise UserError(f"{about}: no such dataset there, or not without an account ({status}): look at that page; "
                            "`hf auth login` keeps a token; HF_ENDPOINT, if set, must be a hub") from error
        raise UserError(f"{about}: cannot be asked ({type(error).__name__} {status or first_line(error)}); "
                        "try again later; without a network, download by hand what docs/data.md lists") from error
    token = build_hf_headers().get("authorization", "")
    files = {entry.path: Remote(entry.path, entry.size,
                                hf_hub_url(repository, entry.path, repo_type="dataset", revision=commit,
                                           endpoint=api.endpoint),
                                *(("sha256", entry.lfs.sha256) if entry.lfs else ("git", entry.blob_id)), token)
             for entry in entries}
    return f"{about} (commit {commit[:8]})", files


def first_line(error):
    return str(error).split("\n")[0]


def on_zenodo():
    """(in words, {path: Remote}) of TreeSatAI's record. Errors: UserError, also where an MD5 is not the published one.
    """
    url = f"{ZENODO}/api/records/{RECORD}"
    try:
        with urlopen(url, timeout=TIMEOUT) as response:
            entries = json.load(response)["files"]
        files = {entry["key"]: Remote(entry["key"], int(entry["size"]), entry["links"]["self"],
                                      *entry["checksum"].split(":")) for entry in entries}
    except (OSError, HTTPException, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{url}: cannot be asked ({type(error).__name__} {str(error).strip('<>')}); try again later, "
                        "or download by hand what docs/data.md lists") from error
    for name, md5 in MD5.items():
        if name in files and files[name].hash != md5:
            raise UserError(f"{url}: {name} has the md5 {files[name].hash} there, the published one is {md5}: another "
                            "version, which nobody has tried")
    return f"{ZENODO}/records/{RECORD}", files
