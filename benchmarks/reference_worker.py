"""Worker of against_reference.py: drives the authors' released code, from the user's checkout of it.

Started by the driver, in an interpreter that has TensorFlow. Nothing of the released code is in this file: model,
optimizer and settings come from the pre-training cell of its notebook, and the steps are those of its own training
loop. That loop calls a progress bar after each step; ours takes the bar's place, reports the seconds of the step and
holds the loop until the driver asks for the next one. So a step is all the loop does: the next batch, augmentation,
masking, loss, gradient, optimizer, the teacher's average, and reading the losses; only the bar is not drawn.

In part `model` the views and masks are ready-made; in part `whole` the loop runs as released.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import itertools
import json
import platform
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

from worker_pipe import Pipe, Stopwatch

with contextlib.suppress(ModuleNotFoundError):  # import_released says in one line what is missing
    import numpy as np

LOSSES = {"loss": "loss", "cls": "cls_loss", "patch": "particle_loss", "koleo": "koleo_loss"}
"""Losses as the released loop names them to its progress bar, and as we do."""
HEAD = ("head1.weight", "head1.bias", "head2.weight", "head2.bias")


class WorkerError(Exception):
    """The released code cannot be run here. Its message is one line."""


class Held(Exception):  # noqa: N818 - not an error
    """Ends the training loop: the driver asked for something else than a step."""


class Recorder:
    """Stands before a source of random numbers and keeps what it gave, as (method, value)."""

    def __init__(self, source: Any):
        self._source = source
        self.given: list[tuple[str, Any]] = []

    def __getattr__(self, method: str) -> Any:
        source = getattr(self._source, method)

        def draw(*settings: Any, **named: Any) -> Any:
            value = source(*settings, **named)
            self.given.append((method, value))
            return value

        return draw


def import_released(folder: Path, threads: int) -> ModuleType:
    """The authors' module `utils`, which holds all names of the others; TensorFlow on this many threads."""
    sys.path.insert(0, str(folder))
    try:
        utils = importlib.import_module("utils")
    except ModuleNotFoundError as error:
        raise WorkerError(f"{sys.executable} has no module {error.name}, which the released code needs") from None
    except ImportError as error:
        raise WorkerError(f"{sys.executable} cannot import the released code: {error}") from None
    utils.tf.config.threading.set_intra_op_parallelism_threads(threads)
    utils.tf.config.threading.set_inter_op_parallelism_threads(threads)
    return utils


def training_arguments(folder: Path, utils: ModuleType, given: dict[str, Any]) -> dict[str, Any]:
    """What the notebook's first pre-training cell passes to `train_jbot`: runs the cell down to that call.

    `given` holds the names that the notebook has from elsewhere (the jets) and those that the cell sets and we choose:
    its assignments to them are left out.
    """
    cells = json.loads((folder / "jbot.ipynb").read_text())["cells"]
    sources = ("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    source = next((source for source in sources if "train_jbot(" in source), None)
    if source is None:
        raise WorkerError(f"{folder / 'jbot.ipynb'}: no cell calls train_jbot")
    statements = []
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) in given:
            continue
        statements.append(statement)
        if "train_jbot(" in ast.unparse(statement):
            break
    passed: dict[str, Any] = {}
    names = vars(utils) | given | {"train_jbot": passed.update}
    exec(compile(ast.Module(statements, []), "jbot.ipynb", "exec"), names)
    return passed


def record_views(utils: ModuleType, jets: np.ndarray) -> dict[str, np.ndarray]:
    """Both views of each jet and their masks as the released functions make them, and every number they drew.

    `views` (2, jet, 30, 4); `masked` (2, jet, 30); `angle` (2, jet); `shift`, what smearing added to eta and phi,
    (2, jet, 30, 2); `split_key`, smallest for the particles chosen to be split, and `share`, (2, jet, 30);
    `ratio` (2, jet); `mask_key` (2, jet, 30).
    """
    shape = (2, *jets.shape[:2])
    arrays: dict[str, np.ndarray] = {
        "views": np.zeros((2, *jets.shape), np.float32),
        "angle": np.zeros(shape[:2]),
        "shift": np.zeros((*shape, 2)),
        "split_key": np.ones(shape),
        "share": np.full(shape, 0.5),
    }
    for at in np.ndindex(shape[:2]):
        with mock.patch.object(utils, "RNG", Recorder(utils.RNG)) as recorder:
            arrays["views"][at] = utils.augment_jet(jets[at[1]].copy())
        (_, angle), (_, eta), (_, phi), *splits = recorder.given
        arrays["angle"][at] = angle
        arrays["shift"][at] = np.stack((eta, phi), axis=-1)
        if splits:
            (_, chosen), *shares = splits
            arrays["split_key"][at][chosen] = np.linspace(0.0, 0.5, len(chosen))
            arrays["share"][at][chosen] = [share for _, share in shares]
    drawn = [record_masked(utils, view) for view in arrays["views"]]
    return arrays | {name: np.stack([each[name] for each in drawn]) for name in drawn[0]}


def record_masked(utils: ModuleType, view: np.ndarray) -> dict[str, np.ndarray]:
    """The masked particles of one view (jet, 30, 4), with the ratios and the random order they come from."""
    recorder = Recorder(utils.tf.random)
    with mock.patch.object(utils.tf.random, "uniform", recorder.uniform):
        masked = utils.tf_make_masks_pt_ratio.python_function(view, 1.0, (0.0, 0.5))
    _coin, (_, ratio), (_, key) = recorder.given
    return {"masked": masked.numpy(), "ratio": ratio.numpy(), "mask_key": key.numpy()}


class Released:
    """Model, optimizer and loop of the released code, held between steps."""

    def __init__(self, pipe: Pipe, folder: Path, threads: int):
        self.pipe, self.folder = pipe, folder
        self.utils = import_released(folder, threads)
        self.arguments: dict[str, Any] = {}
        self.ready_made: dict[str, np.ndarray] = {}

    def prepare(self, exchange: str, sizes: dict[str, int], batch: int, seed: int) -> dict[str, Any]:
        """Build the model; leave its starting weights, and views and masks of one batch, in the folder `exchange`.

        Student and teacher start from the authors' pre-trained encoder. A new one gives all jets nearly the same [CLS],
        and KoLeo, a loss of distances between them, then loses digits: float32 and float64 part by 2e-3 (S), 0.02 (B).
        """
        utils, out = self.utils, Path(exchange)
        jets = np.load(out / "jets.npy")
        utils.keras.utils.set_random_seed(seed)
        given = sizes | {"x_train": jets, "batch_size": batch}
        self.arguments = training_arguments(self.folder, utils, given) | {"save_student_snapshots": False}
        student, masker = self.arguments["student"], self.arguments["masker"]
        pretrained = "models/all_backbone_pretrain_{d_model}_{n_heads}_{n_layers}.weights.h5".format(**sizes)
        student.load_weights(self.folder / pretrained)
        self.arguments["teacher"].set_weights(student.get_weights())
        masker.build((None, 30, sizes["d_model"]))
        student.save_weights(out / "backbone.weights.h5")
        head = dict(zip(HEAD, self.arguments["proj_head_s"].get_weights(), strict=True))
        np.savez(out / "head.npz", mask_token=masker.mask_token.numpy(), **head)
        recorded = record_views(utils, jets[:batch])
        np.savez(out / "recorded.npz", **recorded)
        # Smeared padding lies up to 1000 away, where rounding grows tenfold a step in both codes (docs/performance.md).
        views = recorded["views"] * recorded["views"][..., 3:]
        np.savez(out / "ready_made.npz", views=views, masked=recorded["masked"])
        self.ready_made = {"views": views, "masked": recorded["masked"]}
        versions = {"tensorflow": utils.tf.__version__, "keras": utils.keras.__version__, "numpy": np.__version__}
        threads = utils.tf.config.threading
        return {
            "libraries": versions | {"python": platform.python_version()},
            "threads": {
                "intra_op": threads.get_intra_op_parallelism_threads(),
                "inter_op": threads.get_inter_op_parallelism_threads(),
            },
        }

    def train(self, part: str) -> dict[str, Any]:
        """Run the training loop, held before each step, until another request than a step comes: returns that."""
        self.pipe.send(part=part)
        self.request = self.pipe.receive()
        if self.request["do"] != "step":
            return self.request
        loop = mock.patch.multiple(self.utils, Progbar=lambda **_settings: self, **self.patches(part))
        self.watch = Stopwatch()
        try:
            with loop:
                self.utils.train_jbot(**self.arguments)
        except Held:
            return self.request
        raise WorkerError("the released training loop ended before the driver did")

    def update(self, _step: int, values: list[tuple[str, float]]) -> None:
        """What the loop tells its progress bar after each step."""
        losses = {LOSSES[name]: float(value) for name, value in values}
        self.pipe.send(**self.watch.read(), losses=losses)
        self.request = self.pipe.receive()
        if self.request["do"] != "step":
            raise Held
        self.watch = Stopwatch()

    def patches(self, part: str) -> dict[str, Any]:
        """What takes the place of functions of the released code in a part: nothing in the whole step."""
        if part == "whole":
            return {}
        tf, as_is = self.utils.tf, self.utils.tf.autograph.experimental.do_not_convert
        # Variables, and no known batch size, as in the released graph: nothing can be computed ahead of the step.
        views, masked = (
            [tf.Variable(each, trainable=False, shape=[None, *each.shape[1:]]) for each in self.ready_made[name]]
            for name in ("views", "masked")
        )
        # Each time TensorFlow traces the step, the loop asks for view u, then for view v.
        next_view, next_masked = itertools.cycle(views), itertools.cycle(masked)
        return {
            "tf_augment_batch": as_is(lambda _jets: next(next_view).read_value()),
            "tf_make_masks_pt_ratio": as_is(lambda _view, **_settings: next(next_masked).read_value()),
        }


def main() -> None:
    """Serve the driver until it closes the pipe."""
    pipe = Pipe()
    parser = argparse.ArgumentParser(description="Worker of against_reference.py, which starts it.")
    parser.add_argument("--reference", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    request = pipe.receive()
    try:
        released = Released(pipe, options.reference, options.threads)
        while True:
            action = request.pop("do")
            if action == "train":
                request = released.train(**request)
            else:
                pipe.send(**released.prepare(**request))
                request = pipe.receive()
    except WorkerError as error:
        pipe.send(error=str(error))


if __name__ == "__main__":
    main()
