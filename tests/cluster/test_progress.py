"""The bar counts epochs of training, and of fine-tunings by their share of the labels."""

import dataclasses
import io
import random
from types import SimpleNamespace

import pytest
from rich.console import Console

from cluster.progress import StudyProgress, epochs_of, styled
from jbot.config import Config, override
from jbot.store.record import TrialSpec


@pytest.fixture
def spec() -> TrialSpec:
    changes = {"train.epochs": 8, "finetune.fractions": [0.1, 1.0], "finetune.epochs": 10}
    return TrialSpec(study="s", arm="a", plan_hash="p", config=override(Config(), changes), data_fingerprint="f")


def test_a_trial_is_its_epochs_and_those_of_its_fine_tunings(spec):
    assert epochs_of(spec) == pytest.approx(8 + 2 * (0.1 + 1.0) * 10)


def test_every_reported_epoch_moves_the_bar(spec):
    progress = StudyProgress([spec], [], Console(file=io.StringIO()))
    progress.started(spec)
    assert progress.bar.left() == ""
    for row in ({"epoch": 0}, {"epoch": 8}, {"finetune_10/epoch": 1}, {"supervised_100/epoch": 1}):
        progress.point(spec, row)
    assert progress.epochs[spec.trial_id] == pytest.approx(8 + 0.1 + 1.0)
    assert progress.bar.left().endswith("left")
    progress.close()


@pytest.mark.parametrize("words", ["cannot open [/tmp/x]", "no /data/[run1]/file", "[bold] :key: [Errno 28]"])
def test_what_an_error_says_is_shown_as_it_is(spec, words):
    """Rich would take brackets for styles: leave them out, or raise in the middle of a study."""
    shown = io.StringIO()
    progress = StudyProgress([spec], [], Console(file=shown, width=200))
    progress.lost(spec, f"Traceback ...\nOSError: {words} at http://me:secret@host\n")
    progress.ended(spec, SimpleNamespace(trial_id=spec.trial_id, state="failed", reason=words))
    progress.close()
    assert f"a, seed 0 was given up: OSError: {words} at http://***@host\n" in shown.getvalue()
    assert f"a, seed 0 failed: {words}\n" in shown.getvalue()


def test_only_words_between_our_own_marks_are_styled():
    text = styled("[yellow]lost[/]: see [/tmp/[a]] and [red]mend[/]")
    assert text.plain == "lost: see [/tmp/[a]] and mend"
    assert [(text.plain[span.start : span.end], span.style) for span in text.spans] == [
        ("lost", "yellow"),
        ("mend", "red"),
    ]


def test_running_sums_are_those_of_all_trials(spec):
    """They are kept up to date by each event; here they are made anew from what the events have said."""
    rng = random.Random(0)
    specs = [dataclasses.replace(spec, config=override(spec.config, {"seed": i // 3, "optim.lr": 1e-3 * (1 + i % 3)}))
             for i in range(12)]  # fmt: skip
    states = {one.trial_id: rng.choice(["complete", "failed"]) for one in specs}
    records = {
        one.trial_id: SimpleNamespace(trial_id=one.trial_id, state=states[one.trial_id], reason="") for one in specs
    }
    ended = specs[:2]
    progress = StudyProgress(specs, [records[one.trial_id] for one in ended], Console(file=io.StringIO()))
    for one in rng.sample(specs[2:], 7):
        progress.started(one)
        for epoch in (1, 2, 2, 5, 8)[: rng.randint(1, 5)]:
            progress.point(one, {"epoch": epoch})
        if rng.random() < 0.6:
            for _ in range(2):  # told twice after a crash
                progress.ended(one, records[one.trial_id])
            ended.append(one)
            progress.point(one, {"epoch": 3})
    done = {one.trial_id for one in ended}
    reached = [epochs_of(one) if one.trial_id in done else progress.epochs[one.trial_id] for one in specs]
    assert progress.work == pytest.approx(sum(reached))
    open_blocks = {one.config.seed for one in specs if one.trial_id not in done}
    failed = sum(states[trial] == "failed" for trial in done)
    blocks, running = f"{4 - len(open_blocks)}/4", len(progress.running)
    assert progress.summary() == f"blocks {blocks} · trials {len(done)}/12 done · {running} running · {failed} failed"
    progress.close()
