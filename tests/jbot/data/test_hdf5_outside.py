"""Files of jets by other hands: what leads elsewhere, waits, or is damaged is one line, and nothing of it is read."""

import contextlib
import os
import subprocess
import sys

import h5py
import numpy as np
import pytest
from helpers import make_data

from jbot.data import DataError, hdf5
from jbot.data.jets import is_number
from jbot.encoder import embed

NAMES = (hdf5.PARTICLES, hdf5.JETS)


@pytest.fixture
def made(tmp_path):
    """A good file below a folder of its own."""
    path = tmp_path / "data" / "jets.h5"
    path.parent.mkdir()
    data = make_data(12)
    hdf5.write(path, {"q": (12, [(data.particles[:12], 5 * data.jets[:12])])}, {"source": "test"})
    return path


def refused(path, words):
    """By every door, in one line."""
    with pytest.raises(DataError, match=words) as found:
        hdf5.read(path)
    assert "\n" not in str(found.value)
    with pytest.raises(DataError, match=words):
        embedded_from(path)


def embedded_from(path):
    with embed.opened(path) as (tables, _):
        for table in tables:
            hdf5.read_rows(table, slice(0, table.n_jets))


def replace(path, name, make):
    with h5py.File(path, "r+") as file:
        del file[name]
        make(file)


def linked(link):
    return lambda file: file.__setitem__(f"q/{hdf5.JETS}", link)


@pytest.mark.parametrize("target", ["../other.h5", "/proc/self/mem"])
def test_a_link_out_of_the_folder_is_refused(made, tmp_path, target):
    data = make_data(12)
    hdf5.write(tmp_path / "other.h5", {"q": (12, [(data.particles[:12], data.jets[:12])])}, {})
    replace(made, f"q/{hdf5.JETS}", linked(h5py.ExternalLink(target, f"q/{hdf5.JETS}")))
    refused(made, "out of the folder of the data|leads nowhere")


def test_a_link_to_a_file_beside_it_is_read(made):
    beside = made.with_name("beside.h5")
    beside.write_bytes(made.read_bytes())
    replace(made, f"q/{hdf5.JETS}", linked(h5py.ExternalLink("beside.h5", f"q/{hdf5.JETS}")))
    assert len(hdf5.read(made).labels) == 12


@pytest.mark.parametrize(
    "link", [h5py.SoftLink(f"/q/{hdf5.JETS}"), h5py.SoftLink("/none"), h5py.ExternalLink("no.h5", "x")]
)
def test_links_that_lead_nowhere(made, link):
    replace(made, f"q/{hdf5.JETS}", linked(link))
    refused(made, "leads nowhere|missing")


def virtual(file_name, name=f"q/{hdf5.JETS}"):
    layout = h5py.VirtualLayout((12, 4), np.float32)
    layout[:] = h5py.VirtualSource(file_name, name, (12, 4))
    return lambda file: file.create_virtual_dataset(f"q/{hdf5.JETS}", layout)


def test_a_virtual_dataset_is_read_below_the_folder_alone(made, tmp_path):
    good = made.read_bytes()
    made.with_name("beside.h5").write_bytes(good)
    (tmp_path / "other.h5").write_bytes(good)
    replace(made, f"q/{hdf5.JETS}", virtual("beside.h5"))
    assert len(hdf5.read(made).labels) == 12
    replace(made, f"q/{hdf5.JETS}", virtual("../other.h5"))
    refused(made, "out of the folder of the data")
    beside = made.with_name("beside.h5")  # a virtual dataset of a virtual dataset
    replace(beside, f"q/{hdf5.JETS}", virtual("../other.h5"))
    replace(made, f"q/{hdf5.JETS}", virtual("beside.h5"))
    refused(made, "out of the folder of the data")


def test_external_storage_is_not_read(made, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"s" * 12 * 4 * 4)

    def make(file):
        file.create_dataset(f"q/{hdf5.JETS}", (12, 4), np.float32, external=[(str(secret), 0, 12 * 4 * 4)])

    replace(made, f"q/{hdf5.JETS}", make)
    refused(made, "external storage, which is not read")


def test_what_is_no_file_is_not_waited_for(made):
    pipe = made.with_name("pipe.h5")
    os.mkfifo(pipe)
    refused(pipe, "must be a file")
    with pytest.raises(DataError, match="must be a file"):
        hdf5.open_hdf5(made.parent)


HOLD = "import h5py, sys; f = h5py.File(sys.argv[1], 'r+'); print('held', flush=True); sys.stdin.read()"


def test_true_reasons(made, monkeypatch):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, made], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        refused(made, "locked by a program that writes it")
        holder.communicate()
    real = h5py.File

    def refuse(path, mode):
        raise PermissionError("unable to open file: errno = 13, error message = 'Permission denied'")

    monkeypatch.setattr(h5py, "File", refuse)
    refused(made, "may not be read by this user")
    monkeypatch.setattr(h5py, "File", real)
    with h5py.File(made, "r+") as file:
        del file[f"q/{hdf5.JETS}"]
        how = {"chunks": (12, 4), "compression": 32015, "allow_unknown_filter": True}
        file.create_dataset(f"q/{hdf5.JETS}", (12, 4), np.float32, **how)
        file[f"q/{hdf5.JETS}"].id.write_direct_chunk((0, 0), b"not what it was")
    refused(made, "by a filter that this HDF5 lacks; without it: h5repack")
    made.write_bytes(made.read_bytes()[:500])
    refused(made, "truncated or not an HDF5 file")


def test_no_flipped_byte_of_the_header_is_a_traceback(made):
    """Either it does not matter, or it is one line."""
    good = made.read_bytes()
    rng = np.random.default_rng(0)
    for at in rng.integers(0, 4096, 300):
        bad = bytearray(good)
        bad[at] ^= 1 << int(rng.integers(8))
        made.write_bytes(bytes(bad))
        with contextlib.suppress(DataError):
            hdf5.read(made)


def test_momenta_counts_and_masses_are_checked_at_every_door(made):
    def change(name, column, value):
        with h5py.File(made, "r+") as file:
            values = file[f"q/{name}"][:]
            values[..., column] = np.where(values[..., -1] == 0, 0, value) if name == hdf5.PARTICLES else value
            file[f"q/{name}"][:] = values

    good = made.read_bytes()
    for name, column, value, words in (
        (hdf5.PARTICLES, 2, 250.0, "row 0: pt_rel is relative to the pT of the jet"),
        (hdf5.JETS, 3, -1, "row 0: number of particles must be at least 1, got -1"),
        (hdf5.JETS, 2, 0, "row 0: mass of several particles must be > 0, got 0"),
        (hdf5.JETS, 2, -3, "got -3"),
    ):
        change(name, column, value)
        refused(made, words)
        made.write_bytes(good)


def test_what_a_file_says_of_itself_can_be_written_anywhere(made):
    with h5py.File(made, "r+") as file:
        file.attrs["who"] = np.bytes_(b"caf\xe9")
        file.attrs.create("also", b"caf\xe9", dtype=h5py.string_dtype("utf-8"))
        file.attrs["jet_pt_gev"] = np.array([1000.0])
    said = hdf5.read(made).metadata
    assert "".join(said.values()).encode("utf-8")
    assert said["who"].startswith("caf")
    assert is_number(said["jet_pt_gev"], 1000)


def test_a_file_of_any_name_has_a_source_that_can_be_written(made):
    named = made.with_name(os.fsdecode(b"caf\xe9.h5"))
    made.rename(named)
    with h5py.File(named, "r+") as file:
        del file.attrs["source"]
    assert hdf5.read(named).source == "caf?.h5"
    assert hdf5.read(named).source.encode("utf-8")


@pytest.mark.parametrize("text", ["1000", "1000.0", "1e3"])
def test_numbers_are_compared_as_numbers(text):
    assert is_number(text, 1000.0)
    assert not is_number(text, 500.0)
    assert not is_number("a thousand", 1000.0)
