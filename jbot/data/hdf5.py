"""JetNet's HDF5 layout: read it with every row checked, write it atomically.

Two shapes of the layout (JetNet, arXiv:2106.11535, Zenodo 6975118):

    one file:  {q,g,w,z,t}/particle_features (jet, 30, 4), {q,g,w,z,t}/jet_features (jet, 4)
    a folder:  {q,g,w,z,t}.hdf5, each with particle_features and jet_features

particle_features are eta_rel, phi_rel, pt_rel, mask; jet_features are pT [GeV], eta, mass [GeV], number of particles.
"""

from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np

from jbot.data.files import written_whole
from jbot.data.jetdata import CLASSES, N_PARTICLES, DataError, JetData, join_classes

PARTICLES = "particle_features"
JETS = "jet_features"
PARTICLE_COLUMNS = ("eta_rel", "phi_rel", "pt_rel", "mask")
JET_COLUMNS = ("pT", "eta", "mass", "number of particles")

Request = Mapping[str, int] | int | None
"""Jets wanted: per class, the same of every class, or None for all there are."""


def read(path: Path, jets_per_class: Request = None) -> JetData:
    """Read jets from one file with a group a class, or from a folder with a file a class.

    Parameters
    ----------
    path : Path
        An .h5 or .hdf5 file, or a folder holding q.hdf5, g.hdf5, ...
    jets_per_class : mapping, int or None
        The first rows of each class are taken: rows are assumed to be in random order, as generators write them.

    Raises
    ------
    DataError
        Naming file, dataset and row of whatever breaks the layout.
    """
    if path.is_dir():
        return _read_folder(path, jets_per_class)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    with open_hdf5(path) as file:
        wanted = _wanted(path, [name for name in CLASSES if name in file], jets_per_class)
        per_class = {name: read_class(file, name, count) for name, count in wanted.items()}
        metadata = {key: str(value) for key, value in file.attrs.items()}
    return join_classes(per_class, source=metadata.get("source", path.name), metadata=metadata)


def _read_folder(folder: Path, jets_per_class: Request) -> JetData:
    files = {name: folder / f"{name}.hdf5" for name in CLASSES}
    wanted = _wanted(folder, [name for name in CLASSES if files[name].exists()], jets_per_class)
    per_class = {}
    metadata: dict[str, str] = {}
    for name, count in wanted.items():
        with open_hdf5(files[name]) as file:
            per_class[name] = read_class(file, "", count)
            metadata |= {f"{name}: {key}": str(value) for key, value in file.attrs.items()}
    return join_classes(per_class, source=f"folder {folder.name}", metadata=metadata)


def _wanted(path: Path, present: list[str], jets_per_class: Request) -> dict[str, int | None]:
    """Rows to read of each class (None: all), in class order; every class asked for must be there."""
    if not present:
        raise DataError(f"{path}: holds none of the classes {', '.join(CLASSES)}")
    if jets_per_class is None:
        return dict.fromkeys(present)
    wanted = requested_counts(jets_per_class)
    missing = [name for name in wanted if name not in present]
    if missing:
        raise DataError(f"{path}: class {', '.join(missing)} is missing, it holds {', '.join(present)}")
    return dict(wanted)


def requested_counts(jets_per_class: Mapping[str, int] | int) -> dict[str, int]:
    """Jets asked for of each class, in class order; classes with a count of zero are left out.

    Raises
    ------
    DataError
        For an unknown class, a negative or non-integer count, or no jets at all.
    """
    counts = dict.fromkeys(CLASSES, jets_per_class) if isinstance(jets_per_class, int) else dict(jets_per_class)
    for name, count in counts.items():
        if name not in CLASSES:
            raise DataError(f"class must be one of {', '.join(CLASSES)}, got {name!r}")
        if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 0:
            raise DataError(f"jets of class {name} must be an integer >= 0, got {count!r}")
    wanted = {name: int(counts[name]) for name in CLASSES if counts.get(name)}
    if not wanted:
        raise DataError(f"at least one jet must be asked for, got {jets_per_class!r}")
    return wanted


def open_hdf5(path: Path) -> h5py.File:
    """Open for reading, with one clear error for a truncated file or one that is not HDF5."""
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise DataError(f"{path}: truncated or not an HDF5 file ({_first_line(error)})") from None


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def read_class(file: h5py.File, group: str, count: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Read and check one class.

    Parameters
    ----------
    file : h5py.File
        Open file.
    group : str
        The class's group, or "" where the datasets lie at top level.
    count : int or None
        Rows to take from the start; None takes all.

    Returns
    -------
    particles (jet, 30, 4), jets (jet, 4) : float32 arrays

    Raises
    ------
    DataError
        Naming file, dataset and the first row that breaks a rule.
    """
    where = f"{file.filename}: {group}/" if group else f"{file.filename}: "
    if group and not isinstance(file[group], h5py.Group):
        raise DataError(f"{file.filename}: {group} must be a group with {PARTICLES} and {JETS}")
    container = file[group] if group else file
    particle_set = _dataset(container, where, PARTICLES, (N_PARTICLES, 4))
    jet_set = _dataset(container, where, JETS, (4,))
    _check_lengths(where, len(particle_set), len(jet_set), count)
    particles = _rows(particle_set, where + PARTICLES, count)
    jets = _rows(jet_set, where + JETS, count)
    check_particles(particles, where + PARTICLES)
    check_jets(jets, where + JETS)
    return _clean(particles), _cap_multiplicity(jets)


def _dataset(container: h5py.Group, where: str, name: str, row_shape: tuple[int, ...]) -> h5py.Dataset:
    """The dataset of this name, of numbers and of the right shape."""
    dataset = container.get(name)
    if not isinstance(dataset, h5py.Dataset):
        raise DataError(f"{where}{name} is missing")
    if dataset.shape is None or dataset.shape[1:] != row_shape or len(dataset.shape) != 1 + len(row_shape):
        expected = ", ".join(["jet", *map(str, row_shape)])
        raise DataError(f"{where}{name} must have shape ({expected}), got {dataset.shape}")
    if dataset.dtype.kind not in "fiu":
        raise DataError(f"{where}{name} must hold real numbers, got dtype {dataset.dtype}")
    return dataset


def _check_lengths(where: str, n_particle_rows: int, n_jet_rows: int, count: int | None) -> None:
    if n_particle_rows != n_jet_rows:
        raise DataError(f"{where}{PARTICLES} has {n_particle_rows} rows but {JETS} has {n_jet_rows}")
    if n_particle_rows == 0:
        raise DataError(f"{where}{PARTICLES} holds no jets")
    if count is not None and count > n_particle_rows:
        raise DataError(f"{where}{PARTICLES} holds {n_particle_rows} jets, {count} are needed")


def _rows(dataset: h5py.Dataset, where: str, count: int | None) -> np.ndarray:
    try:
        values = dataset[:count]
    except OSError as error:
        raise DataError(f"{where} cannot be read, the file is damaged ({_first_line(error)})") from None
    with np.errstate(over="ignore"):  # a value beyond float32 becomes infinite, which check_* reports
        return values.astype(np.float32)


def check_particles(particles: np.ndarray, where: str) -> None:
    """Check rows of (jet, 30, 4) features; `where` opens the message of the DataError."""
    _check_finite(particles, where, PARTICLE_COLUMNS)
    pt_rel, mask = particles[..., 2], particles[..., 3]
    _raise_at(~np.isin(mask, (0.0, 1.0)), mask, where, "mask must be 0 or 1")
    _raise_at((mask == 1) & (pt_rel <= 0), pt_rel, where, "pt_rel of a valid particle must be > 0")
    n_valid = mask.sum(axis=1)
    _raise_at(n_valid == 0, n_valid, where, "a jet must have at least one valid particle")


def check_jets(jets: np.ndarray, where: str) -> None:
    """Check rows of (jet, 4) features; `where` opens the message of the DataError."""
    _check_finite(jets, where, JET_COLUMNS)
    _raise_at(jets[:, 0] <= 0, jets[:, 0], where, "jet pT must be > 0")


def _check_finite(values: np.ndarray, where: str, columns: tuple[str, ...]) -> None:
    for column, name in enumerate(columns):
        _raise_at(~np.isfinite(values[..., column]), values[..., column], where, f"{name} must be finite")


def _raise_at(broken: np.ndarray, values: np.ndarray, where: str, rule: str) -> None:
    """Raise for the first place where `broken` (jet,) or (jet, particle) is true."""
    if not broken.any():
        return
    place = np.unravel_index(np.argmax(broken), broken.shape)
    spot = f"row {place[0]}" + (f", particle {place[1]}" if len(place) == 2 else "")
    others = np.count_nonzero(broken) - 1
    raise DataError(f"{where}, {spot}: {rule}, got {values[place]:g}" + (f" (and {others} more)" if others else ""))


def _clean(particles: np.ndarray) -> np.ndarray:
    """Zero the features of padding, so that a sum over the 30 slots is a sum over particles."""
    return particles * particles[..., 3:]


def _cap_multiplicity(jets: np.ndarray) -> np.ndarray:
    """JetNet counts all particles of a jet; ours is the number of those kept, at most 30."""
    capped = jets.copy()
    capped[:, 3] = np.minimum(jets[:, 3], N_PARTICLES)
    return capped


def write(path: Path, per_class: Mapping[str, tuple[np.ndarray, np.ndarray]], attributes: Mapping[str, str]) -> None:
    """Write one file in JetNet's layout, whole or not at all; equal content gives equal bytes.

    Parameters
    ----------
    path : Path
        Target, replaced if it exists.
    per_class : mapping
        Class name -> (particles (jet, 30, 4), jets (jet, 4)), float32.
    attributes : mapping
        Settings, versions and citations, kept as attributes of the file.
    """
    with written_whole(path) as partial, h5py.File(partial, "w") as file:  # the file closes before it is moved
        file.attrs.update(dict(attributes))
        for name, (particles, jets) in per_class.items():
            group = file.create_group(name)
            for key, values in ((PARTICLES, particles), (JETS, jets)):
                group.create_dataset(key, data=values, compression="gzip", compression_opts=4, shuffle=True)
