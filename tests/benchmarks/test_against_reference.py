"""benchmarks/against_reference.py, as far as it goes without TensorFlow and the released code."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from helpers import ROOT
from make_parity import DATA, MODELS, formula_weights, keras_backbone, write_hdf5
from safetensors.numpy import load_file

from benchmarks import against_reference as driver
from benchmarks.our_side import Ours
from benchmarks.timing import Sample
from jbot.trainer.model import weight_shapes


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")  # where the worker of the released code finds its pipe
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder that looks like the released code, and holds none of it."""
    for name, content in driver.RELEASED_FILES.items():
        path = tmp_path / "released" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return tmp_path / "released"


def test_steps_alternate() -> None:
    assert "".join(driver.abba("AB", 4)) == "ABBAABBA"
    assert "".join(driver.abba("ABC", 3)) == "ABCCBAABC"


def test_ratio_is_of_medians_with_quartiles_of_pairs() -> None:
    assert driver.compare([2.0, 4.0, 90.0], [1.0, 1.0, 10.0]) == (4.0, 3.0, 6.5)  # pairs 2, 4, 9
    assert driver.compare([2.0] * 15, [4.0] * 15) == (0.5, 0.5, 0.5)


def test_rows_of_the_sides_that_are_there() -> None:
    """A step of 20 GFLOP in 2 s, where a GFLOP takes 0.05 s: half the limit."""
    seconds = {"limit fp32": 0.05, "limit bf16": 0.01, "plain torch fp32": 4.0, "kernel bf16": 1.0}
    samples = {name: [Sample(2 * each, each)] * 3 for name, each in seconds.items()}
    plain, kernel = driver.side_rows("S model step", samples, 20.0, {"fp32": "limit fp32", "bf16": "limit bf16"})
    assert plain["what"] == "S model step: plain torch fp32"
    assert plain["of GEMM limit"] == pytest.approx((0.25, 0.25, 0.25))
    assert (kernel["plain torch fp32 / this"], kernel["of GEMM limit"][0]) == ((4.0, 4.0, 4.0), pytest.approx(0.2))
    assert kernel["note"] == "n is below 15: not a figure to report"
    assert "released code / this" not in kernel


@pytest.mark.slow
def test_without_the_released_code_its_row_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert driver.main(["--model", "S", "--batch", "8", "--steps", "2", "--out", str(tmp_path)]) == 0
    table = capsys.readouterr().out
    for side in driver.SIDES:
        assert f"S whole step: {side}" in table
    assert "not measured: needs --reference" in table


def test_folder_that_is_no_checkout(tmp_path: Path) -> None:
    """One line, exit code 2, from the command line as people run it."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.against_reference", "--reference", tmp_path], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: --reference must be a checkout of the released code")
    assert line.endswith(f"{tmp_path}: utils.py is missing")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--python", "/nowhere/python"], "/nowhere/python cannot be run: No such file or directory"),
        (["--steps", "1"], "--steps and --batch must be at least 2"),
        (["--jets", "/nowhere/jets.h5"], "/nowhere/jets.h5: no such file or folder"),
    ],
)
def test_bad_options(checkout: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str) -> None:
    assert driver.main(["--reference", str(checkout), "--batch", "8", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")


def test_interpreter_without_tensorflow(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A module that the released code imports is missing: the worker says which, the driver repeats it."""
    (checkout / "utils.py").write_text("import tensorflow_that_is_not_here\ndef train_jbot(): ...")
    assert driver.main(["--reference", str(checkout), "--batch", "8"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (f"error: {sys.executable} has no module tensorflow_that_is_not_here, which the released code needs")


def test_worker_that_dies(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (checkout / "utils.py").write_text("def train_jbot(): ...\n1 / 0")
    assert driver.main(["--reference", str(checkout), "--batch", "8"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "error: the worker of the released code ended: ZeroDivisionError: division by zero"


def test_arguments_come_from_the_notebook(tmp_path: Path) -> None:
    """The cell runs down to its call, with our sizes in place of its own."""
    source = (
        "width=3; batch=4\nrate = batch / 2\nhistory = train_jbot(width=width, rate=rate, jets=jets)\nplot(history)"
    )
    cells = [{"cell_type": "markdown", "source": ["train_jbot("]}, {"cell_type": "code", "source": [source]}]
    (tmp_path / "jbot.ipynb").write_text(json.dumps({"cells": cells}))
    worker = importlib.import_module("reference_worker")
    given = {"width": 8, "batch": 10, "jets": [1.0]}
    found = worker.training_arguments(tmp_path, ModuleType("utils"), given)
    assert found == {"width": 8, "rate": 5.0, "jets": [1.0]}


def test_our_side(tmp_path: Path) -> None:
    """Our half of the parity check, on what the released code computed once, and a step of each kind."""
    reference = load_file(DATA)
    sigma = 3e-4 / reference["jets"][..., 2, None].clip(1e-6)
    drawn = ("views", "masked", "angle", "split_key", "share", "ratio", "mask_key")
    np.savez(
        tmp_path / "recorded.npz",
        **{name: reference[name] for name in drawn},
        shift=reference["noise"].astype(np.float64) * sigma,
    )
    views = reference["views"] * reference["views"][..., 3:]
    np.savez(tmp_path / "ready_made.npz", views=views, masked=reference["masked"])
    np.save(tmp_path / "jets.npy", np.concatenate([reference["jets"]] * 2))
    weights = formula_weights(weight_shapes(MODELS["S"]))
    write_hdf5(tmp_path / "backbone.weights.h5", keras_backbone(MODELS["S"], weights))
    unreleased = {name: value for name, value in weights.items() if name == "mask_token" or name.startswith("head")}
    np.savez(tmp_path / "head.npz", **unreleased)

    ours = Ours("S", len(reference["jets"]), tmp_path)
    augmentation = ours.augmentation_parity()
    assert augmentation["views"] < 1e-5
    assert augmentation["masks"] == 0
    losses = {}
    for part in ("model", "whole"):
        ours.train(part)
        losses[part] = ours.step()
    assert losses["model"]["loss"] == pytest.approx(float(reference["history/loss"][0]), abs=1e-4)
    assert all(np.isfinite(list(terms.values())).all() for terms in losses.values())
