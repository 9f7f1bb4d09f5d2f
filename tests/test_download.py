"""prepare.py download, against a server of our own that answers as the Hugging Face hub and Zenodo do."""
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from hub import git_sha1, serving

import prepare
from checks import download, hosts
from datasets import band_statistics, open_dataset, splits
from datasets.flair import CENTROIDS, read_domains
from datasets.simulated import demo
from utils import transfer
from utils.errors import UserError

pytest.importorskip("huggingface_hub", reason=f"the download needs it: pip install {hosts.HUB}")
REPO = Path(prepare.__file__).parent


@pytest.fixture
def host(monkeypatch, tmp_path):
    """A Host that is up, as the hub and as Zenodo; nothing waits between tries."""
    with serving() as host:
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setenv("HF_ENDPOINT", host.address)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr(hosts, "ZENODO", host.address)
        monkeypatch.setattr(transfer, "PAUSE", 0.001)
        yield host


def random_bytes(size, seed):
    return hashlib.shake_128(str(seed).encode()).digest(size)


NEEDED = ["aerial.zip", "labels.zip", "sentinel-ts.zip", "split.zip"]


@pytest.fixture
def release(host):
    """The hub's TreeSatAI-TS with files of random bytes: {path: content}."""
    names = ("README.md", "TreesatAI-TS-fig.png", "aerial.zip", "geojson.zip", "labels.zip", "sentinel-ts.zip",
             "sentinel.zip", "split.zip")
    host.files["IGNF/TreeSatAI-Time-Series"] = {name: random_bytes(5_000 + 10 * i, i) for i, name in enumerate(names)}
    return host.files["IGNF/TreeSatAI-Time-Series"]


def run(root, dataset="treesatai-ts", *more):
    return prepare.main(["download", dataset, "--root", str(root), *more])


def pastis_files():
    """Those of one tile, of one byte each."""
    return {pattern.replace("*", "1"): b"x" for pattern in hosts.needed("pastis-hd", "huggingface")}


def there(root):
    """{path: content} of what lies below the root, but for the download's own notes."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*")
            if path.is_file() and path.relative_to(root).parts[0] != download.FOLDER}


# ---- what is fetched ------------------------------------------------------------------------------------------------

def test_only_needed_files_come_and_only_once(host, release, tmp_path, capsys):
    root = tmp_path / "data" / "treesatai"
    assert run(root) == 0
    assert there(root) == {name: release[name] for name in NEEDED} and host.asked() == Counter(NEEDED)
    screen = capsys.readouterr().out
    for text in (f"from {host.address}/datasets/IGNF/TreeSatAI-Time-Series (commit 01234567)\ninto {root}\n",
                 "free disk: ", "takes about as much again (20.2 kB)",
                 f"Next: python prepare.py treesatai-ts --root {root}"):
        assert text in screen
    assert re.search(r"aerial.zip +1 +5.0 kB +0 +5.0 kB\n", screen)
    assert re.search(r"in all +4 +20.2 kB +0 +20.2 kB\n", screen) and not (root / download.FOLDER / "parts").exists()

    host.log.clear()
    assert run(root) == 0 and not host.log                                        # nothing again
    assert re.search(r"in all +4 +20.2 kB +4 +0 B\n", capsys.readouterr().out)
    assert run(root, "treesatai") == 0 and host.asked() == Counter(["sentinel.zip"])    # it shares the others


def test_what_was_fetched_is_not_hashed_again(host, release, tmp_path, monkeypatch):
    """But it is, once, where its time says that it was written to, or where it came from elsewhere."""
    run(tmp_path)
    hashed, hash_file = [], download.hash_file
    monkeypatch.setattr(download, "hash_file", lambda file, *more: hashed.append(Path(file.name).name) or
                        hash_file(file, *more))
    run(tmp_path)
    assert not hashed
    os.utime(tmp_path / "labels.zip", (1, 1))
    (tmp_path / download.FOLDER / "checked.jsonl").open("a").write('{"file": "aer')    # killed while it wrote
    run(tmp_path)
    run(tmp_path)
    assert hashed == ["labels.zip"]
    shutil.rmtree(tmp_path / download.FOLDER)
    run(tmp_path)
    run(tmp_path)
    assert sorted(hashed[1:]) == NEEDED and host.asked() == Counter(NEEDED)


def test_dry_run_fetches_nothing(host, release, tmp_path, capsys):
    assert run(tmp_path / "new", "treesatai-ts", "--dry-run") == 0
    assert "20.2 kB" in capsys.readouterr().out and not host.log and not (tmp_path / "new").exists()


def zipped(folder, path, names):
    """A zip of some folders and files of a folder, as bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(file for name in names for file in [folder / name, *(folder / name).rglob("*")]):
            if file.is_file():
                archive.write(file, file.relative_to(folder))
    return path.read_bytes()


def test_treesatai_from_the_hub_to_the_tables(host, tmp_path, monkeypatch):
    shutil.copytree(splits.FOLDER, tmp_path / "splits", ignore=shutil.ignore_patterns("*demo*"))
    monkeypatch.setattr(splits, "FOLDER", tmp_path / "splits")
    monkeypatch.setattr(band_statistics, "FOLDER", tmp_path / "stats")
    made = demo.write_treesatai(tmp_path / "demo", 24, 10, 3)
    tops = {"aerial.zip": ["aerial"], "sentinel-ts.zip": ["sentinel-ts"], "split.zip": ["split"],
            "labels.zip": ["labels", "DEMO.json"]}
    assert {path.name for path in made.iterdir()} >= {name for names in tops.values() for name in names}
    host.files["IGNF/TreeSatAI-Time-Series"] = {name: zipped(made, tmp_path / name, folders)
                                                for name, folders in tops.items()}
    assert run(tmp_path / "data") == 0
    assert prepare.main(["treesatai-ts", "--root", str(tmp_path / "data"), "--report", str(tmp_path / "report.csv"),
                         "--workers", "0"]) == 0
    assert run(tmp_path / "data") == 0 and host.asked() == Counter(NEEDED)        # unpacked, it is still all there


def test_pastis_comes_as_its_reader_wants_it(host, tmp_path):
    """Four files a tile in folders, and the metadata, which git has and not LFS."""
    made = demo.write_pastis(tmp_path / "demo", 4, 2, 3)
    content = {str(path.relative_to(made)): path.read_bytes() for path in made.rglob("*") if path.is_file()}
    ids = {re.search(r"\d{5}", path)[0] for path in content if path.startswith("DATA_S2")}
    more = {f"{folder}_{tile}.npy": b"not needed" for tile in ids
            for folder in ("DATA_S1D/S1D", "ANNOTATIONS/ParcelIDs", "INSTANCE_ANNOTATIONS/ZONES")}
    host.files["IGNF/PASTIS-HD"] = {**content, **more, "NORM_S2_patch.json": b"{}"}
    assert run(tmp_path / "data", "pastis-hd") == 0
    wanted = {path: data for path, data in content.items() if path == "metadata.geojson" or re.match(
        r"DATA_S2/|DATA_S1A/|DATA_SPOT/|ANNOTATIONS/TARGET_", path)}
    assert there(tmp_path / "data") == wanted and len(wanted) == 1 + 4 * 6 == 1 + 4 * len(ids)
    shutil.copy(made / "DEMO.json", tmp_path / "data")                            # else tiles have full size
    data, original = (open_dataset("pastis-hd", str(root), "train", ["vhr", "s2", "s1"])
                      for root in (tmp_path / "data", made))
    assert data.names == original.names and (data[0]["s1"] == original[0]["s1"]).all()


def test_flair_comes_domain_by_domain(host, tmp_path, capsys):
    """The 40 and 10 of the tables, from folders of which one has a #, and no other test set."""
    wanted = {f"data/{'flair#2-test' if split == 'test' else 'train-val'}/{domain}.zip": domain.encode()
              for domain, split in read_domains().items()} | {f"aux-data/{CENTROIDS}": b"{}"}
    host.files["IGNF/FLAIR-1-2"] = {**wanted, "data/flair#1-test/D012_2019.zip": b"x", "README.md": b"x",
                                    "data/train-val/D999_2021.zip": b"x", "aux-data/flair_aerial_metadata.json": b"x"}
    host.page = 20
    assert run(tmp_path, "flair") == 0 and there(tmp_path) == wanted and len(wanted) == 51
    assert re.search(r"data/train-val/\*.zip +40 .*\n.*data/flair#2-test/\*.zip +10 ", capsys.readouterr().out)
    del host.files["IGNF/FLAIR-1-2"]["data/train-val/D091_2021.zip"]
    with pytest.raises(UserError, match="FLAIR-1-2 .*has no data/train-val/D091_2021.zip; .*there are README.md, aux"):
        run(tmp_path / "other", "flair")


# ---- stopped and gone on --------------------------------------------------------------------------------------------

def test_a_lost_connection_is_taken_up_where_it_broke(host, release, tmp_path):
    """Within a run, by Range, as often as something comes; nothing comes twice."""
    host.cut["aerial.zip"] = [1_200, 0, 2_000, 0] + [100] * transfer.TRIES
    assert run(tmp_path) == 0 and there(tmp_path)["aerial.zip"] == release["aerial.zip"]
    assert [start for path, start, _ in host.log if path == "aerial.zip"] == [
        0, 1_200, 1_200, 3_200, *range(3_200, 3_900, 100)]
    assert host.sent() == sum(len(release[name]) for name in NEEDED)


def test_a_host_that_stays_away_ends_the_run_and_the_next_goes_on(host, release, tmp_path):
    host.cut["aerial.zip"] = [1_200] + [0] * 99
    with pytest.raises(UserError, match=r"resolve/.*/aerial.zip: cannot be downloaded \(it ended after 1,200 of 5,020 "
                                        r"bytes\); what came is kept, the same command goes on"):
        run(tmp_path)
    assert host.asked()["aerial.zip"] == transfer.TRIES and "aerial.zip" not in there(tmp_path)
    host.cut.clear()
    host.log.clear()
    assert run(tmp_path) == 0 and there(tmp_path) == {name: release[name] for name in NEEDED}
    assert ("aerial.zip", 1_200, len(release["aerial.zip"]) - 1_200) in host.log and host.asked()["aerial.zip"] == 1


def test_a_host_without_range_begins_again(host, release, tmp_path):
    host.has_range, host.cut["aerial.zip"] = False, [1_200, 4_000]
    assert run(tmp_path) == 0 and there(tmp_path)["aerial.zip"] == release["aerial.zip"]


def test_a_host_that_asks_for_patience_gets_it(host, release, tmp_path):
    host.answers["aerial.zip"] = [429, 503, 500]
    assert run(tmp_path) == 0 and host.asked()["aerial.zip"] == 4
    host.answers["sentinel.zip"] = [404, 404]
    with pytest.raises(UserError, match="sentinel.zip: cannot be downloaded .HTTP Error 404"):
        run(tmp_path, "treesatai")
    assert host.asked()["sentinel.zip"] == 1                                      # another try changes nothing


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_killed_in_a_file_it_goes_on_there(host, release, tmp_path, how):
    """As a command of its own, as a user starts it."""
    release["aerial.zip"], host.slow = random_bytes(600_000, 9), 0.005
    command = [sys.executable, "prepare.py", "download", "treesatai-ts", "--root", str(tmp_path)]
    process = subprocess.Popen(command, cwd=REPO, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    parts, end = tmp_path / download.FOLDER / "parts", time.monotonic() + 300
    while sum(path.stat().st_size for path in parts.glob("aerial*")) < 100_000 and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(how)
    said = process.communicate(timeout=300)[1]
    assert process.returncode == (-9 if how == signal.SIGKILL else 130), said
    assert how == signal.SIGKILL or f"stopped; the same command goes on with what is in {tmp_path}" in said
    assert "Traceback" not in said and "aerial.zip" not in there(tmp_path)
    kept = sum(path.stat().st_size for path in parts.glob("aerial*"))
    host.slow = 0
    host.log.clear()
    assert run(tmp_path) == 0
    assert kept >= 100_000 and [(path, start) for path, start, _ in host.log if path == "aerial.zip"] == [
        ("aerial.zip", kept)]
    assert there(tmp_path) == {name: release[name] for name in NEEDED}


def test_another_version_does_not_go_on_in_the_old_one(host, release, tmp_path):
    host.cut["aerial.zip"] = [1_200] + [0] * 99
    with pytest.raises(UserError):
        run(tmp_path)
    host.cut.clear()
    release["aerial.zip"] = random_bytes(5_020, "new")
    assert run(tmp_path) == 0 and there(tmp_path)["aerial.zip"] == release["aerial.zip"]


# ---- what is wrong --------------------------------------------------------------------------------------------------

def test_a_wrong_file_is_named_and_never_gets_its_name(host, release, tmp_path, capsys):
    """Another content of the same size; one byte more; the others come all the same."""
    right = hashlib.sha256(release["aerial.zip"]).hexdigest()
    host.instead = {"aerial.zip": random_bytes(5_020, "other"), "split.zip": release["split.zip"] + b"x"}
    got = hashlib.sha256(host.instead["aerial.zip"]).hexdigest()
    with pytest.raises(UserError, match=f"^aerial.zip: sha256 {got} of 5,020 bytes, expected {right} of 5,020; "
                                        "split.zip: sha256 .* of 5,071 bytes.*thrown away; the same command fetches"):
        run(tmp_path)
    assert there(tmp_path) == {name: release[name] for name in NEEDED if name not in host.instead}
    assert "wrong  aerial.zip" in capsys.readouterr().err
    host.instead = {}
    assert run(tmp_path) == 0 and there(tmp_path) == {name: release[name] for name in NEEDED}


def test_a_wrong_file_that_git_has(host, tmp_path):
    files = pastis_files()
    host.files["IGNF/PASTIS-HD"], host.instead = files, {"metadata.geojson": b"w"}
    with pytest.raises(UserError, match=f"^metadata.geojson: git {git_sha1(b'w')} of 1 bytes, expected"):
        run(tmp_path, "pastis-hd")
    assert there(tmp_path).keys() == files.keys() - {"metadata.geojson"}


def test_files_of_before_that_are_wrong_are_kept_under_another_name(host, release, tmp_path, capsys):
    (tmp_path / "aerial.zip").write_bytes(release["aerial.zip"][:99])             # cut off
    (tmp_path / "labels.zip").write_bytes(random_bytes(len(release["labels.zip"]), "other"))
    (tmp_path / "split.zip").write_bytes(release["split.zip"])                    # by hand, and right
    before = there(tmp_path)
    run(tmp_path, "treesatai-ts", "--dry-run")
    assert there(tmp_path) == before
    screen = capsys.readouterr().out
    assert re.search("wrong  aerial.zip: 99 bytes, expected 5,020; it will be renamed to aerial.zip.wrong", screen)
    assert re.search("wrong  labels.zip: sha256 .*, expected .*; it will be renamed", screen)
    assert run(tmp_path) == 0 and host.asked() == Counter(["aerial.zip", "labels.zip", "sentinel-ts.zip"])
    assert there(tmp_path) == {**{name: release[name] for name in NEEDED},
                               **{f"{name}.wrong": before[name] for name in ("aerial.zip", "labels.zip")}}


def test_a_disk_that_is_too_small(host, release, tmp_path, monkeypatch, capsys):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage._replace(free=20_000))
    with pytest.raises(UserError, match=f"^{tmp_path}/new: 20.2 kB are to be fetched, 20.0 kB are free there; make"):
        run(tmp_path / "new")
    assert not host.log and not (tmp_path / "new").exists()
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage._replace(free=30_000))
    assert run(tmp_path / "new") == 0 and "too little room to unpack" in capsys.readouterr().out


@pytest.mark.parametrize("answer, said", [
    (None, "no such dataset there, or not without an account .404"), (401, "no such.* account .401.*hf auth login"),
    (403, "no such.* account .403"), (500, "cannot be asked .HfHubHTTPError 500.*try again later")])
def test_a_host_that_has_nothing_for_us(host, release, tmp_path, answer, said):
    if answer is None:
        host.files.clear()
    else:
        host.answers["datasets/IGNF/TreeSatAI-Time-Series"] = answer
    with pytest.raises(UserError, match=f"datasets/IGNF/TreeSatAI-Time-Series: {said}") as caught:
        run(tmp_path / "new")
    assert "\n" not in str(caught.value) and not (tmp_path / "new").exists()


def test_a_dataset_that_shows_its_list_but_wants_an_account_for_its_files(host, release, tmp_path):
    host.answers["aerial.zip"] = [401]
    with pytest.raises(UserError, match="aerial.zip: cannot be downloaded .HTTP Error 401.*may want an account"):
        run(tmp_path)


def test_no_network(host, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(UserError, match="127.0.0.1:1/.*cannot be asked .*Connection refused.*docs/data.md lists"):
        run(tmp_path)
    monkeypatch.setattr(hosts, "ZENODO", "http://127.0.0.1:1")
    with pytest.raises(UserError, match="127.0.0.1:1/api/records/6780578: cannot be asked .*Connection refused"):
        run(tmp_path, "treesatai", "--source", "zenodo")


def test_without_the_library(host, tmp_path, monkeypatch):
    """One line says which to install, the one of requirements.txt; Zenodo needs none."""
    for name in [name for name in sys.modules if name.split(".")[0] == "huggingface_hub"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=f"pip install {hosts.HUB}$"):
        run(tmp_path)
    assert hosts.HUB in (REPO / "requirements.txt").read_text().split()


def test_names_that_lead_out_of_the_folder(host, tmp_path):
    host.files["IGNF/PASTIS-HD"] = pastis_files() | {"DATA_S2/S2_/../../../x.npy": b""}
    with pytest.raises(UserError, match="leads out of the folder"):
        run(tmp_path / "new", "pastis-hd")
    assert not list(tmp_path.iterdir())


def test_a_token_stays_with_its_host(host, release, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert run(tmp_path) == 0
    asked = {path.split("/")[1]: token for path, token in host.tokens.items()}
    assert asked == {"api": "Bearer hf_secret", "datasets": "Bearer hf_secret", "cdn": None}


def test_one_folder_has_one_origin_and_one_process(host, release, tmp_path):
    run(tmp_path)
    for more in (["pastis-hd"], ["treesatai", "--source", "zenodo"]):
        with pytest.raises(UserError, match=f"{tmp_path}: it has files of IGNF/TreeSatAI-Time-Series; choose another"):
            run(tmp_path, *more)
    (tmp_path / "labels.zip").unlink()
    holder = subprocess.Popen([sys.executable, "-c", "import sys; from utils.files import lock; "
                               f"_ = lock({str(tmp_path / download.FOLDER / '.lock')!r}, ''); print(flush=True); "
                               "sys.stdin.read()"], cwd=REPO, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    holder.stdout.readline()
    with pytest.raises(UserError, match="another process downloads into this folder"):
        run(tmp_path)
    holder.communicate(b"")


# ---- Zenodo ---------------------------------------------------------------------------------------------------------

def test_zenodo(host, tmp_path, monkeypatch):
    names = [f"aerial_60m_{species}.zip" for species in hosts.SPECIES] + [*hosts.MD5, "geojson.zip"]
    host.files["zenodo"] = files = {name: random_bytes(2_000, name) for name in names}
    published = {name: hashlib.md5(files[name]).hexdigest() for name in hosts.MD5}
    with pytest.raises(UserError, match=f"s1.zip has the md5 {published['s1.zip']} there, the published one is bed4fc"):
        run(tmp_path, "treesatai", "--source", "zenodo")
    monkeypatch.setattr(hosts, "MD5", published)
    host.cut["s2.zip"], host.instead = [700], {"aerial_60m_cleared.zip": b"x" * 2_000}
    with pytest.raises(UserError, match="^aerial_60m_cleared.zip: md5 .*not what zenodo 6780578 lists"):
        run(tmp_path, "treesatai", "--source", "zenodo")
    host.instead = {}
    assert run(tmp_path, "treesatai", "--source", "zenodo") == 0
    assert there(tmp_path) == {name: content for name, content in files.items() if name != "geojson.zip"}
    assert ("s2.zip", 700, 1_300) in host.log and len(there(tmp_path)) == 25


def test_published_md5_are_those_of_the_real_lists(real):
    for split in ("train", "test"):
        name = f"{split}_filenames.lst"
        assert hashlib.md5((real / "split" / name).read_bytes()).hexdigest() == hosts.MD5[name]


def test_zenodo_has_one_dataset(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(tmp_path, "treesatai-ts", "--source", "zenodo")
    assert "--source zenodo has only treesatai" in capsys.readouterr().err
