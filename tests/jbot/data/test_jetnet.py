"""The real JetNet files: read without any network when they are there, fetched whole or not at all when not."""

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from helpers import SAMPLE

from jbot.data import CLASSES, DataError, load


def as_jetnet_file(folder: Path, name: str) -> Path:
    """One class of the shipped sample as JetNet's own file of that class."""
    folder.mkdir(parents=True, exist_ok=True)
    with h5py.File(SAMPLE) as sample, h5py.File(folder / f"{name}.hdf5", "w") as file:
        for key in ("particle_features", "jet_features"):
            file[key] = sample[f"{name}/{key}"][:].astype(np.float64)
    return folder / f"{name}.hdf5"


@pytest.fixture
def download(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    """Stand in for jetnet.datasets: `fails` is the error to raise; `fetched` lists the classes asked for."""
    state = SimpleNamespace(fails=None, fetched=[])

    def get_data(*, jet_type: str, data_dir: str, download: bool) -> None:
        state.fetched.append(jet_type)
        target = Path(data_dir) / f"{jet_type}.hdf5"
        target.write_bytes(b"half a file")
        if state.fails:
            raise state.fails
        shutil.copy(as_jetnet_file(tmp_path / "zenodo", jet_type), target)

    module = SimpleNamespace(JetNet=SimpleNamespace(getData=get_data))
    monkeypatch.setitem(sys.modules, "jetnet.datasets", module)
    return state


def test_local_files_are_read_without_the_jetnet_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jetnet.datasets", None)  # importing it now fails
    for name in CLASSES:
        as_jetnet_file(tmp_path / "jetnet", name)
    data = load("jetnet", jets_per_class=None, cache=tmp_path)
    sample = load(str(SAMPLE), jets_per_class=None)
    np.testing.assert_array_equal(data.particles, sample.particles)
    assert data.fingerprint == sample.fingerprint
    assert data.source == "JetNet (Zenodo 6975118)"
    assert "arXiv:2106.11535" in data.metadata["cite JetNet"]


def test_only_missing_classes_are_downloaded(tmp_path: Path, download: SimpleNamespace) -> None:
    as_jetnet_file(tmp_path / "jetnet", "q")
    for _ in range(2):
        data = load("jetnet", jets_per_class={"q": 5, "t": 6}, cache=tmp_path)
    assert data.labels.tolist() == [0] * 5 + [4] * 6
    assert download.fetched == ["t"]


def test_a_failed_download_is_one_clear_line_and_leaves_nothing(tmp_path: Path, download: SimpleNamespace) -> None:
    download.fails = ConnectionError("name not resolved\nsecond line")
    with pytest.raises(DataError, match=r"could not be downloaded .* \(ConnectionError: name not resolved\)") as caught:
        load("jetnet", jets_per_class={"q": 5}, cache=tmp_path)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "jetnet").iterdir())


def test_without_the_package_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jetnet.datasets", None)
    with pytest.raises(DataError, match=r"pip install 'jbot-studies\[jetnet\]'"):
        load("jetnet", jets_per_class={"q": 5}, cache=tmp_path)


def test_no_network_with_the_real_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The installed jetnet takes our call; its first contact with Zenodo fails like a machine without network."""
    requests = pytest.importorskip("requests")
    pytest.importorskip("jetnet", reason="needs the extra [jetnet]")

    def no_network(*args: object, **options: object) -> None:
        raise requests.exceptions.ConnectionError("no network")

    monkeypatch.setattr(requests, "get", no_network)
    with pytest.raises(DataError, match=r"Zenodo record 6975118 \(ConnectionError: no network\)"):
        load("jetnet", jets_per_class={"q": 5}, cache=tmp_path)
