"""Archives of finished trials, and storages merged: what counts, what is refused, and that nothing is lost."""

import dataclasses
import io
import json
import lzma
import os
import random
import shutil
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pytest
from helpers import TINY
from simulated import make_plan, simulate

from analysis.report.evidence import gather
from analysis.report.sections import two_level
from cluster.resources import Resources
from cluster.scheduling.run import run_inline
from jbot.data import Jets
from jbot.store.checksum import with_checksum
from jbot.store.command import main
from jbot.store.plan import Contrast, load_study, save_study
from jbot.store.storage import Storage
from studies.runner.study import Study
from studies.runner.trials import planned_trials, trial_specs

CONTRAST = Contrast(treatment="more", control="base", primary=True)
ARMS = {"base": {}, "more": {"mask.ratio_high": 0.8}}
LEFT = ("student", "scores", "embedding", "embedding-0001", "examples", "state", "student-0001", "classifier_x")


def plan_of(arms=ARMS, contrasts=(CONTRAST,), seeds=(0, 1), base=None, **changes):
    plan = make_plan(arms, contrasts=contrasts, base=base)
    return dataclasses.replace(plan, seeds=seeds, **changes)


def make(root: Path, score=lambda config, seed, rng: 0.5 + seed / 100, **changes):
    """A storage with a study of simulated trials, whose files are those of real ones."""
    plan = plan_of(**changes)
    simulate(root, plan, score, curves=lambda value: [{"epoch": 0, "val/knn_accuracy": value, "device_seconds": 1.0}])
    storage = Storage(root)
    for trial in storage.names("trials"):
        for name in LEFT:
            storage.write_arrays(f"trials/{trial}/{name}.safetensors", {"x": np.arange(9)})
        storage.write(f"trials/{trial}/checkpoint/state.json", b"{}")
        storage.write_json(f"encoders/{trial}.json", {"trial": trial})
    for name in ("report.html", "mlflow.json", "figures/a.svg"):
        storage.write(f"simulated/{name}", b"{}")
    return root


@pytest.fixture(autouse=True)
def nothing_stays(tmp_path_factory, monkeypatch):
    """Whatever happens, no temporary folder is left."""
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr("jbot.store.storage.os.fsync", lambda descriptor: None)
    yield
    assert list(folder.iterdir()) == []


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A storage and its archive, to be copied."""
    root = make(tmp_path_factory.mktemp("made") / "results")
    assert main(["pack", str(root), "--out", f"{root}.tar.xz"]) == 0
    return root


@pytest.fixture
def packed(made, tmp_path):
    """A storage and its archive."""
    archive = shutil.copy(f"{made}.tar.xz", tmp_path / "a.tar.xz")
    return shutil.copytree(made, tmp_path / "results"), archive


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_an_archive_holds_what_finished_trials_need_and_the_same_trials_give_the_same_bytes(packed, tmp_path):
    root, archive = packed
    assert main(["unpack", str(archive), "--storage", str(tmp_path / "new")]) == 0
    kept, before = files(tmp_path / "new"), files(root)
    assert kept.items() <= before.items()
    trials = {(t.arm, t.seed): t.trial_id for t in load_study(str(root / "simulated")).trials}
    every = {"record.json", "curves.parquet", "student.safetensors", "scores.safetensors"}
    drawn = {"embedding.safetensors", "embedding-0001.safetensors", "examples.safetensors"}
    for (_, seed), trial in trials.items():  # a report draws one trial of each arm
        assert {path.name for path in (tmp_path / "new/trials" / trial).iterdir()} == every | (set() if seed else drawn)
    assert {name for name in kept if not name.startswith("trials/")} == {
        "simulated/study.json", *(f"encoders/{trial}.json" for trial in trials.values())
    }  # fmt: skip
    for path in root.rglob("*"):
        os.utime(path, (1, 1))
    shutil.move(root, tmp_path / "elsewhere")
    assert main(["pack", str(tmp_path / "elsewhere/simulated"), "--out", str(tmp_path / "b.tar.xz")]) == 0
    assert (tmp_path / "b.tar.xz").read_bytes() == archive.read_bytes()


def test_records_alone_are_records_and_tables(packed, tmp_path):
    assert main(["pack", str(packed[0]), "--records-only", "--out", str(tmp_path / "r.tar.xz")]) == 0
    assert main(["unpack", str(tmp_path / "r.tar.xz"), "--storage", f"file://{tmp_path}/new"]) == 0
    assert {name.rpartition("/")[2] for name in files(tmp_path / "new")} == {
        "record.json", "curves.parquet", "study.json"
    }  # fmt: skip


def test_what_is_unpacked_trains_nothing_and_reports_the_same(tiny_data, tmp_path, monkeypatch):
    study = Study(name="x", question="?", arms=ARMS, contrasts=(CONTRAST,), margin=0.1)
    plan, jets = study.plan("smoke", seeds=2, changes=TINY), Jets({1000: tiny_data})
    specs = trial_specs(plan, jets)

    def evidence(root: Path):
        save_study(Storage(root), plan, {"source": jets.source, "fingerprint": jets.whole}, planned_trials(specs))
        run_inline(specs, jets, Storage(root), [], Resources())
        return gather(load_study(str(root / plan.study)))

    before = evidence(tmp_path / "results")
    assert main(["pack", str(tmp_path / "results"), "--out", str(tmp_path / "a.tar.xz")]) == 0
    assert main(["unpack", str(tmp_path / "a.tar.xz"), "--storage", str(tmp_path / "new")]) == 0
    monkeypatch.setattr("jbot.trial.run.PackRun", None)  # whatever would run a trial fails
    after = evidence(tmp_path / "new")
    assert after.trials.equals(before.trials)
    assert after.curves.equals(before.curves)
    assert (after.verdicts, after.diagnosis) == (before.verdicts, before.diagnosis)
    assert (two_level.section(after) is None) == (two_level.section(before) is None)
    for arrays in ("embedding", "examples"):
        assert len(before.drawn_trials(arrays)) == 2
        assert after.drawn_trials(arrays) == before.drawn_trials(arrays)


def test_a_file_that_differs_is_named_and_nothing_is_written(packed, tmp_path, capsys):
    _, archive = packed
    other = make(tmp_path / "other", seeds=(0,), score=lambda *_: 0.7)
    before = files(other)
    assert main(["unpack", str(archive), "--storage", str(other)]) == 2
    said = capsys.readouterr().err
    assert "holds other files than" in said
    assert "/record.json" in said
    assert "jbot store merge" in said
    assert files(other) == before


def test_unpacking_twice_changes_nothing(packed, tmp_path):
    for _ in range(2):
        assert main(["unpack", str(packed[1]), "--storage", str(tmp_path / "new")]) == 0
    assert main(["unpack", str(packed[1]), "--storage", str(packed[0])]) == 0


@pytest.mark.parametrize("there", [False, True])
def test_a_disk_that_is_full_midway_leaves_nothing(packed, tmp_path, monkeypatch, there):
    new, write, written = tmp_path / "new", Storage.write, []
    if there:
        new.mkdir()
        (new / "mine").write_text("stays")

    def full(self, name, content):
        if self.uri == str(new):
            written.append(name)
            if len(written) == 12:
                raise OSError("No space left on device")
        write(self, name, content)

    monkeypatch.setattr(Storage, "write", full)
    assert main(["unpack", str(packed[1]), "--storage", str(new)]) == 2
    assert len(written) == 12
    assert sorted(path.name for path in new.rglob("*")) == (["mine"] if there else [])
    assert new.exists() == there


def test_a_record_comes_after_the_other_files_of_its_trial_and_the_plan_last(packed, tmp_path, monkeypatch):
    write, written = Storage.write, []
    monkeypatch.setattr(
        Storage, "write", lambda self, name, content: (written.append(name), write(self, name, content))
    )
    assert main(["unpack", str(packed[1]), "--storage", str(tmp_path / "new")]) == 0
    copied = written[len(written) // 2 :]  # the first half went to the temporary folder
    assert copied[-1] == "simulated/study.json"
    for trial in {name.rpartition("/")[0] for name in copied if name.startswith("trials/")}:
        assert [name for name in copied if name.startswith(trial)][-1] == f"{trial}/record.json"


# --- damaged and hostile archives -----------------------------------------------------------------------------------


def members(archive: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(archive) as tar:
        return [(info, tar.extractfile(info).read()) for info in tar.getmembers()]


def write(archive: Path, found: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    with tarfile.open(archive, "w:xz") as tar:
        for info, content in found:
            tar.addfile(info, io.BytesIO(content) if content else None)


def renamed(name):
    """The last file and its entry under another name."""

    def change(found, manifest):
        info, _ = found[-1]
        manifest["files"][name] = manifest["files"].pop(info.name)
        info.name = name

    return change


def of_type(kind):
    def change(found, manifest):
        info, _ = found[-1]
        info.type, info.linkname, info.size = kind, "/etc/passwd", 0

    return change


def changed(**changes):
    return lambda found, manifest: manifest.update(changes)


def larger(found, manifest):
    info, content = found[-1]
    info.size, found[-1] = info.size + 9, (info, content + b" " * 9)


def flipped(found, manifest):
    info, content = found[-1]
    found[-1] = info, bytes([content[0] ^ 1]) + content[1:]


def lied(found, manifest):
    next(iter(manifest["files"].values()))["size"] = 10**12


def endless(found, manifest):
    info = tarfile.TarInfo("simulated/study.json")
    info.type, info.size = tarfile.XHDTYPE, 2**32  # an extended header of 4 GiB, of which nothing follows
    found.insert(1, (info, b""))


def without_a_record(found, manifest):
    name = next(name for name in manifest["files"] if name.endswith("record.json"))
    del manifest["files"][name]
    found[:] = [member for member in found if member[0].name != name]


HOSTILE = {
    "up": (renamed("../../escaped"), "a file must be of a trial or study"),
    "up in a study": (renamed("simulated/../../study.json"), "a file must be of a trial or study"),
    "absolute": (renamed("/tmp/escaped"), "a file must be of a trial or study"),
    "no place": (renamed("trials/study.json"), "a file must be of a trial or study"),
    "symlink": (of_type(tarfile.SYMTYPE), "must come next"),
    "hard link": (of_type(tarfile.LNKTYPE), "must come next"),
    "device": (of_type(tarfile.CHRTYPE), "must come next"),
    "pipe": (of_type(tarfile.FIFOTYPE), "must come next"),
    "larger": (larger, "must have the size and SHA-256"),
    "flipped": (flipped, "must have the size and SHA-256"),
    "says 1 TB": (lied, "its files must have at most"),
    "header of 4 GB": (endless, "a file must have at most"),
    "one missing": (lambda found, manifest: found.pop(), "must come next, got the end"),
    "one more": (lambda found, manifest: found.append(found[-1]), "is not in the manifest"),
    "no record": (without_a_record, "has no record"),
    "other format": (changed(format=2), "format must be 1, got 2"),
    "no manifest": (lambda found, manifest: manifest.clear(), "files is missing"),
    "other jets": (changed(studies={}), "plans must have the hash, trainer version and jets"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_an_archive_that_is_not_as_it_says_is_one_line_and_leaves_nothing(packed, tmp_path, capsys, name):
    change, said = HOSTILE[name]
    found = members(packed[1])
    manifest = json.loads(found[0][1])
    del manifest["seal"]
    change(found, manifest)
    content = json.dumps(with_checksum(manifest), indent=1).encode()
    found[0][0].size = len(content)
    write(packed[1], [(found[0][0], content), *found[1:]])
    assert main(["unpack", str(packed[1]), "--storage", str(tmp_path / "new")]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "new").exists()
    assert main(["merge", str(packed[1]), "--storage", str(tmp_path / "new")]) == 2
    assert not (tmp_path / "new").exists()


def test_damaged_archives_are_refused_or_whole(packed, tmp_path, capsys):
    """300 archives with flipped, lost or doubled bytes, before and after compression."""
    whole, chance, refused = packed[1].read_bytes(), random.Random(5), 0
    assert main(["unpack", str(packed[1]), "--storage", str(tmp_path / "new")]) == 0
    content = files(tmp_path / "new")
    for number in range(300):
        inside = number % 2 == 1
        data = bytearray(lzma.decompress(whole) if inside else whole)
        place = chance.randrange(2_000 if chance.random() < 0.3 else len(data))
        match chance.randrange(4):
            case 0:
                data[place] ^= 1 << chance.randrange(8)
            case 1:
                del data[place:]
            case 2:
                del data[place : place + chance.randrange(1, 600)]
            case _:
                data[place:place] = data[place : place + chance.randrange(1, 600)] or b"x"
        (tmp_path / "m.tar.xz").write_bytes(lzma.compress(data, preset=0) if inside else bytes(data))
        shutil.rmtree(tmp_path / "new", ignore_errors=True)
        code, said = (
            main(["unpack", str(tmp_path / "m.tar.xz"), "--storage", str(tmp_path / "new")]),
            capsys.readouterr(),
        )
        if code == 0:  # a byte that says nothing: padding, owner, or the end
            assert files(tmp_path / "new") == content
            continue
        refused += 1
        assert code == 2
        assert said.err.count("\n") == 1
        assert "is damaged, or no archive of `jbot store pack`" in said.err
        assert not (tmp_path / "new").exists()
    assert refused > 200


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["unpack", "none.tar.xz"], "no archive none.tar.xz"),
        (["pack", "results", "--out", "a.zip"], "--out must end with .tar.xz, got a.zip"),
        (["pack", "none", "--out", "a.tar.xz"], "none holds no study"),
        (["pack", "results", "other", "--out", "a.tar.xz"], "studies of one storage are packed"),
        (["merge", "none", "--storage", "results"], "none holds no study"),
    ],
)
def test_what_is_not_there_is_one_line(made, tmp_path, monkeypatch, capsys, words, said):
    for name in ("results", "other"):
        shutil.copytree(made, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.glob("a.*"))


def test_a_record_that_was_changed_is_not_packed(packed, tmp_path, capsys):
    root, archive = packed
    archive.unlink()
    record = next(root.glob("trials/*/record.json"))
    record.write_text(record.read_text().replace('"wall_seconds": 30.0', '"wall_seconds": 31.0'))
    assert main(["pack", str(root), "--out", str(tmp_path / "a.tar.xz")]) == 2
    assert "it is not what was written" in capsys.readouterr().err
    assert not (tmp_path / "a.tar.xz").exists()


# --- merge ----------------------------------------------------------------------------------------------------------


def test_groups_with_other_seeds_have_one_study_of_all_of_them(packed, tmp_path, capsys):
    ours, theirs = packed[0], make(tmp_path / "theirs", seeds=(4, 2))
    first = (ours / "simulated/study.json").read_bytes()
    for added, same in ((4, 0), (0, 4)):
        assert main(["merge", str(theirs), "--storage", str(ours)]) == 0
        assert f"{added} trials of {theirs} added, {same} were there already" in capsys.readouterr().out
        merged = load_study(str(ours / "simulated"))
        assert merged.plan.seeds == (0, 1, 2, 4)
        assert merged.plan.hash == plan_of(seeds=(0, 1, 2, 4)).hash
        assert [(t.seed, t.arm) for t in merged.trials] == [(s, arm) for s in (0, 1, 2, 4) for arm in ARMS]
        assert all(merged.records.values())
    (earlier,) = ours.glob("simulated-*/study.json")
    assert json.loads(earlier.read_bytes()) == json.loads(first)
    new = next(t.trial_id for t in merged.trials if t.seed == 4)
    assert files(ours / "trials" / new).keys() == files(theirs / "trials" / new).keys() - {"checkpoint/state.json"}


def test_an_arm_of_another_group_is_added_with_its_contrast(packed, tmp_path):
    contrast = Contrast(treatment="most", control="base")
    ours = make(tmp_path / "ours", arms={"base": {}, "most": {"mask.ratio_high": 0.9}}, contrasts=(contrast,))
    assert main(["merge", str(packed[1]), "--storage", str(ours)]) == 0  # an archive
    merged = load_study(str(ours / "simulated"))
    assert list(merged.plan.arms) == ["base", "most", "more"]
    assert merged.plan.contrasts == (contrast, CONTRAST)
    assert len(merged.trials) == 6
    assert all(merged.records.values())


def test_a_trial_with_another_result_is_named_and_stays(packed, tmp_path, capsys):
    ours, theirs = packed[0], make(tmp_path / "theirs", score=lambda *_: 0.5, seeds=(0, 1, 2))
    before = files(ours / "trials")
    assert main(["merge", str(theirs / "simulated"), "--storage", str(ours)]) == 1
    said = capsys.readouterr()
    assert "2 trials of" in said.out
    assert "2 were there already" in said.out  # of seed 0, where both have 0.5
    lines = said.err.splitlines()
    assert len(lines) == 2
    assert all("at seed 1): test/knn_accuracy is 0.5 in the source, 0.51 in the storage" in line for line in lines)
    assert before.items() <= files(ours / "trials").items()


def test_another_machine_and_time_are_the_same_result(packed, tmp_path):
    ours, theirs = packed[0], shutil.copytree(packed[0], tmp_path / "theirs")
    storage = Storage(theirs)
    for trial, record in load_study(str(theirs / "simulated")).records.items():
        content = dataclasses.asdict(dataclasses.replace(record, hardware={"host": "other"}, wall_seconds=1.0))
        del content["from_defaults"]
        storage.write_json(f"trials/{trial}/record.json", with_checksum(content))
    before = files(ours)
    assert main(["merge", str(theirs), "--storage", str(ours)]) == 0
    assert files(ours) == before


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"margin": 0.02}, "margin of study simulated must be the same to merge, got 0.02 and here 0.01"),
        ({"trainer_version": "9"}, "trainer_version of study simulated must be the same to merge, got '9'"),
        ({"base": {"train.epochs": 3}}, "train.epochs of study simulated must be the same to merge, got 3 and here 80"),
        ({"arms": ARMS | {"more": {"mask.ratio_high": 0.7}}}, "arm more of study simulated must be the same"),
        ({"contrasts": (dataclasses.replace(CONTRAST, primary=False),)}, "contrast more - base of study simulated"),
        ({"jets": "others"}, "jets of study simulated must be the same to merge, got 'others' and here 'jets'"),
        ({"looks": (2,)}, "looks of study simulated must be the same to merge, got (2,) and here ()"),
    ],
)
def test_what_cannot_be_compared_is_not_merged(packed, tmp_path, capsys, changes, said):
    ours, jets = packed[0], changes.get("jets")
    changes = {name: value for name, value in changes.items() if name != "jets"}
    theirs = make(tmp_path / "theirs", **{} if "looks" in changes else {"seeds": (2, 3)}, **changes)
    if jets:
        path = theirs / "simulated/study.json"
        content = json.loads(path.read_text())
        path.write_text(json.dumps(content | {"data": content["data"] | {"fingerprint": jets}}))
    before = files(ours)
    assert main(["merge", str(theirs), "--storage", str(ours)]) == 2
    assert said in capsys.readouterr().err
    assert files(ours) == before
