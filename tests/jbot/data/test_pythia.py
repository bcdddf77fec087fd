"""Generated jets: the same whatever the workers, a prefix of more, and nothing trusted that was not finished."""

import multiprocessing
import os
import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pytest

from jbot.data import DataError, chunks, generate, load, pythia
from jbot.data.chunks import Chunk, generate_file, make_chunk
from jbot.data.pythia import Settings, card, jet_features
from jbot.store.storage import DAY_S, remove_stale_files

SETTINGS = Settings(seed=3)


@pytest.fixture
def generator() -> None:
    """Skip where the extra [pythia] is missing; everything else here runs without it."""
    for module in ("pythia8mc", "fastjet", "awkward"):
        pytest.importorskip(module, reason="needs the extra [pythia]")


# --- with Pythia --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("generator")
def test_the_number_of_workers_does_not_matter_and_fewer_jets_are_a_prefix(tmp_path: Path) -> None:
    alone = generate_file({"q": 20, "w": 20}, SETTINGS, workers=1, cache=tmp_path / "one", progress=False)
    together = generate_file({"q": 20, "w": 20}, SETTINGS, workers=2, cache=tmp_path / "two", progress=False)
    assert alone.read_bytes() == together.read_bytes()
    fewer = generate_file({"w": 7}, SETTINGS, workers=1, cache=tmp_path / "one", progress=False)
    with h5py.File(alone) as more, h5py.File(fewer) as less:
        for name in ("particle_features", "jet_features"):
            np.testing.assert_array_equal(less[f"w/{name}"][:], more[f"w/{name}"][:7])
        assert "arXiv:2203.11601" in more.attrs["cite Pythia"]
        assert "arXiv:1111.6097" in more.attrs["cite FastJet"]
        assert "arXiv:2106.11535" in more.attrs["cite JetNet"]
        assert {"jet_pt_gev", "radius", "seed", "pythia8mc", "fastjet", "recipe"} <= set(more.attrs)


@pytest.mark.usefixtures("generator")
def test_another_energy_opens_jets_by_the_same_rule(tmp_path: Path) -> None:
    data = load("pythia", jets_per_class={"t": 10}, jet_pt=500.0, workers=1, cache=tmp_path, progress=False)
    assert data.metadata["radius"] == "0.8"
    assert 400 < np.median(data.jets[:, 0]) < 600
    assert data.source.startswith("Pythia ")


@pytest.mark.usefixtures("generator")
def test_mmdt_against_two_jets_made_by_hand() -> None:
    import awkward as ak

    def jet(shares: list[float], phi: list[float]) -> dict[str, list[float]]:
        pt, angle = 1000 * np.array(shares), np.array(phi)
        return {"px": pt * np.cos(angle), "py": pt * np.sin(angle), "pz": 0 * pt, "E": pt}

    two_prongs, one_prong = jet([0.5, 0.45, 0.05], [0.0, 0.2, 0.3]), jet([0.9, 0.05, 0.05], [0.0, 0.2, -0.3])
    chain = jet([0.8, 0.092, 0.0907], [0.0, 0.1, -0.25])  # 0.0907 < 0.1 of all, then 0.092 / 0.892 > 0.1 of the rest
    jets = ak.Array([{key: list(values) for key, values in made.items()} for made in (two_prongs, one_prong, chain)])
    jets = ak.zip({key: jets[key] for key in ("px", "py", "pz", "E")}, with_name="Momentum4D")
    assert pythia.groomed_counts(jets, 0.4).tolist() == [3, 1, 2]
    assert pythia.survives_mmdt(jets, 0.4).tolist() == [True, False, True]


def test_a_missing_extra_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    def missing(package: str) -> str:
        raise pythia.PackageNotFoundError(package)

    monkeypatch.setattr(pythia, "version", missing)
    assert generate.main(["--jets", "5"]) == 2
    assert capsys.readouterr().err == (
        "error: generating jets needs pythia8mc: pip install 'jbot-studies[pythia]' (Python 3.11 or 3.12)\n"
    )


# --- features -----------------------------------------------------------------------------------------------------


def test_features_of_a_jet_of_two_particles() -> None:
    # Equal massless particles at phi = +-0.1 round pi, eta 0: the jet has pT 2 * 50 cos 0.1 and mass 2 * 50 sin 0.1.
    angle = np.pi + np.array([0.1, -0.1])
    p4 = np.stack([50 * np.cos(angle), 50 * np.sin(angle), [0.0, 0.0], [50.0, 50.0]], axis=1)
    particles, jets = jet_features(p4, np.array([2]))
    assert jets[0] == pytest.approx([100 * np.cos(0.1), 0.0, 100 * np.sin(0.1), 2], rel=1e-6, abs=1e-6)
    assert sorted(particles[0, :2, 1]) == pytest.approx([-0.1, 0.1], abs=1e-6)
    assert particles[0, :2, 2] == pytest.approx(0.5 / np.cos(0.1))
    assert not particles[0, 2:].any()


def test_only_the_thirty_hardest_particles_are_kept_in_order() -> None:
    pt = np.random.default_rng(0).permutation(np.arange(1.0, 41.0))  # 1 to 40 GeV along one direction
    p4 = np.stack([pt, 0 * pt, 0 * pt, pt], axis=1)
    particles, jets = jet_features(np.concatenate([p4, p4[:3]]), np.array([40, 3]))
    np.testing.assert_allclose(particles[0, :, 2], np.arange(40.0, 10.0, -1) / 820.0, rtol=1e-6)
    assert jets[:, 3].tolist() == [30, 3]
    assert jets[0, 0] == pytest.approx(820.0)
    assert particles[1, :, 3].sum() == 3


def test_cards() -> None:
    assert "PhaseSpace:pTHatMax = 505" in card("q", 500.0)
    assert not any("pTHatMax" in line for line in card("g", 500.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"jet_pt": 100.0}, r"jet pT must lie in \[200, 5000\] GeV, got 100"),
        ({"radius": 0.0}, r"jet radius must lie in \(0, pi/2\], got 0"),
        ({"seed": -1}, "seed must be an integer >= 0, got -1"),
    ],
)
def test_bad_settings(change: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Settings(**change)


# --- chunks and cache ---------------------------------------------------------------------------------------------


def test_finished_chunks_are_kept_and_a_killed_run_continues(
    tmp_path: Path, fake: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished = chunks.generate

    def killed_in_the_third(name, n_jets, settings, seeds):
        if len(fake) == 2:
            raise KeyboardInterrupt
        return finished(name, n_jets, settings, seeds)

    monkeypatch.setattr(chunks, "generate", killed_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        generate_file({"q": 35}, SETTINGS, workers=1, cache=tmp_path, progress=False)
    assert len(fake) == 2
    assert not list(tmp_path.rglob("jets_*.h5"))
    monkeypatch.setattr(chunks, "generate", finished)
    path = generate_file({"q": 35}, SETTINGS, workers=1, cache=tmp_path, progress=False)
    assert [n for _, n in fake] == [10, 10, 10, 5]  # two before the kill, two after
    whole = generate_file({"q": 35}, SETTINGS, workers=1, cache=tmp_path / "other", progress=False)
    assert path.read_bytes() == whole.read_bytes()


def test_a_process_killed_while_writing_leaves_nothing_trusted(tmp_path: Path, fake: list) -> None:
    chunk = Chunk("q", 0, 10, SETTINGS, tmp_path)
    process = multiprocessing.get_context("spawn").Process(target=_write_half_and_die, args=(chunk.path,))
    process.start()
    process.join()
    assert [path.suffix for path in tmp_path.iterdir()] == [".tmp"]
    assert chunks._read_chunk(chunk) is None
    make_chunk(chunk)
    assert chunks._read_chunk(chunk) is not None


def _write_half_and_die(path: Path) -> None:
    from jbot.store.storage import atomic_write

    with atomic_write(path) as partial:
        partial.write_bytes(b"half a chunk")
        os._exit(1)


def test_old_leftovers_are_removed_and_young_ones_left_to_their_writer(tmp_path: Path) -> None:
    old, young = (tmp_path / f".{name}.h5.7-ffffffff-00000000.tmp" for name in "ab")  # of another machine
    for path in (old, young):
        path.touch()
    os.utime(old, (0, young.stat().st_mtime - DAY_S - 60))
    remove_stale_files(tmp_path)
    assert list(tmp_path.iterdir()) == [young]


@pytest.mark.parametrize("damage", ["truncate", "change", "empty"])
def test_damaged_chunks_and_files_are_made_again(tmp_path: Path, fake: list, damage: str) -> None:
    path = generate_file({"q": 20}, SETTINGS, workers=1, cache=tmp_path, progress=False)
    before = path.read_bytes()
    chunk = sorted(tmp_path.rglob("q_*.h5"))[0]
    for file in (path, chunk):
        _damage(file, damage)
    again = generate_file({"q": 20}, SETTINGS, workers=1, cache=tmp_path, progress=False)
    assert again.read_bytes() == before
    assert len(fake) == 3


def _damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how != "change":
        path.write_bytes(content[: len(content) // 2] if how == "truncate" else b"")
        return
    with h5py.File(path, "r+") as file:
        features = file["q/particle_features"] if "q" in file else file["particle_features"]
        features[0, 0, 2] = 0.05


def test_the_cache_is_used_and_settings_do_not_share_it(tmp_path: Path, fake: list) -> None:
    first = generate_file(10, SETTINGS, workers=1, cache=tmp_path, progress=False)
    assert len(fake) == 5
    assert generate_file(10, SETTINGS, workers=1, cache=tmp_path, progress=False) == first
    assert len(fake) == 5
    others = [Settings(seed=4), Settings(seed=3, jet_pt=500.0), Settings(seed=3, radius=0.8)]
    paths = {generate_file(10, other, workers=1, cache=tmp_path, progress=False) for other in others}
    assert len(paths | {first}) == 4
    assert len(fake) == 20


def test_classes_and_chunks_have_streams_of_their_own(tmp_path: Path, fake: list) -> None:
    data = load("pythia", jets_per_class={"q": 20, "t": 10}, workers=1, cache=tmp_path, progress=False)
    assert len(np.unique(data.particles[:, 0, 2])) == 30


def test_command_line(tmp_path: Path, fake: list, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "out.h5"
    common = ["--cache", str(tmp_path), "--workers", "1"]
    assert generate.main(["--jets", "4", "--classes", "q", "g", "--out", str(out), *common]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert load(str(out), jets_per_class=None).labels.tolist() == [0] * 4 + [1] * 4
    assert generate.main(["--jets", "4", "--pt", "50", *common]) == 2
    assert capsys.readouterr().err == "error: jet pT must lie in [200, 5000] GeV, got 50\n"
    assert generate.main(["--jets", "-4", *common]) == 2
    assert generate.main(["--jets", "4", "--cache", str(tmp_path), "--workers", "0"]) == 2


def test_a_cache_that_cannot_be_written_is_one_line(fake: list, capsys: pytest.CaptureFixture) -> None:
    assert generate.main(["--jets", "10", "--cache", "/proc/nowhere"]) == 2
    *_, said = capsys.readouterr().err.splitlines()  # a bar comes first
    assert said.startswith("error: ")
    assert "/proc/nowhere" in said


def test_a_cache_that_cannot_be_written_is_found_before_jets_are_made(tmp_path: Path, fake: list) -> None:
    (tmp_path / "pythia").write_text("a file where a folder should be")
    with pytest.raises(DataError, match=r"jets cannot be kept there .*; set JBOT_CACHE to another folder"):
        load("pythia", jets_per_class=3, cache=tmp_path)
    assert fake == []


def test_generation_needs_a_number_of_jets() -> None:
    with pytest.raises(DataError, match="source 'pythia' needs a number of jets of each class, got None"):
        load("pythia", jets_per_class=None)


def test_another_executor_makes_the_same_file(tmp_path: Path, fake: list) -> None:
    here = generate_file({"q": 25}, SETTINGS, workers=1, cache=tmp_path / "here", progress=False)
    given = []

    def backwards(wanted):
        for chunk in reversed(wanted):
            given.append(chunk.number)
            chunks.save_chunk(chunk, chunks.generate_chunk(chunk))
            yield chunk.n_jets

    (tmp_path / "there").mkdir()
    there = generate_file({"q": 25}, SETTINGS, cache=tmp_path / "there", progress=False, executor=backwards)
    assert given == [2, 1, 0]
    assert here.read_bytes() == there.read_bytes()


def test_putting_a_large_file_together_holds_a_chunk_at_a_time(
    tmp_path: Path, fake: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Peak of Python's own and numpy's allocations: 20,000 jets are 9.6 MB, chunks and blocks of 200 are 0.1 MB."""
    monkeypatch.setattr(chunks, "CHUNK", 200)
    monkeypatch.setattr("jbot.data.jets.BLOCK", 200)
    generate_file({"q": 20}, SETTINGS, workers=1, cache=tmp_path, progress=False)  # what is imported on first use
    tracemalloc.start()
    generate_file({"q": 20_000}, SETTINGS, workers=1, cache=tmp_path, progress=False)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2e6
