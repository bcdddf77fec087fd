"""Every number of one training run, once.

A Config is frozen and checks itself when it is made, so a wrong value stops a study before anything starts.
Variants are made with dotted overrides:

    momentum = Config()
    random = override(momentum, {"mask.scheme": "random"})
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import re
import sys
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Precision = Literal["fp32", "bf16"]
Variant = Literal["corrected", "reference"]
Task = Literal["all", "tqg", "qg"]
MaskToken = Literal["learned", "zero", "none"]
Scheme = Literal[
    "momentum", "random", "random_count", "geometric", "geometric_count", "hardest", "softest", "none"
]  # fmt: skip


LEAST_ANOMALY_BANK = 100
"""Neighbours that the published cosine score looks at (jbot.evaluation.anomaly.detect.LEAST_BANK)."""

LEAST_LABELED = 5
"""Any five jets in a row of a split hold every class of its task (jbot.data.splits.COMPOSITION)."""


MOST_WHOLE = 10**9
"""Of jets, epochs and sizes: far beyond any training, and small enough for plans and costs to be reckoned (assumed)."""


class ConfigError(ValueError):
    """A Config field that is unknown, of the wrong type, or out of its range."""


def bounded(default: Any, low: float = -math.inf, high: float = math.inf, *, above: float | None = None) -> Any:
    """A numeric field with an inclusive range ``[low, high]``, or ``(above, high]`` when `above` is given."""
    return field(default=default, metadata={"low": low, "high": high, "above": above})


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which jets the encoder sees, and which judge it. Ten jets are two of each class, the least a probe can use."""

    task: Task = "all"
    """Classes and their shares: `all` five classes, `tqg` top tagging, `qg` anomaly detection (SPLITS in jbot.data)."""
    train_jets: int = bounded(700_000, 10)
    """Unlabeled jets the encoder is pre-trained on."""
    labeled_jets: int = bounded(0, 0)
    """Jets set aside whose labels the probes may use, those of pre-training first; 0 for these alone. Training sets of
    different sizes are judged by equally many labels with it."""
    val_jets: int = bounded(50_000, 10)
    """Jets of the learning curves and of every choice."""
    test_jets: int = bounded(95_000, 10)
    """Jets of the final metrics, looked at once."""
    particles: int = bounded(30, 2, 30)
    """Leading particles kept of each jet."""
    jet_pt: float = bounded(1000.0, above=0)
    """GeV of the jets it is trained and judged on: what the generator is asked for."""

    @property
    def set_aside(self) -> int:
        """Jets of the training part: those of pre-training, and more where the probes have more labels."""
        return max(self.train_jets, self.labeled_jets)


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """The two views of a jet. `reference` repeats what the released code does, `corrected` what the paper says."""

    rotation: float = bounded(math.pi, 0, math.pi)
    """Rotation about the jet axis, uniform in [-rotation, rotation] radians; 0 switches it off."""
    smear_sigma: float = bounded(3e-4, 0)
    """Width of the (eta, phi) smearing at pt_rel = 1: sigma = smear_sigma / pt_rel; 0 switches it off."""
    smear_variant: Variant = "corrected"
    """`reference` also smears padding (pt_rel clipped at 1e-6, so sigma = 300)."""
    split_fraction: float = bounded(1.0, 0, 1)
    """Share of the possible collinear splittings, min(n, empty slots), that are made; 0 switches them off."""
    split_low: float = bounded(0.3, 0, 0.5)
    """Smallest momentum share of a split particle's first half; the largest is 1 - split_low."""
    split_variant: Variant = "corrected"
    """`reference` loses the second half of each split particle."""
    translation: float = bounded(0.0, 0, 1)
    """Shift of the whole view, uniform in [-translation, translation] in eta and in phi (radians)."""
    boost: float = bounded(0.0, 0, 1)
    """Boost along the jet axis, rapidity uniform in [-boost, boost]: angles shrink, shares of the pT stay."""
    pt_sigma: float = bounded(0.0, 0, 1)
    """Relative pT resolution at pt_rel = 1: sigma = pt_sigma / sqrt(pt_rel), the stochastic term of a calorimeter."""
    soft_dropout: float = bounded(0.0, 0, 1)
    """Chance of each particle softer than soft_pt to be missing in a view; the hardest always stays."""
    soft_pt: float = bounded(0.01, 0, 1)
    """Share of the jet's pT."""


@dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """Which particles are hidden from the student."""

    scheme: Scheme = "momentum"
    """A name in jbot.trainer.masking.SCHEMES."""
    ratio_low: float = bounded(0.0, 0, 1)
    ratio_high: float = bounded(0.5, 0, 1)
    """The masked share of a view is uniform in [ratio_low, ratio_high]."""
    probability: float = bounded(1.0, 0, 1)
    """Share of the views that are masked at all."""
    token: MaskToken = "learned"
    """What stands for a hidden particle: a vector, `learned` or `zero`; with `none` it is seen, but its loss counts."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The encoder and its projection head. The defaults are jBOT-S."""

    dim: int = bounded(32, 1)
    heads: int = bounded(4, 1)
    layers: int = bounded(2, 1)
    projection: int = bounded(16, 2)
    """Outputs of the projection head."""
    padding: Variant = "corrected"
    """`reference` lets attention see padded slots, and averages the particle centre over them."""

    @property
    def head_dim(self) -> int:
        """Width of one attention head. Floored as in the released code: 6 heads of 10 for d = 64."""
        return self.dim // self.heads


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """L = cls_weight * CE([CLS]) + particle_weight * CE(masked particles) + koleo_weight * KoLeo."""

    cls_weight: float = bounded(1.0, 0)
    particle_weight: float = bounded(1.0, 0)
    koleo_weight: float = bounded(0.01, 0)
    student_temp: float = bounded(0.1, above=0)
    teacher_temp: float = bounded(0.04, above=0)
    """Below student_temp the teacher's targets are sharper than the student's prediction (sharpening)."""


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """The teacher: an average of the student, and what keeps its targets from collapsing."""

    ema_momentum: float = bounded(0.996, 0, 1)
    """At epoch 0; goes to ema_final along a cosine."""
    ema_final: float = bounded(1.0, 0, 1)
    """After the last epoch. Where both are 0, the teacher is the student: no average."""
    centering: bool = True
    center_momentum: float = bounded(0.9, 0, 1)


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW as Keras has it: decay on every weight, eps outside the bias correction."""

    lr: float = bounded(2e-3, above=0)
    """After warm-up. The paper: 5e-4 * batch / 256."""
    warmup_epochs: int = bounded(10, 0)
    """Linear, set per epoch: lr * (epoch + 1) / warmup_epochs."""
    weight_decay: float = bounded(1e-4, 0)
    beta1: float = bounded(0.9, 0, 0.9999999)
    beta2: float = bounded(0.999, 0, 0.9999999)
    eps: float = bounded(1e-7, above=0)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long, and in what batches."""

    epochs: int = bounded(80, 1)
    batch: int = bounded(1024, 2)
    """Jets a step; the last, smaller batch of an epoch is kept unless it is a single jet."""
    precision: Precision = "fp32"
    """Of encoder and head in training; weights, optimiser, losses and probes are fp32 with either."""
    dropout: float = bounded(0.0, 0, 0.99)
    """Of the student in pre-training, behind each block's two updates, as in fine-tuning; the paper has none here."""
    until: int = bounded(0, 0)
    """Epochs after which training stops early; 0: at `epochs`. What runs on epochs (warm-up, EMA) runs on `epochs`."""
    schedule: tuple[str, ...] = ()
    """Changes while it trains, each ``<epoch> <field>=<number>``: ``4 optim.lr=0.001`` holds when 4 epochs are done."""

    @property
    def last_epoch(self) -> int:
        """Epochs that are trained."""
        return self.until or self.epochs


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """How the frozen embedding is judged."""

    every: int = bounded(10, 1)
    """Epochs between points of the learning curves; 0 and the last epoch are always there."""
    bank_jets: int = bounded(50_000, 10)
    """Labeled training jets behind the k-NN and linear probes (fewer when there are fewer; see data.labeled_jets)."""
    knn_k: int = bounded(30, 1)
    jet_pts: tuple[float, ...] = bounded((), above=0)
    """Jet pTs [GeV] at which the frozen encoder is judged too: with probes refitted there, and with those of its own
    pT, which may be among them."""


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Supervised training of encoder and classification head after pre-training; off while `fractions` is empty.

    The defaults are the paper's for five classes and jBOT-S.
    """

    fractions: tuple[float, ...] = bounded((), 0, 1, above=0)
    """Shares of the training jets whose labels are used, one fine-tuning each."""
    twin: bool = True
    """Beside each, the supervised twin: the same from fresh weights, without layer decay."""
    epochs: int = bounded(100, 1)
    batch: int = bounded(1024, 2)
    lr: float = bounded(4e-4, above=0)
    layer_decay: float = bounded(0.65, 0, 1, above=0)
    """The step of each block is this share of the next one's; the last block and the head step with `lr`."""
    dropout: float = bounded(0.2, 0, 0.99)
    patience: int = bounded(100, 1)
    """Epochs without a better validation accuracy, after which a fine-tuning ends."""
    tolerance: float = bounded(1e-4, 0)
    """What a better validation accuracy must gain."""


@dataclass(frozen=True, kw_only=True)
class AnomalyConfig:
    """How signal jets are found by an encoder that has seen q and g alone: for the task `qg`."""

    bank_jets: int = bounded(20_000, LEAST_ANOMALY_BANK)
    """Background training jets that a score is made of, drawn from the probes' bank (fewer when there are fewer)."""
    scan: bool = False
    """Beside the published settings of each score, those chosen without the signal, and the reference methods."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """One training run of one arm at one seed."""

    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    mask: MaskConfig = field(default_factory=MaskConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    anomaly: AnomalyConfig = field(default_factory=AnomalyConfig)
    seed: int = bounded(0, 0, 2**31 - 1)

    def __post_init__(self) -> None:
        for name, value in flatten(self).items():
            _check(name, value, _FIELDS[name])
        if self.mask.ratio_low > self.mask.ratio_high:
            raise ConfigError(
                f"mask.ratio_low must not exceed mask.ratio_high, got {self.mask.ratio_low} > {self.mask.ratio_high}"
            )
        if self.model.dim < self.model.heads:
            raise ConfigError(f"model.dim must be at least model.heads, got {self.model.dim} < {self.model.heads}")
        if self.data.task == "qg" and (bank := self.bank_jets) < LEAST_ANOMALY_BANK:
            raise ConfigError(
                "data.train_jets and probe.bank_jets must be at least"
                f" {LEAST_ANOMALY_BANK} for data.task qg, got {bank}"
            )
        if self.probe.knn_k > (bank := self.bank_jets):
            raise ConfigError(
                f"probe.knn_k must not exceed data.train_jets and probe.bank_jets, got {self.probe.knn_k} > {bank}"
            )
        if len({f"{share:g}" for share in self.finetune.fractions}) < len(self.finetune.fractions):
            raise ConfigError(f"finetune.fractions must differ in six digits, got {self.finetune.fractions}")
        for fraction in self.finetune.fractions:
            if (jets := round(fraction * self.data.train_jets)) < LEAST_LABELED:
                raise ConfigError(
                    f"finetune.fractions must leave at least {LEAST_LABELED} labeled jets, so that each class has one,"
                    f" got {fraction:g} of data.train_jets {self.data.train_jets}: {jets}"
                )
        if len({f"{pt:g}" for pt in self.probe.jet_pts}) < len(self.probe.jet_pts):
            raise ConfigError(f"probe.jet_pts must differ in six digits, got {self.probe.jet_pts}")
        if self.finetune.fractions and self.data.task == "qg":
            raise ConfigError("finetune.fractions must be empty for data.task qg: its encoder sees no label")
        if self.train.until > self.train.epochs:
            raise ConfigError(f"train.until must not exceed train.epochs, got {self.train.until} > {self.train.epochs}")
        until = self.train.until if self.train.until < self.train.epochs else 0
        plain = dataclasses.replace(self.train, until=until, schedule=_canonical_schedule(self))
        object.__setattr__(self, "train", plain)

    @property
    def bank_jets(self) -> int:
        """Labeled training jets behind the probes."""
        return min(self.data.set_aside, self.probe.bank_jets)


# jBOT-B, as changes to the default jBOT-S.
JBOT_B = {"model.dim": 64, "model.heads": 6, "model.layers": 4, "model.projection": 32}


def flatten(config: Config) -> dict[str, Any]:
    """Dotted field names and their values, in the order of the classes: ``{"data.task": "all", ..., "seed": 0}``."""
    flat: dict[str, Any] = {}
    for part in dataclasses.fields(config):
        value = getattr(config, part.name)
        if dataclasses.is_dataclass(value):
            flat |= {f"{part.name}.{f.name}": getattr(value, f.name) for f in dataclasses.fields(value)}
        else:
            flat[part.name] = value
    return flat


def override(config: Config, changes: Mapping[str, Any]) -> Config:
    """The same Config with some dotted fields changed.

    Raises
    ------
    ConfigError
        For an unknown field, a wrong type or a value out of range, naming rule and value.
    """
    groups: dict[str, dict[str, Any]] = {}
    for name, value in changes.items():
        if name not in _FIELDS:
            raise ConfigError(f"unknown Config field {name!r}{_did_you_mean(name)}")
        _check(name, value, _FIELDS[name])
        group, _, leaf = name.rpartition(".")
        # A whole number for a float field is a float: 1 and 1.0 must give one trial, not two.
        groups.setdefault(group, {})[leaf] = _as_kind(value, _FIELDS[name][0])
    parts = {group: dataclasses.replace(getattr(config, group), **leaves) for group, leaves in groups.items() if group}
    return dataclasses.replace(config, **parts, **groups.get("", {}))


@dataclass(frozen=True, kw_only=True)
class Change:
    """One change of a schedule."""

    epoch: int
    """Finished epochs when it is made."""
    field: str
    value: float

    def __str__(self) -> str:
        number = repr(self.value)
        return f"{self.epoch} {self.field}={number.removesuffix('.0')}"


SCHEDULED = ("augment", "mask", "loss", "teacher", "optim")
"""Groups whose float fields a schedule may change: a step reads each trial's own (PER_TRIAL in jbot.trainer.pack)."""


def can_change(name: str) -> bool:
    """Whether `train.schedule` may change a field: a float that every step reads anew."""
    return name in _FIELDS and _FIELDS[name][0] is float and name.partition(".")[0] in SCHEDULED


def parse_schedule(schedule: Iterable[str]) -> list[Change]:
    """The changes of a `train.schedule`, by epoch and field.

    Raises
    ------
    ConfigError
        For a line of another form, a field that cannot change, or a value out of its range.
    """
    return sorted(map(_parse_change, schedule), key=lambda change: (change.epoch, change.field))


def _parse_change(text: str) -> Change:
    found = re.fullmatch(r"\s*(\d{1,9})\s+([\w.]+)\s*=\s*(\S+)\s*", text, re.ASCII)
    if not found:
        raise ConfigError(f'train.schedule must be a list of changes like "4 optim.lr=0.001", got {text!r}')
    name = found[2]
    if name not in _FIELDS:
        raise ConfigError(f"train.schedule: unknown Config field {name!r}{_did_you_mean(name)}")
    if not can_change(name):
        known = ", ".join(filter(can_change, _FIELDS))
        raise ConfigError(f"train.schedule may change {known}, got {name!r}")
    try:
        value = float(found[3])
    except ValueError:
        raise ConfigError(f"train.schedule must set numbers, got {text!r}") from None
    _check(f"train.schedule: {name}", value, _FIELDS[name])
    return Change(epoch=int(found[1]), field=name, value=value + 0.0)  # -0 is 0


def _canonical_schedule(config: Config) -> tuple[str, ...]:
    """The schedule of a Config in the one form that every schedule with the same effect has."""
    if not config.train.schedule:
        return ()
    now, kept, last = flatten(config), [], config.train.last_epoch
    changes = parse_schedule(config.train.schedule)
    for before, change in itertools.pairwise(changes):
        if (before.epoch, before.field) == (change.epoch, change.field):
            raise ConfigError(
                f"train.schedule must change a field once an epoch, got {str(before)!r} and {str(change)!r}"
            )
    for change in changes:
        if not 1 <= change.epoch < config.train.epochs:
            rule = f"train.schedule must make its changes at epochs 1 to {config.train.epochs - 1}"
            raise ConfigError(f"{rule} (train.epochs - 1), got {str(change)!r}")
        if change.epoch < last and change.value != now[change.field]:
            now[change.field] = change.value
            kept.append(change)
    for change in kept:  # what holds from there on must be a Config too
        try:
            _in_force(config, kept, change.epoch)
        except ConfigError as error:
            raise ConfigError(f"train.schedule at {str(change)!r}: {error}") from None
    return tuple(map(str, kept))


def at_epoch(config: Config, epoch: int) -> Config:
    """The Config that holds while an epoch trains, counted from 0: its schedule is done so far, and empty."""
    return _in_force(config, parse_schedule(config.train.schedule), epoch) if config.train.schedule else config


def _in_force(config: Config, changes: Sequence[Change], epoch: int) -> Config:
    done = {change.field: change.value for change in changes if change.epoch <= epoch}
    return override(config, done | {"train.schedule": ()})


def parse_value(name: str, text: str) -> Any:
    """The value of one ``field=value`` of the command line, in the type the field wants."""
    if name not in _FIELDS:
        raise ConfigError(f"unknown Config field {name!r}{_did_you_mean(name)}")
    kind = _FIELDS[name][0]
    try:
        return json.loads(text) if kind in (int, float, bool) or _is_list(kind) else text
    except (ValueError, RecursionError):
        return text  # of the wrong type: override() says so


def to_dict(config: Config) -> dict[str, Any]:
    """The nested dictionary of a Config, as JSON has it: lists for tuples."""
    return dict(json.loads(json.dumps(dataclasses.asdict(config))))


def from_dict(nested: Mapping[str, Any]) -> Config:
    """A Config from the nested dictionary that :func:`to_dict` makes of it."""
    if not isinstance(nested, Mapping):
        raise ConfigError(f"a Config must be an object, got {type(nested).__name__}")
    flat = {
        f"{group}.{leaf}" if isinstance(value, Mapping) else group: item
        for group, value in nested.items()
        for leaf, item in (value.items() if isinstance(value, Mapping) else [(None, value)])
    }
    return override(Config(), flat)


def digest(content: Any, length: int = 16) -> str:
    """Short hash of anything JSON can hold, independent of the order of keys."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def _collect_fields() -> dict[str, tuple[Any, Mapping[str, Any]]]:
    found: dict[str, tuple[Any, Mapping[str, Any]]] = {}
    for name, kind in typing.get_type_hints(Config).items():
        if dataclasses.is_dataclass(kind):
            hints = typing.get_type_hints(kind)
            found |= {f"{name}.{f.name}": (hints[f.name], f.metadata) for f in dataclasses.fields(kind)}
        else:
            found[name] = (kind, Config.__dataclass_fields__[name].metadata)
    return found


EXAMPLES = {float: "[0.1, 1]", str: '["4 optim.lr=0.001"]'}
"""Of fields with several values."""


def _is_list(kind: Any) -> bool:
    """Whether a field has several values: ``tuple[float, ...]`` or ``tuple[str, ...]``."""
    return typing.get_origin(kind) is tuple


def _as_kind(value: Any, kind: Any) -> Any:
    """A number for a float field as a float, a list (of JSON) for a field of several as a tuple."""
    if _is_list(kind):
        return tuple(_as_kind(one, typing.get_args(kind)[0]) for one in value)
    return float(value) if kind is float else value


def _check(name: str, value: Any, rule: tuple[Any, Mapping[str, Any]]) -> None:
    kind, limits = rule
    if _is_list(kind):
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{name} must be a list like {EXAMPLES[typing.get_args(kind)[0]]}, got {value!r}")
        for one in value:
            _check(name, one, (typing.get_args(kind)[0], limits))
        return
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        if value not in choices:
            raise ConfigError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
        return
    accepted = (int, float) if kind is float else (kind,)
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(f"{name} must be {kind.__name__}, got {value!r} ({type(value).__name__})")
    if not limits:
        return
    above, high = limits["above"], limits["high"]
    if kind is int and high == math.inf:
        high = MOST_WHOLE
    inside = (value > above if above is not None else value >= limits["low"]) and value <= high
    if not inside or not -sys.float_info.max <= value <= sys.float_info.max:
        left = f"({above:g}" if above is not None else f"[{limits['low']:g}"
        raise ConfigError(f"{name} must be finite and in {left}, {high:g}], got {value!r}")


def _did_you_mean(name: str) -> str:
    import difflib

    close = difflib.get_close_matches(name, _FIELDS, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(_FIELDS)}"


_FIELDS = _collect_fields()
