"""The model card beside every checkpoint: what it was made of and how, how good it is, and how to use it.

Markdown with a YAML front matter, as model hubs read it. Everything in it comes from the record.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jbot.config import JBOT_B, Config, ModelConfig, flatten, override
from jbot.data.jetnet import CITATION as JETNET_CITATION
from jbot.data.pythia import CITATIONS as GENERATOR_CITATIONS
from jbot.data.splits import COMPOSITION
from jbot.evaluation.metrics_registry import BASELINES, TUNED, Metric, find_metric
from jbot.store.record import Record, trial_folder
from jbot.store.storage import Storage

CARD = "card.md"
METHOD = "H. F. Tsoi and D. Rankin, jBOT, arXiv:2601.11719"
RELEASED = "https://github.com/hftsoi/jbot"
TAGS = ("jets", "high-energy-physics", "self-supervised-learning", "self-distillation", "jbot")
HEADLINES = ("knn", "linear", *TUNED)
"""Classifiers whose accuracy and AUC are shown first, in this order; the others of some hundred are folded away."""
ANOMALY_HEADLINE = "anomaly_knn"
MAX_HEADLINES = 12

SIZES = {"jBOT-S": Config().model, "jBOT-B": override(Config(), JBOT_B).model}

USE = """\
```python
import jbot
jets = [[[0.02, 0.01, 0.7, 1], [-0.05, 0.00, 0.3, 1]]]  # (jet, particle, 4): eta_rel, phi_rel, pt_rel, valid
cls = jbot.load(".").embed(jets)  # (jet, {dim}) float32; "." is the folder of this card
```

In a scikit-learn pipeline: `jbot.JetEmbedding(".")`. A whole file: `python -m jbot.embed jets.hdf5 --checkpoint . --out
embedding.parquet`."""

LIMITS = """\
For research on jet representations: as frozen features, as a start for fine-tuning, or beside other encoders.

- The method and the recipes of its jets are for anti-kT R = 0.4 jets of about 1 TeV in proton collisions at 13 TeV,
  with a fast detector. Other pT, radii, detectors and pile-up were not tested: expect shifts.
- It sees only (eta_rel, phi_rel, pt_rel) of up to 30 leading particles: no charge, no particle type, no vertex, and
  neither pT nor mass of the jet. pt_rel is relative to the jet's pT."""

NOT_JETNET = """\
- Generated jets are not JetNet. They follow its published figures closely, not exactly (`python -m
  jbot.data.validate`), so numbers here do not stand in for numbers on JetNet."""

ONE_SEED = """\
- This is one training with one seed. A difference between two cards is no verdict: that takes a study with seeds."""

LICENCE = """\
Code, and weights trained with it: BSD-3-Clause. Please cite the method and the jets:"""

RELEASED_LICENCE = """\
The weights are the authors' ({link}), and their terms hold; no licence came with the file. The importing code is
BSD-3-Clause. Please cite:"""


def model_card(record: Record) -> str:
    """The card of an ended trial, in Markdown; its example runs in the folder of the card.

    Metrics may be empty; a failed trial's card says why, and not how to load it.
    """
    use = USE.format(dim=record.config["model"]["dim"]) + _heads(record)
    if record.state == "failed":
        use = "Not usable: this trial failed, and jbot.load refuses it."
    source = str(record.data.get("source", ""))
    sections = {
        "Use": use,
        "Data": _data(record),
        "Config": _config(record.config),
        "Metrics": _metrics(record),
        "Training": _training(record),
        "Intended use and limits": "\n".join([LIMITS, *_caveats(record, source)]),
        "Licence and citation": f"{LICENCE}\n\n{_bullets(_citations(source))}",
    }
    ended = "" if record.state == "complete" else f" **State: {record.state}, {_line(record.reason)}.**"
    summary = (
        "A transformer encoder of jets, pre-trained without labels by self-distillation "
        f"(jBOT, arXiv:2601.11719): arm `{record.arm}` of study `{record.study}`, seed {record.seed}.{ended}"
    )
    measures = {find_metric(name).measure for name in record.metrics}
    hub_names = [hub for ours, hub in (("accuracy", "accuracy"), ("auc", "roc_auc")) if ours in measures]
    title = f"{_size(record.config.get('model', {}))} encoder, trial {record.trial_id}"
    return _document(title, summary, sections, "bsd-3-clause", hub_names)


def released_card(model: ModelConfig, sources: Mapping[str, Mapping[str, str]]) -> str:
    """The card of imported weights that the authors released: what is known of them, and what is not.

    `sources` are "backbone", and "head" if there is one: each with the `source` (file name) and its `sha256`.
    """
    rows = [(part, facts["source"], f"`{facts['sha256']}`") for part, facts in sources.items()]
    use = USE.format(dim=model.dim)
    known = [
        f"{model.dim} wide, {model.heads} heads of {model.head_dim}, {model.layers} layers, from the shapes.",
        'No attention mask: padding is seen, `model.padding = "reference"`; always 30 slots.',
        "By the authors' file names: `all`, `tqg`, `qg` are the classes of the jets; `pretrain` the self-distilled "
        "encoder, `ft` fine-tuned, `standalone` trained with labels only, `data10` with a tenth of them.",
        "By the paper: trained on JetNet (Zenodo 6975118).",
    ]
    if "head" in sources:
        use += '\n\n`jbot.load(".").predict_proba(jets)` gives the head\'s class probabilities.'
        known.append("Classes of the head: q, g, w, z, t for five outputs; qcd, t for two.")
    sections = {
        "Use": use,
        "Known": f"{_table(('part', 'file', 'sha256'), rows)}\n\n{_bullets(known)}",
        "Not known": _bullets(
            [
                "The authors' seed, training settings beyond the paper's text, number of jets, time and hardware.",
                "Metrics of these files: the paper's figures are on its own test jets. None was measured on import.",
                "Mask token and projection head: not released, so it embeds and cannot be pre-trained further.",
            ]
        ),
        "Intended use and limits": LIMITS,
        "Licence and citation": f"{RELEASED_LICENCE.format(link=RELEASED)}\n\n{_bullets([METHOD, JETNET_CITATION])}",
    }
    summary = f"The encoder of weights that the jBOT authors released, {RELEASED}, imported without change."
    return _document(f"{_size(dataclasses.asdict(model))} encoder, released weights", summary, sections, "unknown", [])


def save_card(storage: Storage, record: Record) -> None:
    """Write the card of a trial beside its weights."""
    storage.write(f"{trial_folder(record.trial_id)}/{CARD}", model_card(record).encode())


def _document(title: str, summary: str, sections: Mapping[str, str], licence: str, metrics: Sequence[str]) -> str:
    front = [f"license: {licence}", "library_name: jbot-studies", "pipeline_tag: feature-extraction", "tags:"]
    front += [f"- {tag}" for tag in TAGS]
    front += ["metrics:", *(f"- {name}" for name in metrics)] if metrics else []
    body = [f"# {title}", summary, *(f"## {name}\n\n{text}" for name, text in sections.items())]
    return "\n".join(["---", *front, "---", "", "\n\n".join(body), ""])


def _size(model: Mapping[str, Any]) -> str:
    """The published size it has, or its shape."""
    for name, published in SIZES.items():
        if all(model.get(part) == getattr(published, part) for part in ("dim", "heads", "layers")):
            return name
    return f"jBOT ({model.get('dim')} wide, {model.get('heads')} heads, {model.get('layers')} layers)"


def _heads(record: Record) -> str:
    """How to load what was fine-tuned, for those runs that have a metric."""
    metrics = [find_metric(name) for name in record.metrics]
    tuned = {one.source: one.kind for one in metrics if one.kind in TUNED and one.measure == "accuracy"}
    words = {"finetune": "Fine-tuned from this encoder", "supervised": "Trained from fresh weights on the same labels"}
    sentences = []
    for kind, text in words.items():
        files = [f"`classifier_{run}.safetensors`" for run in sorted(tuned) if tuned[run] == kind]
        sentences += [f"{text}, with a classification head: {', '.join(files)}."] if files else []
    return "\n\n" + " ".join([*sentences, "`jbot.load(file).predict_proba(jets)`."]) if sentences else ""


def _data(record: Record) -> str:
    data = record.config.get("data", {})
    rows = [("source", record.data.get("source")), ("fingerprint (sha256)", f"`{record.data.get('fingerprint')}`")]
    for part, use in (("train", "pre-training, no labels"), ("val", "choices"), ("test", "the metrics below")):
        unit = COMPOSITION.get(data.get("task"), {}).get(part, ())
        shares = ", ".join(f"{name} {unit.count(name) / len(unit):.0%}" for name in dict.fromkeys(unit))
        rows.append((f"{part} jets", f"{data.get(f'{part}_jets'):,} ({shares}): {use}"))
    rows.append(("particles per jet", f"{data.get('particles')} leading ones in pT"))
    return _table(("what", "value"), rows)


def _config(nested: Mapping[str, Any]) -> str:
    """Fields that differ from the paper as a table, then all as JSON."""
    here, paper = flatten(nested), flatten(Config())
    rows = [
        (f"`{name}`", value, paper.get(name, "(not a field now)"))
        for name, value in here.items()
        if name != "seed" and json.dumps(paper.get(name)) != json.dumps(value)  # a tuple is a list
    ]
    changes = _table(("field", "here", "paper (jBOT-S)"), rows) if rows else "As in the paper (jBOT-S), in every field."
    return f"{changes}\n\nSeed {nested.get('seed')}. All fields:\n\n```json\n{json.dumps(nested, indent=1)}\n```"


def _metrics(record: Record) -> str:
    if not record.metrics:
        return "None: the trial ended before its embedding was evaluated."
    metrics = [metric for metric in map(find_metric, record.metrics) if not metric.baseline]
    test = [metric for metric in metrics if metric.split == "test"]
    first = [metric for kind in HEADLINES for metric in test if metric.kind == kind and not metric.is_detail]
    areas = (metric for metric in test if metric.source == ANOMALY_HEADLINE and metric.measure == "auc")
    first = (first + sorted(areas, key=lambda metric: bool(metric.on)))[:MAX_HEADLINES] or metrics
    notes = ["knn, linear: probes that train on labels, of the frozen embedding."]
    if any(metric.kind == "anomaly" for metric in first):
        notes.append("anomaly_knn: anomaly detection by distance to quark and gluon jets, of all signals and of each.")
    if record.uncertainties:
        notes.append("error: standard error from the number of test jets; sd of 10 folds: scatter over test folds.")
    text = f"{_metric_table(record, first)}\n\n{' '.join(notes)}"
    if rest := [metric for metric in metrics if metric not in first]:
        summary = f"<details><summary>{len(rest)} more metrics</summary>"
        text += f"\n\n{summary}\n\n{_metric_table(record, rest)}\n\n</details>"
    return text


def _metric_table(record: Record, metrics: Sequence[Metric]) -> str:
    """Value, errors and baselines of metrics; columns that would be empty are left out."""
    rows = []
    for name in (metric.key for metric in metrics):
        known = record.uncertainties.get(name, {})
        baselines = (record.metrics.get(f"{baseline}/{name}") for baseline in BASELINES)
        rows.append((f"`{name}`", record.metrics[name], known.get("error"), known.get("fold_sd"), *baselines))
    columns = ["metric", "value", "error", "sd of 10 folds", *BASELINES.values()]
    used = [i for i in range(len(columns)) if i < 2 or any(row[i] is not None for row in rows)]
    return _table([columns[i] for i in used], [[row[i] for i in used] for row in rows])


def _training(record: Record) -> str:
    machine, used = record.hardware, record.resources
    rows = [
        ("seed", record.seed),
        ("started", record.started),
        ("training and probes", f"{record.device_seconds:,.1f} s, of them probes {record.probe_seconds:,.1f} s"),
        ("wall time", f"{record.wall_seconds:,.1f} s in {record.attempts} attempt(s)"),
        ("device", machine.get("gpu") or machine.get("cpu")),
        ("threads of cores", f"{machine.get('threads')} of {machine.get('cores')}"),
        ("engine", used.get("engine")),
        ("trials trained together", used.get("pack")),
        ("trainer version", record.trainer_version),
        ("commit", record.git_commit),
        ("libraries", ", ".join(f"{name} {version}" for name, version in record.libraries.items())),
    ]
    return _table(("what", "value"), [row for row in rows if row[1] is not None])


def _caveats(record: Record, source: str) -> list[str]:
    caveats = [] if source.startswith("JetNet") else [NOT_JETNET]
    if record.config.get("data", {}).get("task") == "qg":
        caveats.append(
            "- Pre-trained on q and g jets alone: W, Z and top jets are new to it, on purpose (anomaly detection)."
        )
    return [*caveats, ONE_SEED]


def _citations(source: str) -> list[str]:
    """The method, and the makers of the jets as far as the source names them."""
    if source.startswith("Pythia"):
        return [METHOD, *GENERATOR_CITATIONS.values()]
    if source.startswith("JetNet"):
        return [METHOD, JETNET_CITATION]
    return [METHOD, *(f"{text} (where the jets are theirs)" for text in GENERATOR_CITATIONS.values())]


def _table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *([_cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _cell(value: Any) -> str:
    """One cell of a table: short numbers, no line breaks, no bars."""
    if value is None:
        return ""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return _line(text).replace("|", "\\|")


def _line(text: object) -> str:
    return " ".join(str(text).split())
