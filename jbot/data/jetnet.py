"""The real JetNet files: from a folder without any network, else downloaded once from Zenodo by the jetnet package."""

import contextlib
import importlib
import sys
import tempfile
from pathlib import Path

from jbot.data import hdf5
from jbot.data.jets import CLASSES, DataError, JetData
from jbot.store.storage import cache_folder

SOURCE = "JetNet (Zenodo 6975118)"
CITATION = "R. Kansal et al., Particle cloud generation with message passing GANs (JetNet), arXiv:2106.11535"


def load_jetnet(jets_per_class: hdf5.Request = None, cache: Path | None = None) -> JetData:
    """Read JetNet from the cache folder; files not there are downloaded first.

    A folder of one's own with q.hdf5, g.hdf5, ... is read by giving its path as the source.

    Raises
    ------
    DataError
        Without network or the jetnet package, or for files that break the layout.
    """
    folder = cache_folder(cache) / "jetnet"
    for name in missing_files(jets_per_class, cache):
        _download(name, folder)
    data = hdf5.read(folder, jets_per_class)
    return JetData(**{**vars(data), "source": SOURCE, "metadata": data.metadata | {"cite JetNet": CITATION}})


def missing_files(jets_per_class: hdf5.Request = None, cache: Path | None = None) -> list[str]:
    """Classes that are wanted and not in the cache folder."""
    wanted = CLASSES if jets_per_class is None else tuple(hdf5.requested_counts(jets_per_class))
    return [name for name in wanted if not (cache_folder(cache) / "jetnet" / f"{name}.hdf5").exists()]


def _download(name: str, folder: Path) -> None:
    """Fetch one class's file into `folder`.

    jetnet contacts Zenodo before it looks at the disk and deletes files whose checksum differs, so it works in an
    empty folder of its own; it checks the checksum after the download, and only then the file is moved.
    """
    try:
        datasets = importlib.import_module("jetnet.datasets")
    except ImportError:
        raise DataError("downloading JetNet needs the jetnet package: pip install 'jbot-studies[jetnet]'") from None
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as workspace:
        try:
            with contextlib.redirect_stdout(sys.stderr):  # jetnet prints its progress
                datasets.JetNet.getData(jet_type=name, data_dir=workspace, download=True)
        except Exception as error:  # requests, json and jetnet each raise their own kinds
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            raise DataError(
                f"{folder / name}.hdf5 is not there and JetNet could not be downloaded from Zenodo record 6975118 "
                f"({reason}); put {{q,g,w,z,t}}.hdf5 there, or use generated jets"
            ) from None
        (Path(workspace) / f"{name}.hdf5").replace(folder / f"{name}.hdf5")
