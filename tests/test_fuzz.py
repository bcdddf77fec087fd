"""Bad input of every kind: a program does its work, or says one line and exits with 2, and overwrites nothing.

JBOT_FUZZ=2000 python -m pytest tests/test_fuzz.py        so many examples of each, drawn anew each time
"""

import contextlib
import copy
import dataclasses
import functools
import hashlib
import importlib
import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import ROOT, TINY, make_data, write_jets
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from simulated import make_plan, simulate

from analysis import compare, export, pictures
from analysis.index import page as index
from analysis.paper import tables
from analysis.plots.svg import is_harmless
from analysis.report import build
from analysis.report.sections.search import section as search_section
from analysis.verdicts import study_index as found
from analysis.verdicts.tables import trial_table
from cluster import launch as launch_files
from cluster import mirror
from cluster.doctor import command as doctor
from jbot.config import Config, ConfigError, flatten, from_dict, override, parse_value
from jbot.data import CLASSES, DataError, hdf5, validate
from jbot.encoder import embed, keras_weights
from jbot.encoder.load import EncoderError, load
from jbot.messages import without_secret
from jbot.store.plan import Contrast, load_study
from jbot.store.record import Record, load_curves, load_finetune_curves, load_record
from jbot.store.storage import RecordError, Storage
from jbot.trainer.model import weight_shapes
from studies.runner.study import Study

EXAMPLES = int(os.environ.get("JBOT_FUZZ", "0"))
FUZZ = settings(
    max_examples=EXAMPLES or 25,
    derandomize=not EXAMPLES,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    database=None,
)
FEW = settings(FUZZ, max_examples=EXAMPLES or 8)
"""Of what takes tenths of a second each."""

WILD_TEXT = st.one_of(
    st.sampled_from([
        "", " ", "nan", "inf", "-inf", "1e400", "-1", "0", "1e-400", "9" * 30, "9" * 5000, "0x10", "1_000", "null",
        "true", "[]", "{}", "[[[]]]", "[" * 3000, "[nan]", "[1e999]", '["1 a=b"]',
        '["1 optim.lr=nan"]', "\x00", "\ud800", "\x1b[31mred", "a\nb",
        "../../etc/passwd", "=", "==", "%s%n", "{pt}", "s3://", "s3://k:s@", "://", "file://",
        "http://u:secret@[::1", "--", "-", "--set", "<script>alert(1)</script>", "é\u0301\u202e", "٣",
    ]),
    st.text(max_size=30),
    st.integers().map(str),
    st.floats().map(repr),
)  # fmt: skip
WILD_JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.integers(min_value=10**30, max_value=10**31),
        st.floats(),
        st.text(max_size=12),
        st.sampled_from(["../..", "<script>", "\ud800", 1e308, -1, 0, 2**63]),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)),
    max_leaves=6,
)


def digests(*folders: Path) -> dict[str, str]:
    """Every file and what it holds."""
    files = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def answer(main, arguments) -> tuple[int, str]:
    """Exit code and stderr of a program in this process. What else it raises is a traceback to its user."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code
    return code or 0, said.getvalue()


def obeys(main, arguments, *folders: Path) -> int:
    """The rule of this file for one command; returns its exit code."""
    before = digests(*folders)
    code, said = answer(main, arguments)
    if code == 2:
        (line,) = said.splitlines()
        assert line.startswith("error: "), line
        assert len(line) > len("error: ")
        assert digests(*folders) == before
    else:
        assert code in (0, 1), (code, said)
        now = digests(*folders)
        assert {name: now[name] for name in before} == before
    assert "Traceback" not in said
    return code


# --- Config and command lines -------------------------------------------------------------------------------------

FIELDS = list(flatten(Config()))


@FUZZ
@given(st.sampled_from([*FIELDS, "odd", "", "data", "train.epochs.", "seed.x"]), WILD_TEXT)
@example("train.epochs", "[" * 5000)
@example("train.epochs", "9" * 5000)
@example("data.train_jets", "1" + "0" * 300)
def test_a_config_field_takes_a_value_or_says_why_not(name, text):
    try:
        config = override(Config(), {name: parse_value(name, text)})
    except ConfigError:
        return
    assert from_dict(json.loads(json.dumps(dataclasses.asdict(config), allow_nan=False))) == config


@FUZZ
@given(st.dictionaries(st.sampled_from(["data", "seed", "train", "odd"]), WILD_JSON) | WILD_JSON)
def test_a_nested_config_is_one_or_says_why_not(nested):
    with contextlib.suppress(ConfigError):
        assert isinstance(from_dict(nested), Config)


def programs() -> list[str]:
    """Every program of this repository, as the module that python -m runs; workers that others start aside, and an
    older address that runs the module of the new one."""
    found = [
        str(path.relative_to(ROOT).with_suffix("")).replace("/", ".")
        for folder in ("jbot", "studies", "analysis", "cluster", "benchmarks")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if '\nif __name__ == "__main__":' in (text := path.read_text()) and "runpy.run_module" not in text
    ]
    return [name for name in found if not name.endswith("_worker")]


def main_of(name: str):
    """The command line of a program, as a function of its words."""
    module = importlib.import_module(name)
    if hasattr(module, "study"):
        return functools.partial(importlib.import_module("studies").main, module.study)
    return module.main


STUDIES = [name for name in programs() if name.startswith("studies.") and name != "studies.all"]


@pytest.mark.parametrize("name", programs())
def test_every_program_says_what_it_does_and_refuses_an_unknown_option_in_one_line(name, capsys):
    main = main_of(name)
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    usage, about, *_ = capsys.readouterr().out.split("\n\n")
    assert usage.startswith("usage: ")
    assert len(about) > 20  # what it is for
    with pytest.raises(SystemExit) as end:
        main(["--no-such-option"])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")


WITHOUT_DOCSTRINGS = """
import contextlib, importlib, io, sys
for name in sys.argv[1:]:
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
        importlib.import_module(name).main(["--help"])
    print(name, len(said.getvalue().split("\\n\\n")[1]) > 20)
"""


def test_programs_say_what_they_do_without_docstrings_and_assertions():
    names = [name for name in programs() if not hasattr(importlib.import_module(name), "study")]
    command = [sys.executable, "-OO", "-c", WITHOUT_DOCSTRINGS, *names]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert said.stdout.splitlines() == [f"{name} True" for name in names], said.stderr


SETTINGS = st.tuples(st.sampled_from(FIELDS), WILD_TEXT).map("=".join) | WILD_TEXT
BAD_STORAGES = ["s3://", "s3://k:s@", "what://x", "a\x00b", "file://", "\ud800", "/proc/x"]
OPTIONS = st.one_of(
    st.tuples(st.just("--set"), SETTINGS),
    st.tuples(st.just("--storage"), st.sampled_from(BAD_STORAGES)),
    st.tuples(
        st.sampled_from(
            ["--seeds", "--preset", "--price", "--cpus", "--gpus", "--pack", "--grow-to", "--engine",
             "--figures", "--until-decided", "--points", "--budget", "--odd"]
        ),
        WILD_TEXT,
    ),
)  # fmt: skip


@FEW
@given(st.sampled_from(STUDIES), st.lists(OPTIONS, min_size=1, max_size=3))
def test_a_study_takes_its_command_line_or_says_why_not(work, name, options):
    words = [word for option in options for word in option]
    start = ["--preset", "smoke", "--inline", "--data", "no/such/jets.h5", "--storage", "out"]
    with contextlib.chdir(work):
        assert obeys(main_of(name), [*start, *words], work) == 2  # at the latest for the jets
        assert digests(work) == {}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """An empty folder to be in."""
    return tmp_path_factory.mktemp("work")


# --- files --------------------------------------------------------------------------------------------------------


@st.composite
def damaged(draw, content: bytes) -> bytes:
    """Bytes of a file after an accident."""
    kind = draw(st.sampled_from(["cut", "flip", "insert", "empty", "noise", "zeros"]))
    place = draw(st.integers(0, max(0, len(content) - 1)))
    some = draw(st.binary(min_size=1, max_size=20))
    return {
        "cut": content[:place],
        "flip": content[:place] + some + content[place + len(some) :],
        "insert": content[:place] + some + content[place:],
        "empty": b"",
        "noise": some,
        "zeros": bytes(len(content)),
    }[kind]


def paths(content, path=()):
    """Every place of a JSON document."""
    yield path
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield from paths(value, (*path, key))


@st.composite
def changed(draw, content):
    """A JSON document with something else, or nothing, in one or two of its places; as bytes."""
    content = copy.deepcopy(content)
    for _ in range(draw(st.integers(1, 2))):
        path = draw(st.sampled_from(sorted(paths(content), key=lambda path: (len(path), str(path)))))
        value = draw(WILD_JSON)
        if not path:
            return json.dumps(value).encode("utf-8", "surrogatepass")
        holder = content
        for key in path[:-1]:
            holder = holder[key]
        if draw(st.booleans()):
            holder[path[-1]] = value
        else:
            del holder[path[-1]]
    return json.dumps(content).encode("utf-8", "surrogatepass")


def other_file(content: bytes):
    """Damaged bytes of a JSON file, or another document."""
    fixed = st.sampled_from([b"[" * 5000, b'{"a":' * 5000, b"\xff\xfe{}", b"1e999999", b"9" * 5000, b"NaN", b"null"])
    return st.one_of(changed(json.loads(content)), changed(json.loads(content)), damaged(content), fixed)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A study of simulated records, the whole of which every program can read."""
    contrast = Contrast(treatment="more", control="base", primary=True)
    plan = make_plan({"base": {}, "more": {"mask.ratio_high": 0.8}}, seeds=3, contrasts=(contrast,))
    folder = tmp_path_factory.mktemp("results")
    curves = [{"epoch": e, "val/knn_accuracy": 0.1 * e, "device_seconds": 5.0 * e} for e in range(5)]
    simulate(folder, plan, lambda config, seed, rng: rng.uniform(0.4, 0.6), curves=lambda value: curves)
    return folder


@contextlib.contextmanager
def with_file(path: Path, content: bytes):
    """A file with another content, for a while."""
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(before)


def read_all(results: Path) -> None:
    """What reports, comparisons and tables begin with."""
    study = load_study(str(results / "simulated"))
    trial_table(study)
    for trial in study.trials:
        study.curves(trial.trial_id)


def tables_obey(results: Path, out: Path) -> None:
    """The quick programs on a folder."""
    obeys(compare.main, [results, results], results)
    obeys(export.main, [results, "--out", out / "a.csv"], results)
    obeys(export.main, [results, "--wide", "--out", out / "a.parquet"], results)
    obeys(export.main, [results, "--curves", "--out", out / "c.csv"], results)


@FEW
@given(st.data())
def test_record_files(results, tmp_path_factory, data):
    path = sorted(results.glob("trials/*/record.json"))[0]
    with with_file(path, data.draw(other_file(path.read_bytes()))):
        with contextlib.suppress(RecordError):
            assert isinstance(load_record(Storage(results), path.parent.name), Record)
        tables_obey(results, tmp_path_factory.mktemp("out"))


@FEW
@given(st.data())
def test_plan_files(results, tmp_path_factory, data):
    path = results / "simulated/study.json"
    with with_file(path, data.draw(other_file(path.read_bytes()))):
        with contextlib.suppress(RecordError):
            load_study(str(path.parent))
        tables_obey(results, tmp_path_factory.mktemp("out"))
        obeys(pictures.main, [results / "simulated", "--out", tmp_path_factory.mktemp("out")], results)


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A search that has ended."""
    pytest.importorskip("optuna")
    from test_search import AXES, plan_of, run_made_up

    from cluster.search.searcher import Searcher

    return run_made_up(Searcher(plan_of(Config(), AXES), 16, Storage(tmp_path_factory.mktemp("points")), "x"))


@FEW
@given(st.data())
def test_ledgers_of_searches(searched, data):
    from test_search import evidence_of

    from cluster.search.searcher import Searcher

    searcher = searched
    evidence, path = evidence_of(searcher), Path(searcher.storage.uri) / "s/search.json"
    with with_file(path, data.draw(other_file(path.read_bytes()))):
        found.load_index(searcher.storage)  # one damaged study hides no other
        with contextlib.suppress(RecordError):
            search_section(evidence)
        with contextlib.suppress(RecordError):
            again = Searcher(searcher.plan, 17, searcher.storage, "y")
            again.claim("0")


TABLES = st.dictionaries(
    st.sampled_from(["epoch", "run", "device_seconds", "val/knn_accuracy", ""]),
    st.lists(st.one_of(st.none(), st.text(max_size=3)), min_size=2, max_size=2)
    | st.lists(st.one_of(st.none(), st.floats(), st.integers(-(2**60), 2**60).map(float)), min_size=2, max_size=2)
    | st.lists(st.binary(max_size=3), min_size=2, max_size=2)
    | st.lists(st.lists(st.integers(0, 3), max_size=2), min_size=2, max_size=2),
    max_size=4,
)


def as_parquet(columns) -> bytes:
    """A table as a file."""
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


@FEW
@given(st.data())
def test_learning_curves(results, tmp_path_factory, data):
    path = sorted(results.glob("trials/*/curves.parquet"))[0]
    content = data.draw(st.one_of(damaged(path.read_bytes()), TABLES.map(as_parquet)))
    (path.parent / "finetune.parquet").write_bytes(content)
    try:
        for reader in (load_curves, load_finetune_curves):
            with with_file(path, content), contextlib.suppress(RecordError):
                reader(Storage(results), path.parent.name)
    finally:
        (path.parent / "finetune.parquet").unlink()
    with with_file(path, content):
        obeys(export.main, [results, "--curves", "--out", tmp_path_factory.mktemp("out") / "c.csv"], results)
        obeys(compare.main, [results, results], results)


# --- jets and checkpoints -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def jets_file(tmp_path_factory):
    """Ten jets of each class."""
    features = np.tile(np.array([1000, 0.5, 80, 30], np.float32), (50, 1))
    data = dataclasses.replace(make_data(10), jets=features)
    return write_jets(tmp_path_factory.mktemp("jets") / "jets.hdf5", data)


@pytest.fixture(scope="module")
def trial(tmp_path_factory):
    """What a trial leaves that embeds: record and weights, of an encoder that was never trained."""
    config = override(Config(), TINY)
    folder = tmp_path_factory.mktemp("trials") / "abc"
    rng = np.random.default_rng(0)
    weights = {
        name: rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in weight_shapes(config.model).items()
    }
    Storage(folder).write_arrays("student.safetensors", weights)
    record = Record(
        trial_id="abc", state="complete", study="s", arm="a", plan_hash="p", config=dataclasses.asdict(config),
        data={}, trainer_version="1", started="2026-01-01T00:00:00+00:00", wall_seconds=1.0, device_seconds=1.0,
    )  # fmt: skip
    Storage(folder).write_json("record.json", dataclasses.asdict(record))
    return folder


ROWS = st.sampled_from([0, 1, 3])
DTYPES = st.sampled_from(["<f4", "<f8", "<f2", "<i8", "S4", "O", "?", "<c8", "<u1"])


@st.composite
def jet_files(draw) -> bytes:
    """An HDF5 file that is nearly in JetNet's layout."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for name in draw(st.lists(st.sampled_from([*CLASSES, "x"]), unique=True, max_size=3)):
            for dataset, row in (("particle_features", (30, 4)), ("jet_features", (4,))):
                if not draw(st.integers(0, 7)):
                    continue
                shape = draw(st.one_of(st.just(row), st.lists(st.integers(0, 31), max_size=3).map(tuple)))
                dtype = draw(st.one_of(st.just("<f4"), DTYPES))
                array = np.ones((draw(ROWS), *shape), "<f4") * draw(st.sampled_from([1, 0, -1, np.nan, np.inf, 1e30]))
                with np.errstate(invalid="ignore"):
                    kind = h5py.string_dtype() if dtype == "O" else dtype
                    values = array.astype("S4") if dtype == "O" else array.astype(dtype)
                    file.create_dataset(f"{name}/{dataset}", data=values, dtype=kind)
        file.attrs["jet_pt_gev"] = draw(st.sampled_from(["1000", "x", "\ud7ff"]))
    return buffer.getvalue()


def object_array() -> bytes:
    """What numpy saves of Python objects: a pickle within."""
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return buffer.getvalue()


@FEW
@given(st.data())
def test_jets(jets_file, trial, tmp_path_factory, data):
    content = data.draw(
        st.one_of(jet_files(), damaged(jets_file.read_bytes()), st.sampled_from([object_array(), b"", b"{}"]))
    )
    out = tmp_path_factory.mktemp("out")
    with with_file(jets_file, content):
        with contextlib.suppress(DataError):
            hdf5.read(jets_file)
        obeys(embed.main, [jets_file, "--checkpoint", trial, "--quiet", "--out", out / "e.parquet"], jets_file.parent)
        obeys(validate.main, [jets_file, "--fpnd-jets", "0"], jets_file.parent)


@FEW
@given(st.data())
def test_checkpoints(jets_file, trial, tmp_path_factory, data):
    path = trial / data.draw(st.sampled_from(["student.safetensors", "record.json"]))
    content = path.read_bytes()
    huge = st.sampled_from([(2**63).to_bytes(8, "little") + content[8:], (10**8).to_bytes(8, "little") + content[8:]])
    bad = other_file(content) if path.suffix == ".json" else st.one_of(damaged(content), huge)
    with with_file(path, data.draw(bad)):
        with contextlib.suppress(EncoderError):
            load(trial)
        out = tmp_path_factory.mktemp("out") / "e.parquet"
        obeys(embed.main, [jets_file, "--checkpoint", trial, "--quiet", "--out", out], trial)


@FEW
@given(st.data())
def test_released_weights(jets_file, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("weights")
    (folder / "a.weights.h5").write_bytes(data.draw(st.one_of(jet_files(), damaged(jets_file.read_bytes()))))
    assert obeys(keras_weights.main, [folder / "a.weights.h5", "--out", folder / "out"], folder) == 2


YAML = sorted((ROOT / "cluster/deploy").glob("*.yaml"))


@FEW
@given(st.data())
def test_launch_files(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("yaml") / "cluster.yaml"
    whole = data.draw(st.sampled_from(YAML)).read_bytes()
    nodes = st.sampled_from([
        b"{provider: {}}", b"{provider: 1}", b"resources: 3", b"kind: RayJob", b"kind: RayCluster\nspec: 1",
        b"[" * 5000, b"!!python/object/apply:os.system ['touch pwned']", b"a: &a [*a]", b"\x00", b"\xff", b"- - - -",
        b"provider: {type: aws}",
    ])  # fmt: skip
    lines = whole.splitlines(keepends=True)
    without = st.integers(0, len(lines) - 1).map(lambda n: b"".join(lines[:n] + lines[n + 1 :]))
    path.write_bytes(data.draw(st.one_of(damaged(whole), nodes, without)))
    before = digests(path.parent)
    code, said = answer(launch_files.main, [path])
    assert code in (0, 2)
    assert all(line.startswith("error: ") for line in said.splitlines())
    assert "Traceback" not in said
    assert digests(path.parent) == before


# --- nothing is unpickled -----------------------------------------------------------------------------------------

UNPICKLING = re.compile(
    r"\b(?:pickle|cloudpickle|dill|joblib|marshal|shelve)\.(?:loads?|Unpickler)\b|allow_pickle=True|\byaml\.(?:load|"
    r"unsafe_load|full_load)\(|weights_only=False|torch\.load\((?!.*weights_only=True)|read_pickle|jsonpickle"
)
SOURCES = [path for folder in ("jbot", "studies", "analysis", "cluster", "search_spaces", "benchmarks")
           for path in sorted((ROOT / folder).rglob("*.py"))]  # fmt: skip


def test_no_source_unpickles_a_file():
    found = [(str(path.relative_to(ROOT)), line) for path in SOURCES for line in path.read_text().splitlines()
             if UNPICKLING.search(line)]  # fmt: skip
    assert found == []
    assert UNPICKLING.search("torch.load(path)")
    assert UNPICKLING.search("np.load(path, allow_pickle=True)")


class Malicious:
    """Runs code when it is unpickled: it leaves a file."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def zipped(pickled: bytes) -> bytes:
    """As torch.save has it."""
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
    return sink.getvalue()


def as_npy(pickled: bytes) -> bytes:
    """As numpy saves an array of objects."""
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + pickled


@pytest.mark.parametrize("form", [bytes, zipped, as_npy])
def test_a_pickle_in_the_place_of_any_file_does_not_run(results, jets_file, trial, tmp_path, form):
    mark = tmp_path / "it_ran"
    pickled = pickle.dumps(Malicious(mark))
    pickle.loads(pickled)
    mark.unlink()  # it does run, when it is unpickled
    content = form(pickled)
    records = sorted([*results.glob("trials/*/*.json"), *results.glob("trials/*/*.parquet")])
    for path in [*records[:2], results / "simulated/study.json"]:
        with with_file(path, content):
            tables_obey(results, tmp_path)
            obeys(build.main, [results / "simulated", "--out", tmp_path / "report"], results)
            obeys(index.main, [results, "--out", tmp_path / "index.html"], results)
            obeys(tables.main, [results / "simulated", "--out", tmp_path], results)
    for path in (jets_file, trial / "student.safetensors", trial / "record.json"):
        with with_file(path, content):
            out = tmp_path / "e.parquet"
            assert obeys(embed.main, [jets_file, "--checkpoint", trial, "--out", out], trial, jets_file.parent) == 2
    (tmp_path / "a.weights.h5").write_bytes(content)
    assert obeys(keras_weights.main, [tmp_path / "a.weights.h5", "--out", tmp_path / "out"], trial) == 2
    for name in ("state", "finetune"):  # a checkpoint of an unfinished trial: it starts anew, or says why not
        Storage(tmp_path).write(f"trials/x/checkpoint/{name}.json", content)
        Storage(tmp_path).write(f"trials/x/checkpoint/{name}.safetensors", content)
        with pytest.raises(RecordError):
            Storage(tmp_path).read_json(f"trials/x/checkpoint/{name}.json")
        with pytest.raises(RecordError):
            Storage(tmp_path).read_arrays(f"trials/x/checkpoint/{name}.safetensors")
    assert not mark.exists()


# --- pages --------------------------------------------------------------------------------------------------------

HOSTILE = '</title><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7 * 7 }}"\' onload="alert(1)'
EVIL_SVG = '<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"><script>alert(1)</script></svg>'


class Active(HTMLParser):
    """What a page would run, or fetch, or lead to."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        active = [name for name in given if name.startswith("on")]
        targets = [given[name] or "" for name in ("href", "src", "xlink:href") if name in given]
        scheme = [one for one in targets if re.match(r"\s*[a-z]+:", one, re.I) and not re.match(r"https?:|data:,", one)]
        if active or scheme or tag in ("iframe", "object", "embed", "form", "base"):
            self.found.append((tag, attrs))
        if tag in ("script", "img"):
            self.found.append(tag)


@pytest.fixture(scope="module")
def hostile_pages(tmp_path_factory):
    """Report, index and comparison of a study whose every word is hostile, in folders of hostile names."""
    folder = tmp_path_factory.mktemp("hostile")
    arms = {"base": {}, HOSTILE: {"mask.ratio_high": 0.8}}
    contrast = Contrast(treatment=HOSTILE, control="base", primary=True)
    plan = make_plan(arms, seeds=2, contrasts=(contrast,), study="s", question=HOSTILE, preset="quick")
    failed = {
        "state": "failed",
        "reason": HOSTILE,
        "metrics": {},
        "libraries": {HOSTILE: HOSTILE},
        "git_commit": HOSTILE,
    }
    simulate(folder, plan, lambda config, seed, rng: rng.uniform(0.4, 0.6), {(HOSTILE, 0): failed})
    runs = {trial.trial_id: "javascript:alert(1)" for trial in load_study(str(folder / "s")).trials}
    view = {"ui": "javascript:alert(1)//", "experiment_id": HOSTILE, "parent": HOSTILE, "runs": runs}
    (folder / "s/mlflow.json").write_text(json.dumps(view))
    build.main([str(folder / "s")])
    summary = json.loads((folder / "s/summary.json").read_text())
    evil = {"title": "What lies under it", "anchor": "a", "answer": [HOSTILE], "figure": "evil", "alt": HOSTILE}
    (folder / "s/summary.json").write_text(json.dumps(summary | {"sections": [*summary["sections"], evil]}))
    (folder / "s/figures/evil.svg").write_text(EVIL_SVG)
    shutil.copytree(folder / "s", folder / "javascript:alert(1)")
    (folder / "broken<script>alert(1)<").mkdir()
    (folder / "broken<script>alert(1)</study.json").write_text(json.dumps({"plan": HOSTILE}))
    index.main([str(folder)])
    shutil.rmtree(folder / "broken<script>alert(1)<")  # compare reads whole folders alone
    assert compare.main([str(folder), str(folder), "--out", str(folder / "compared")]) == 0
    return [folder / "s/report.html", folder / "index.html", folder / "compared/compare.html"]


def test_hostile_words_are_text_on_every_page(hostile_pages):
    for page in hostile_pages:
        text = page.read_text(encoding="utf-8")
        assert "&lt;script&gt;alert(1)" in text, page
        assert "{{ 7 * 7 }}" in text or "49" not in text
        assert "Content-Security-Policy" in text
        own = ["script"] if page.name == "report.html" else []
        assert Active(text).found == own, page


def test_no_hostile_word_runs_in_a_browser(hostile_pages):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra dev)")
    chromium = os.environ.get("JBOT_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with playwright.sync_playwright() as driver:
        try:
            browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        except playwright.Error as error:
            pytest.skip(f"no Chromium can be started: {str(error).splitlines()[0]}")
        for path in hostile_pages:
            said, page = [], browser.new_page()
            page.on("dialog", lambda dialog, said=said: (said.append(dialog.message), dialog.dismiss()))
            page.on("console", lambda message, said=said: said.append(message.text))
            page.on("pageerror", lambda error, said=said: said.append(str(error)))
            page.goto(path.as_uri())
            page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
            assert said == [], path
        browser.close()


@pytest.mark.parametrize(
    "svg", [EVIL_SVG, "", "<svg", "no", '<svg xmlns="http://www.w3.org/2000/svg"><a href="javascript:x"/></svg>']
)
def test_a_figure_that_does_more_than_draw_is_left_out(svg):
    assert not is_harmless(svg)


def test_our_figures_are_harmless(hostile_pages):
    figures = sorted(hostile_pages[0].parent.glob("figures/*.svg"))
    assert len(figures) > 1
    assert [path.name for path in figures if not is_harmless(path.read_text("utf-8"))] == ["evil.svg"]


# --- secrets ------------------------------------------------------------------------------------------------------

SECRET = "hunter2-hunter2"
ADDRESSES = {
    f"s3://key:{SECRET}@bucket/x": "s3://***@bucket/x",
    f"s3://AKIA:ab/{SECRET}/cd@bucket/x": "s3://***@bucket/x",
    f"postgresql://user:p@{SECRET}@host:5432/db": "postgresql://***@host:5432/db",
    f"mysql+pymysql://host/db?user=u&password={SECRET}&x=1": "mysql+pymysql://host/db?user=u&password=***&x=1",
    f"abfs://c@a.dfs.core.windows.net/x?client_secret={SECRET}": "abfs://***@a.dfs.core.windows.net/x?client_secret=***",
    f"https://h/x?X-Amz-Signature={SECRET}": "https://h/x?X-Amz-Signature=***",
    "http://h:5000/a@b": "http://h:5000/a@b",
    "s3://bucket/a@b": "s3://bucket/a@b",
    "/home/a@b:c/x": "/home/a@b:c/x",
}


@pytest.mark.parametrize("address", ADDRESSES)
def test_addresses_are_shown_without_their_secrets(address):
    assert without_secret(f"at {address} now") == f"at {ADDRESSES[address]} now"


def test_a_storage_opens_again_with_its_secret_and_shows_none(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # else Amazon is asked for the bucket's region
    storage = Storage(f"s3://key:{SECRET}@bucket/x")
    assert SECRET in pickle.loads(pickle.dumps(storage)).address
    assert SECRET not in storage.uri


def test_no_secret_is_written_or_said(jets_file, tmp_path, monkeypatch, capfd):
    """A real study and the programs around it, with secrets in every address and in the environment."""
    for name in ("AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "RAY_AUTH_TOKEN", "PGPASSWORD"):
        monkeypatch.setenv(name, SECRET)
    monkeypatch.setattr("mlflow.store.db.utils.MAX_RETRY_COUNT", 1)  # of a database that does not answer
    monkeypatch.chdir(tmp_path)
    study = Study(
        name="hush", question="?", arms={"base": {}, "more": {"mask.ratio_high": 0.8}}, margin=0.1, contrasts=(),
        seeds_by_preset={"smoke": 1},
    )  # fmt: skip
    small = TINY | {"data.train_jets": 30, "data.val_jets": 10, "data.test_jets": 10, "train.epochs": 1}
    given = [word for name, value in small.items() for word in ("--set", f"{name}={value}")]
    common = ["--preset", "smoke", "--inline", "--figures", "none", "--data", str(jets_file), *given]
    main = functools.partial(importlib.import_module("studies").main, study)
    with pytest.raises(SystemExit) as end:
        main([*common, "--storage", "out", "--tracking-uri", f"http://user:{SECRET}@127.0.0.1:9"])
    assert end.value.code == 0
    assert "the MLflow view is not whole" in capfd.readouterr().err.replace("\n", " ")
    written = "out/hush_smoke"
    assert mirror.main([written, "--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db"]) == 0
    assert mirror.main([written, "--tracking-uri", f"postgresql://user:{SECRET}@127.0.0.1:9/db"]) == 1
    bad = f"s3://key:{SECRET}@/x"
    for program in (build.main, index.main, mirror.main, doctor.main):
        assert answer(program, [bad] if program is not doctor.main else ["--storage", bad])[0] == 2
    for words in ([*common, "--storage", bad], [*common, "--storage", f"no://user:{SECRET}@host/x"]):
        with pytest.raises(SystemExit):
            main(words)
    said = capfd.readouterr()
    assert SECRET not in said.out + said.err
    holding = [path for path in tmp_path.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert holding == []
    assert (tmp_path / "mlflow.db").stat().st_size > 10_000
