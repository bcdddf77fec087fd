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
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import TINY, make_data
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from simulated import make_plan, simulate

from analysis import compare, export, pictures
from analysis.plan import Contrast, load_study
from analysis.tables import trial_table
from cluster import launch
from jbot import embed, keras_weights
from jbot.checkpoint import CheckpointError, load
from jbot.config import Config, ConfigError, flatten, from_dict, override, parse_value
from jbot.data import CLASSES, DataError, hdf5, validate
from jbot.model import weight_shapes
from jbot.record import Record, RecordError, Storage, load_curves, load_finetune_curves, load_record

ROOT = Path(__file__).parent.parent
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
    """Every program of this repository, as the module that python -m runs; workers that others start aside."""
    found = [
        str(path.relative_to(ROOT).with_suffix("")).replace("/", ".")
        for folder in ("jbot", "studies", "analysis", "cluster", "benchmarks")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if '\nif __name__ == "__main__":' in path.read_text()
    ]
    return [name for name in found if not name.endswith("_worker")]


def main_of(name: str):
    """The command line of a program, as a function of its words."""
    module = importlib.import_module(name)
    if name in STUDIES:
        return functools.partial(importlib.import_module("studies.main").main, module.study)
    return module.run if name == "studies.all" else module.main


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


SETTINGS = st.tuples(st.sampled_from(FIELDS), WILD_TEXT).map("=".join) | WILD_TEXT
OPTIONS = st.one_of(
    st.tuples(st.just("--set"), SETTINGS),
    st.tuples(
        st.sampled_from(
            ["--seeds", "--preset", "--storage", "--price", "--cpus", "--gpus", "--pack", "--grow-to", "--engine",
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
        assert not list(work.iterdir())


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
    """Of a JSON file: damaged bytes, or another document."""
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
    data, path = make_data(10), tmp_path_factory.mktemp("jets") / "jets.hdf5"
    features = np.tile(np.array([1000, 0.5, 80, 30], np.float32), (10, 1))
    hdf5.write(path, {name: (10, [(data.particles[data.labels == c], features)]) for c, name in enumerate(CLASSES)}, {})
    return path


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
        with contextlib.suppress(CheckpointError):
            load(trial)
        out = tmp_path_factory.mktemp("out") / "e.parquet"
        obeys(embed.main, [jets_file, "--checkpoint", trial, "--quiet", "--out", out], trial)


@FEW
@given(st.data())
def test_released_weights(jets_file, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("weights")
    (folder / "a.weights.h5").write_bytes(data.draw(st.one_of(jet_files(), damaged(jets_file.read_bytes()))))
    assert obeys(keras_weights.main, [folder / "a.weights.h5", "--out", folder / "out"], folder) == 2


YAML = sorted((ROOT / "cluster").glob("*.yaml"))


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
    code, said = answer(launch.main, [path])
    assert code in (0, 2)
    assert all(line.startswith("error: ") for line in said.splitlines())
    assert "Traceback" not in said
    assert digests(path.parent) == before
