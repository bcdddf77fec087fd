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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from jbot.field import ConfigError, Field, collect_fields, per_trial, shared

Precision = Literal["fp32", "bf16"]
Variant = Literal["corrected", "reference"]
Task = Literal["all", "tqg", "qg"]
MaskToken = Literal["learned", "zero", "none"]
Scheme = Literal[
    "momentum", "random", "random_count", "geometric", "geometric_count", "hardest", "softest", "none"
]  # fmt: skip
SCHEME_WORDS: Mapping[Scheme, str] = {
    "momentum": "hides random particles, up to a share of the jet’s momentum",
    "random": "hides a share of the particles, at random",
    "random_count": "hides as many particles as momentum does, but drawn blindly",
    "geometric": "hides neighbours in (η, φ), up to a share of the jet’s momentum",
    "geometric_count": "hides neighbours in (η, φ), as many as momentum does",
    "hardest": "hides the hardest particles, up to a share of the jet’s momentum",
    "softest": "hides the softest particles, up to a share of the jet’s momentum",
    "none": "hides nothing: only the [CLS] loss is left",
}

MIN_ANOMALY_BANK = 100
MIN_SIGNAL = 3
"""One jet of each signal class."""
"""Neighbours that the published cosine score looks at (jbot.evaluation.anomaly.scores.MIN_BANK)."""

MIN_LABELED = 5
"""Any five jets in a row of a split hold every class of its task (jbot.data.splits.COMPOSITION)."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which jets train the encoder, and which evaluate it. Ten jets are two of each class, the least for a probe."""

    task: Task = per_trial(
        "all",
        "task {}",
        names={
            "all": "all five classes of jets",
            "tqg": "top, quark and gluon jets",
            "qg": "pre-trained on quark and gluon jets alone",
        },
    )
    """Classes and their shares: `all` five classes, `tqg` top tagging, `qg` anomaly detection (SPLITS in jbot.data)."""
    train_jets: int = per_trial(700_000, "{:,} training jets", 10)
    """Unlabeled jets the encoder is pre-trained on."""
    labeled_jets: int = per_trial(0, "{:,} labelled jets for the probes", 0, names={0: "probes use the training jets"})
    """Jets set aside whose labels the probes may use, those of pre-training first; 0 for these alone. With it, training
    sets of different sizes are evaluated with equally many labels."""
    val_jets: int = shared(50_000, "{:,} validation jets", 10)
    """Jets of the learning curves and of every choice."""
    test_jets: int = shared(95_000, "{:,} test jets", 10)
    """Jets of the final metrics, used once."""
    signal_jets: int = shared(
        0, "{:,} signal jets for the learning curves", 0, names={0: "learning curves without anomaly scores"}
    )
    """Of the task `qg`: jets of W, Z and t whose anomaly scores stand in the learning curves, beside validation jets.
    A diagnostic: they are no test jets, and nothing is chosen by them."""
    particles: int = shared(30, "the {} hardest particles of a jet", 2, 30)
    """Leading particles kept of each jet."""
    jet_pt: float = shared(1000.0, "pre-trained on jets of {:g}", above=0, unit="GeV")
    """pT of the jets of training and evaluation: what the generator is asked for."""

    @property
    def set_aside(self) -> int:
        """Jets of the training part: those of pre-training, and more where the probes have more labels."""
        return max(self.train_jets, self.labeled_jets)

    @property
    def sizes(self) -> dict[str, Any]:
        """The task and how many jets of each part, as jbot.data.splits wants them."""
        sizes = {"train": self.set_aside, "val": self.val_jets, "test": self.test_jets, "signal": self.signal_jets}
        return {"task": self.task, **sizes}


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """The two views of a jet. `reference` repeats what the released code does, `corrected` what the paper says."""

    rotation: float = per_trial(math.pi, "rotation up to {:.3g}", 0, math.pi, unit="rad", names={0.0: "no rotation"})
    """Rotation about the jet axis, uniform in [-rotation, rotation]; 0 switches it off."""
    smear_sigma: float = per_trial(3e-4, "smearing width {:g}", 0, names={0.0: "no smearing"})
    """Width of the (eta, phi) smearing at pt_rel = 1: sigma = smear_sigma / pt_rel; 0 switches it off."""
    smear_variant: Variant = shared(
        "corrected",
        "smearing {}",
        names={"corrected": "padding is not smeared", "reference": "padding is smeared too (released code)"},
    )
    """`reference` also smears padding (pt_rel clipped at 1e-6, so sigma = 300)."""
    split_fraction: float = per_trial(
        1.0, "a share {:g} of the splittings made", 0, 1, names={0.0: "no collinear splitting"}
    )
    """Share of the possible collinear splittings, min(n, empty slots), that are made; 0 switches them off."""
    split_low: float = per_trial(0.3, "splittings from a momentum share of {:g} on", 0, 0.5)
    """Smallest momentum share of a split particle's first half; the largest is 1 - split_low."""
    split_variant: Variant = shared(
        "corrected",
        "splitting {}",
        names={
            "corrected": "a split particle keeps both halves",
            "reference": "a split particle loses its second half (released code)",
        },
    )
    """`reference` loses the second half of each split particle."""
    translation: float = per_trial(0.0, "shifts up to {:g}", 0, 1, unit="rad")
    """Shift of the whole view, uniform in [-translation, translation] in eta and in phi."""
    boost: float = per_trial(0.0, "boosts along the axis up to {:g} in rapidity", 0, 1)
    """Boost along the jet axis, rapidity uniform in [-boost, boost]: angles shrink, shares of the pT stay."""
    pt_sigma: float = per_trial(0.0, "pT smeared by {:g}/√(pT share)", 0, 1)
    """Relative pT resolution at pt_rel = 1: sigma = pt_sigma / sqrt(pt_rel), the stochastic term of a calorimeter."""
    soft_dropout: float = per_trial(0.0, "soft particles lost with a chance of {:g}", 0, 1)
    """Chance of each particle softer than soft_pt to be missing in a view; the hardest always stays."""
    soft_pt: float = per_trial(0.01, "particles below a share {:g} of the jet’s pT are soft", 0, 1)
    """Share of the jet's pT."""


@dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """Which particles are hidden from the student."""

    scheme: Scheme = per_trial("momentum", "masking scheme {}", names=SCHEME_WORDS)
    """A name in jbot.trainer.masking.SCHEMES."""
    ratio_low: float = per_trial(0.0, "hidden share from {:g}", 0, 1)
    ratio_high: float = per_trial(0.5, "hidden share up to {:g}", 0, 1)
    """The masked share of a view is uniform in [ratio_low, ratio_high]."""
    probability: float = per_trial(1.0, "a share {:g} of the views masked", 0, 1)
    """Share of the views that are masked at all."""
    token: MaskToken = shared(
        "learned",
        "mask token {}",
        names={
            "learned": "a learned mask token",
            "zero": "zeros instead of a learned mask token",
            "none": "hidden particles are seen, but their loss counts",
        },
    )
    """What stands for a hidden particle: a vector, `learned` or `zero`; with `none` it is seen, but its loss counts."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The encoder and its projection head. The defaults are jBOT-S."""

    dim: int = shared(32, "width {}", 1)
    heads: int = shared(4, "{} heads", 1)
    layers: int = shared(2, "{} attention blocks", 1)
    projection: int = shared(16, "projection to {}", 2)
    """Outputs of the projection head."""
    padding: Variant = shared(
        "corrected",
        "padding {}",
        names={"corrected": "attention does not see padding", "reference": "attention sees padding (released code)"},
    )
    """`reference` lets attention see padded slots, and averages the particle centre over them."""

    @property
    def head_dim(self) -> int:
        """Width of one attention head. Floored as in the released code: 6 heads of 10 for d = 64."""
        return self.dim // self.heads


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """L = cls_weight * CE([CLS]) + particle_weight * CE(masked particles) + koleo_weight * KoLeo."""

    cls_weight: float = per_trial(1.0, "[CLS]-loss weight {:g}", 0, names={0.0: "no [CLS] loss"})
    particle_weight: float = per_trial(1.0, "particle-loss weight {:g}", 0, names={0.0: "no particle loss"})
    koleo_weight: float = per_trial(0.01, "KoLeo weight {:g}", 0, names={0.0: "no KoLeo term"})
    student_temp: float = per_trial(0.1, "student temperature {:g}", above=0)
    teacher_temp: float = per_trial(0.04, "teacher temperature {:g}", above=0)
    """Below student_temp the teacher's targets are sharper than the student's prediction (sharpening)."""


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """The teacher: an average of the student, and what keeps its targets from collapsing."""

    ema_momentum: float = per_trial(0.996, "teacher’s EMA from {:g}", 0, 1)
    """At epoch 0; goes to ema_final along a cosine."""
    ema_final: float = per_trial(1.0, "teacher’s EMA to {:g}", 0, 1)
    """After the last epoch. Where both are 0, the teacher is the student: no average."""
    centering: bool = shared(
        True, "centering {}", names={True: "teacher’s outputs centred", False: "teacher’s outputs not centred"}
    )
    center_momentum: float = per_trial(0.9, "momentum of the teacher’s centres {:g}", 0, 1)


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW as Keras has it: decay on every weight, eps outside the bias correction."""

    lr: float = per_trial(2e-3, "learning rate {:g}", above=0)
    """After warm-up. The paper: 5e-4 * batch / 256."""
    warmup_epochs: int = per_trial(10, "warm-up of {}", 0, unit="epochs")
    """Linear, set per epoch: lr * (epoch + 1) / warmup_epochs."""
    final_lr: float = per_trial(
        1.0, "learning rate falling to {:g} of itself", 0, 1, names={1.0: "learning rate constant after warm-up"}
    )
    """Share of `lr` in the last epoch, reached from the end of the warm-up along a cosine, set per epoch; the paper's
    rate stays, 1."""
    weight_decay: float = per_trial(1e-4, "weight decay {:g}", 0)
    beta1: float = per_trial(0.9, "AdamW’s beta1 {:g}", 0, 0.9999999)
    beta2: float = per_trial(0.999, "AdamW’s beta2 {:g}", 0, 0.9999999)
    eps: float = per_trial(1e-7, "AdamW’s eps {:g}", above=0)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long, and in what batches."""

    epochs: int = shared(80, "{}", 1, unit="epochs")
    batch: int = shared(1024, "batches of {}", 2)
    """Jets of a step; the last, smaller batch of an epoch is kept unless it is a single jet."""
    precision: Precision = shared("fp32", "trained in {}")
    """Arithmetic of encoder and head in training; weights, optimiser, losses and probes are fp32 with either."""
    dropout: float = per_trial(0.0, "dropout {:g}", 0, 0.99)
    """Rate in the student in pre-training, behind each block's two updates, as in fine-tuning; the paper has none."""
    until: int = per_trial(0, "stopped after {}", 0, unit="epochs", names={0: "trained to the last epoch"})
    """Epochs after which training stops early; 0: at `epochs`. What runs on epochs (warm-up, EMA) runs on `epochs`."""
    perturbation: float = per_trial(
        0.0, "initial weights off by a share {:g}", 0, 0.01, names={0.0: "initial weights as drawn"}
    )
    """Each initial weight is multiplied by 1 + perturbation * Normal(0, 1): how far such a trial ends from the one
    without it is the noise floor below which no difference means anything."""
    schedule: tuple[str, ...] = per_trial(
        (), "changes while it trains: {}", names={(): "nothing changes while it trains"}
    )
    """Changes while it trains, each ``<epoch> <field>=<number>``: ``4 optim.lr=0.001`` holds when 4 epochs are done."""

    @property
    def last_epoch(self) -> int:
        """Epochs that are trained."""
        return self.until or self.epochs


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """How the frozen embedding is evaluated."""

    every: int = shared(10, "probed every {}", 1, unit="epochs")
    """Epochs between points of the learning curves; 0 and the last epoch are always there."""
    bank_jets: int = shared(50_000, "probes of up to {:,} labelled jets", 10)
    """Labeled training jets behind the k-NN and linear probes (fewer when there are fewer; see data.labeled_jets)."""
    knn_k: int = shared(30, "{} nearest neighbours", 1)
    jet_pts: tuple[float, ...] = shared(
        (), "evaluated also at {}", above=0, unit="GeV", names={(): "evaluated at its own jet pT alone"}
    )
    """Jet pTs at which the frozen encoder is evaluated too: with probes refitted there, and with those of its own pT,
    which may be among them."""


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Supervised training of encoder and classification head after pre-training; off while `fractions` is empty.

    The defaults are the paper's for five classes and jBOT-S.
    """

    fractions: tuple[float, ...] = shared(
        (), "fine-tuned on shares {} of the labels", 0, 1, above=0, names={(): "not fine-tuned"}
    )
    """Shares of the training jets whose labels are used, one fine-tuning each."""
    twin: bool = shared(
        True,
        "supervised baseline: {}",
        names={True: "a supervised baseline beside each fine-tuning", False: "no supervised baselines"},
    )
    """Beside each, the supervised baseline: the same from fresh weights, without layer decay."""
    epochs: int = shared(100, "fine-tuning of up to {}", 1, unit="epochs")
    batch: int = shared(1024, "fine-tuning in batches of {}", 2)
    lr: float = per_trial(4e-4, "fine-tuning at a learning rate of {:g}", above=0)
    layer_decay: float = per_trial(0.65, "fine-tuning with a layer decay of {:g}", 0, 1, above=0)
    """The step of each block is this share of the next one's; the last block and the head step with `lr`."""
    dropout: float = per_trial(0.2, "fine-tuning with dropout {:g}", 0, 0.99)
    patience: int = per_trial(100, "fine-tuning ends after {} epochs without gain", 1)
    """Epochs without a better validation accuracy, after which a fine-tuning ends."""
    tolerance: float = per_trial(1e-4, "a gain in fine-tuning is more than {:g}", 0)
    """What a better validation accuracy must gain."""


@dataclass(frozen=True, kw_only=True)
class AnomalyConfig:
    """How signal jets are found by an encoder that has seen q and g alone: for the task `qg`."""

    bank_jets: int = shared(20_000, "anomaly scores of up to {:,} background jets", MIN_ANOMALY_BANK)
    """Background training jets that a score is made of, drawn from the probes' bank (fewer when there are fewer)."""
    scan: bool = shared(
        False,
        "scan of anomaly scores: {}",
        names={True: "settings of anomaly scores scanned", False: "anomaly scores as published"},
    )
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
    seed: int = per_trial(0, "seed {}", 0, 2**31 - 1)

    def __post_init__(self) -> None:
        for name, value in flatten(self).items():
            FIELDS[name].check(value)
        for holds, rule in self._rules():
            if not holds:
                raise ConfigError(rule)
        until = self.train.until if self.train.until < self.train.epochs else 0
        plain = dataclasses.replace(self.train, until=until, schedule=_canonical_schedule(self))
        object.__setattr__(self, "train", plain)

    def _rules(self) -> Iterator[tuple[bool, str]]:
        """What fields must fulfil together, and what to say where they do not."""
        data, mask, probe, tune, train, bank = (
            self.data,
            self.mask,
            self.probe,
            self.finetune,
            self.train,
            self.bank_jets,
        )
        got = f"{mask.ratio_low} > {mask.ratio_high}"
        yield mask.ratio_low <= mask.ratio_high, f"mask.ratio_low must not exceed mask.ratio_high, got {got}"
        got = f"{self.model.dim} < {self.model.heads}"
        yield self.model.dim >= self.model.heads, f"model.dim must be at least model.heads, got {got}"
        rule = f"data.train_jets and probe.bank_jets must be at least {MIN_ANOMALY_BANK} for data.task qg, got {bank}"
        yield data.task != "qg" or bank >= MIN_ANOMALY_BANK, rule
        rule = f"data.signal_jets must be 0, or at least {MIN_SIGNAL} with data.task qg, got {data.signal_jets}"
        yield data.signal_jets == 0 or (data.task == "qg" and data.signal_jets >= MIN_SIGNAL), rule
        rule = "probe.knn_k must not exceed data.train_jets and probe.bank_jets"
        yield probe.knn_k <= bank, f"{rule}, got {probe.knn_k} > {bank}"
        yield _differ(tune.fractions), f"finetune.fractions must differ in six digits, got {tune.fractions}"
        rule = f"finetune.fractions must leave at least {MIN_LABELED} labeled jets, so that each class has one, got"
        for share in tune.fractions:
            jets = round(share * data.train_jets)
            yield jets >= MIN_LABELED, f"{rule} {share:g} of data.train_jets {data.train_jets}: {jets}"
        yield _differ(probe.jet_pts), f"probe.jet_pts must differ in six digits, got {probe.jet_pts}"
        rule = "finetune.fractions must be empty for data.task qg: its encoder sees no label"
        yield not (tune.fractions and data.task == "qg"), rule
        rule = f"train.until must not exceed train.epochs, got {train.until} > {train.epochs}"
        yield train.until <= train.epochs, rule

    @property
    def bank_jets(self) -> int:
        """Labeled training jets behind the probes."""
        return min(self.data.set_aside, self.probe.bank_jets)


def _differ(numbers: Sequence[float]) -> bool:
    return len({f"{number:g}" for number in numbers}) == len(numbers)


# jBOT-B, as changes to the default jBOT-S.
JBOT_B = {"model.dim": 64, "model.heads": 6, "model.layers": 4, "model.projection": 32}


def flatten(config: Config | Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted field names and their values, in the order of the classes: ``{"data.task": "all", ..., "seed": 0}``.

    Also of the nested dictionary of a Config, whatever fields it has.
    """
    flat: dict[str, Any] = {}
    for name, value in (config if isinstance(config, Mapping) else vars(config)).items():
        is_group = isinstance(value, Mapping) or dataclasses.is_dataclass(value)
        flat |= flatten(value, f"{prefix}{name}.") if is_group else {f"{prefix}{name}": value}
    return flat


def differences(config: Config | Mapping[str, Any]) -> dict[str, Any]:
    """The fields that are not at their defaults, which identify a training run.

    A field that is added later, with a default that changes nothing, leaves them as they are. A default that is
    changed needs another `jbot.TRAINER_VERSION`.
    """
    changed = {}
    for name, value in flatten(config).items():
        known = FIELDS.get(name)
        if known and known.fits(value):
            value = known.as_kind(value)
        if not known or value != known.default:
            changed[name] = value
    return changed


def with_defaults(nested: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The nested dictionary of a Config that another version of the program wrote, whole; and which fields it lacked.

    They get their defaults. A part that is no dictionary, and fields of no Config, stay as they are.
    """
    filled, lacking = dict(nested), []
    for name, known in FIELDS.items():
        group, _, leaf = name.rpartition(".")
        part = filled.get(group, {})
        if group and isinstance(part, Mapping) and leaf not in part:
            filled[group] = {**part, leaf: list(known.default) if known.is_list else known.default}
            lacking.append(name)
    return filled, tuple(lacking)


def override(config: Config, changes: Mapping[str, Any]) -> Config:
    """The same Config with some dotted fields changed.

    Raises ConfigError for an unknown field, a wrong type or a value out of range, naming rule and value.
    """
    groups: dict[str, dict[str, Any]] = {}
    for name, value in changes.items():
        if name not in FIELDS:
            raise ConfigError(f"unknown Config field {name!r}{_did_you_mean(name)}")
        FIELDS[name].check(value)
        group, _, leaf = name.rpartition(".")
        # A whole number for a float field is a float: 1 and 1.0 must give one trial, not two.
        groups.setdefault(group, {})[leaf] = FIELDS[name].as_kind(value)
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
        return f"{self.epoch} {self.field}={repr(self.value).removesuffix('.0')}"


SCHEDULED = ("augment", "mask", "loss", "teacher", "optim")
"""Groups whose float fields a schedule may change: a step reads each trial's own."""


def can_change(name: str) -> bool:
    """Whether `train.schedule` may change a field: a float that every step reads again."""
    return name in FIELDS and FIELDS[name].kind is float and name.partition(".")[0] in SCHEDULED


def parse_schedule(schedule: Iterable[str]) -> list[Change]:
    """The changes of a `train.schedule`, by epoch and field.

    Raises ConfigError for a line of another form, a field that cannot change, or a value out of its range.
    """
    return sorted(map(_parse_change, schedule), key=lambda change: (change.epoch, change.field))


def _parse_change(text: str) -> Change:
    match = re.fullmatch(r"\s*(\d{1,9})\s+([\w.]+)\s*=\s*(\S+)\s*", text, re.ASCII)
    if not match:
        raise ConfigError(f'train.schedule must be a list of changes like "4 optim.lr=0.001", got {text!r}')
    epoch, name, number = match.groups()
    if name not in FIELDS:
        raise ConfigError(f"train.schedule: unknown Config field {name!r}{_did_you_mean(name)}")
    if not can_change(name):
        raise ConfigError(f"train.schedule may change {', '.join(filter(can_change, FIELDS))}, got {name!r}")
    try:
        value = float(number)
    except ValueError:
        raise ConfigError(f"train.schedule must set numbers, got {text!r}") from None
    FIELDS[name].check(value, f"train.schedule: {name}")
    return Change(epoch=int(epoch), field=name, value=FIELDS[name].as_kind(value))


def _canonical_schedule(config: Config) -> tuple[str, ...]:
    """The schedule of a Config in the one form that every schedule with the same effect has."""
    if not config.train.schedule:
        return ()
    now, kept, last = flatten(config), [], config.train.last_epoch
    changes = parse_schedule(config.train.schedule)
    for before, change in itertools.pairwise(changes):
        if (before.epoch, before.field) == (change.epoch, change.field):
            rule = "train.schedule must change a field once an epoch"
            raise ConfigError(f"{rule}, got {str(before)!r} and {str(change)!r}")
    for change in changes:
        if not 1 <= change.epoch < config.train.epochs:
            rule = f"train.schedule must make its changes at epochs 1 to {config.train.epochs - 1} (train.epochs - 1)"
            raise ConfigError(f"{rule}, got {str(change)!r}")
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
    if name not in FIELDS:
        raise ConfigError(f"unknown Config field {name!r}{_did_you_mean(name)}")
    known = FIELDS[name]
    try:
        return json.loads(text) if known.is_list or known.kind in (int, float, bool) else text
    except (ValueError, RecursionError):
        return text  # of the wrong type: override() says so


def to_dict(config: Config) -> dict[str, Any]:
    """The nested dictionary of a Config, as JSON has it: lists for tuples."""
    return dict(json.loads(json.dumps(dataclasses.asdict(config))))


def from_dict(nested: Mapping[str, Any]) -> Config:
    """A Config from the nested dictionary that :func:`to_dict` makes of it; what it lacks is at its default."""
    if not isinstance(nested, Mapping):
        raise ConfigError(f"a Config must be an object, got {type(nested).__name__}")
    return override(Config(), flatten(nested))


def digest(content: Any, length: int = 16) -> str:
    """Short hash of anything JSON can hold, independent of the order of keys."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def _did_you_mean(name: str) -> str:
    import difflib

    close = difflib.get_close_matches(name, FIELDS, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(FIELDS)}"


FIELDS: Mapping[str, Field] = collect_fields(Config)


def describe_fields() -> list[tuple[str, str, str]]:
    """Rows of a help text: each field, what its values may be, and what its default says in words."""
    return [
        (name, f"list of {known.range}" if known.is_list else known.range, known.words(known.default))
        for name, known in FIELDS.items()
    ]
