"""JetNet's layout: what is written is read again, and every fault names file, dataset and row."""

import hashlib
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import SAMPLE

from jbot.data import CLASSES, DataError, hdf5, load


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the shipped sample to break."""
    return Path(shutil.copy(SAMPLE, tmp_path / "jets.h5"))


def one_class(n_jets: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Jets of two particles (pt_rel 0.75 and 0.25), padded to 30."""
    particles = np.zeros((n_jets, 30, 4), np.float32)
    particles[:, 0] = 0.01, 0.0, 0.75, 1.0
    particles[:, 1] = -0.03, 0.0, 0.25, 1.0
    return particles, np.tile(np.array([1000.0, 0.5, 80.0, 2.0], np.float32), (n_jets, 1))


def test_written_jets_are_read_again(tmp_path: Path) -> None:
    particles, jets = one_class()
    hdf5.write(
        tmp_path / "a.h5", {"g": (3, [(particles, jets)]), "t": (1, [(particles[:1], jets[:1])])}, {"source": "by hand"}
    )
    data = load(str(tmp_path / "a.h5"), jets_per_class=None)
    np.testing.assert_array_equal(data.particles, np.concatenate([particles, particles[:1]]))
    np.testing.assert_array_equal(data.jets, np.concatenate([jets, jets[:1]]))
    assert data.labels.tolist() == [1, 1, 1, 4]
    assert data.labels.dtype == np.int64
    assert data.source == "by hand"


def test_equal_content_gives_equal_bytes_and_fingerprints(tmp_path: Path) -> None:
    for name in ("a.h5", "b.h5"):
        hdf5.write(tmp_path / name, {"q": (3, [one_class()])}, {"source": "by hand"})
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
    changed = one_class()
    changed[0][0, 0, 0] += 1e-3
    hdf5.write(tmp_path / "b.h5", {"q": (3, [changed])}, {})
    first, second = (load(str(tmp_path / name), jets_per_class=None) for name in ("a.h5", "b.h5"))
    assert first.fingerprint != second.fingerprint


def test_a_folder_with_a_file_a_class(tmp_path: Path) -> None:
    for name in ("q", "w"):
        with h5py.File(tmp_path / f"{name}.hdf5", "w") as file:
            file["particle_features"], file["jet_features"] = (array.astype(np.float64) for array in one_class())
    data = load(str(tmp_path), jets_per_class={"w": 2, "q": 1})
    assert data.labels.tolist() == [0, 2, 2]
    assert data.particles.dtype == data.jets.dtype == np.float32


def test_counts_take_the_first_rows_of_each_class() -> None:
    everything, few = load(str(SAMPLE), jets_per_class=None), load(str(SAMPLE), jets_per_class={"t": 4, "q": 3})
    np.testing.assert_array_equal(few.particles[:3], everything.particles[everything.labels == 0][:3])
    np.testing.assert_array_equal(few.particles[3:], everything.particles[everything.labels == 4][:4])


def test_multiplicity_is_capped_and_padding_cleared(tmp_path: Path) -> None:
    particles, jets = one_class()
    jets[:, 3] = 57  # JetNet counts all particles of a jet
    particles[0, 5, 0] = 0.3  # left in a padded slot
    hdf5.write(tmp_path / "a.h5", {"q": (3, [(particles, jets)])}, {})
    data = load(str(tmp_path / "a.h5"), jets_per_class=None)
    assert (data.jets[:, 3] == 30).all()
    assert data.particles[0, 5, 0] == 0


def set_value(index: tuple[int, ...], value: float, name: str = "particle_features"):
    def change(file: h5py.File) -> None:
        file[f"w/{name}"][index] = value

    return change


def replace(name: str, values: np.ndarray):
    def change(file: h5py.File) -> None:
        del file[f"w/{name}"]
        file[f"w/{name}"] = values

    return change


def delete(name: str):
    def change(file: h5py.File) -> None:
        del file[name]

    return change


FAULTS = {
    "missing dataset": (delete("w/jet_features"), r"w/jet_features is missing"),
    "missing class": (delete("w"), r"class w is missing, it holds q, g, z, t"),
    "wrong shape": (
        replace("particle_features", np.ones((300, 29, 4))),
        r"w/particle_features must have shape \(jet, 30, 4\), got \(300, 29, 4\)",
    ),
    "wrong dtype": (replace("jet_features", np.full((300, 4), b"x")), r"w/jet_features must hold real numbers, got"),
    "lengths": (
        replace("jet_features", np.ones((299, 4))),
        r"w/particle_features has 300 rows but jet_features has 299",
    ),
    "empty class": (
        lambda file: [
            replace("jet_features", np.ones((0, 4)))(file),
            replace("particle_features", np.ones((0, 30, 4)))(file),
        ],
        r"w/particle_features holds no jets",
    ),
    "NaN": (set_value((7, 3, 1), np.nan), r"w/particle_features, row 7, particle 3: phi_rel must be finite, got nan"),
    "infinite jet": (set_value((9, 2), np.inf, "jet_features"), r"w/jet_features, row 9: mass must be finite, got inf"),
    "mask": (set_value((4, 0, 3), 0.5), r"w/particle_features, row 4, particle 0: mask must be 0 or 1, got 0.5"),
    "pt_rel": (
        set_value((5, 1, 2), 0.0),
        r"w/particle_features, row 5, particle 1: pt_rel of a valid particle must be > 0, got 0",
    ),
    "no particle": (
        set_value((6, slice(None), 3), 0.0),
        r"w/particle_features, row 6: a jet must have at least one valid particle",
    ),
    "jet pT": (set_value((8, 0), -3.0, "jet_features"), r"w/jet_features, row 8: jet pT must be > 0, got -3"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_names_file_dataset_and_row(copy: Path, fault: str) -> None:
    change, message = FAULTS[fault]
    with h5py.File(copy, "r+") as file:
        change(file)
    with pytest.raises(DataError, match=message) as caught:
        load(str(copy), jets_per_class=dict.fromkeys(CLASSES, 10 if fault != "lengths" else 1))
    assert str(copy) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_several_faults_are_counted(copy: Path) -> None:
    with h5py.File(copy, "r+") as file:
        file["q/particle_features"][3:6, 0, 2] = -1
    with pytest.raises(DataError, match=r"row 3, particle 0: .* got -1 \(and at least 2 more\)"):
        load(str(copy), jets_per_class=None)


@pytest.mark.parametrize("keep", [0, 100, 200_000])
def test_a_truncated_file(copy: Path, keep: int) -> None:
    copy.write_bytes(copy.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"jets\.h5: truncated or not an HDF5 file"):
        load(str(copy), jets_per_class=None)


def test_a_damaged_block_of_data(copy: Path) -> None:
    content = bytearray(copy.read_bytes())
    with h5py.File(copy) as file:
        block = file["q/particle_features"].id.get_chunk_info(0)
    content[block.byte_offset : block.byte_offset + block.size] = bytes(block.size)
    copy.write_bytes(content)
    with pytest.raises(DataError, match="q/particle_features: cannot be read, the file is damaged"):
        load(str(copy), jets_per_class=None)


def test_bad_requests() -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        load("nowhere/jets.h5", jets_per_class=None)
    with pytest.raises(DataError, match="holds 300 jets, 301 are needed"):
        load(str(SAMPLE), jets_per_class=301)
    with pytest.raises(DataError, match="class must be one of q, g, w, z, t, got 'h'"):
        load(str(SAMPLE), jets_per_class={"h": 3})
    with pytest.raises(DataError, match="jets of class q must be an integer >= 0, got -1"):
        load(str(SAMPLE), jets_per_class={"q": -1})
    with pytest.raises(DataError, match="at least one jet must be asked for"):
        load(str(SAMPLE), jets_per_class=0)


def test_a_folder_without_jets(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds none of the classes q, g, w, z, t"):
        load(str(tmp_path), jets_per_class=None)


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    hdf5.write(path, {"q": (3, [one_class()])}, {})
    before = path.read_bytes()
    with pytest.raises(TypeError):
        hdf5.write(path, {"q": (1, [(object(), object())])}, {})  # type: ignore[dict-item]
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_blocks_change_nothing_but_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load(str(SAMPLE), jets_per_class=None)
    monkeypatch.setattr("jbot.data.jets.BLOCK", 7)
    parts = load(str(SAMPLE), jets_per_class=None)
    np.testing.assert_array_equal(parts.particles, whole.particles)
    assert parts.fingerprint == whole.fingerprint
    digest = hashlib.sha256()
    for array in (whole.particles, whole.labels, whole.jets):
        digest.update(f"{array.dtype.str}{array.shape}".encode() + array.tobytes())
    assert whole.fingerprint == digest.hexdigest()


def test_a_fault_behind_the_first_block_names_its_row(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jbot.data.jets.BLOCK", 7)
    with h5py.File(copy, "r+") as file:
        file["g/jet_features"][23, 1] = np.nan
    with pytest.raises(DataError, match=r"g/jet_features, row 23: eta must be finite, got nan"):
        load(str(copy), jets_per_class=None)


def test_a_file_written_in_parts_says_when_parts_are_missing(tmp_path: Path) -> None:
    hdf5.write(tmp_path / "parts.h5", {"q": (6, [one_class(), one_class()])}, {})
    hdf5.write(tmp_path / "whole.h5", {"q": (6, [one_class(6)])}, {})
    assert (tmp_path / "parts.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()
    with pytest.raises(ValueError, match="blocks of class q must hold 6 jets, got 3"):
        hdf5.write(tmp_path / "short.h5", {"q": (6, [one_class()])}, {})
    assert not (tmp_path / "short.h5").exists()
