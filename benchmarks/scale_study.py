"""The smallest real study, ten arms at as many seeds as wanted: what benchmarks/scale.py runs.

python -m benchmarks.scale_study --preset smoke --seeds 200 --data tests/data/jets_sample.h5 --storage /tmp/scale
"""

from __future__ import annotations

from jbot.store.plan import Contrast
from studies import Study, main

ARMS = 10
TRIVIAL = {
    "data.train_jets": 32,
    "data.val_jets": 20,
    "data.test_jets": 40,
    "model.dim": 8,
    "model.heads": 2,
    "model.layers": 1,
    "model.projection": 4,
    "train.batch": 16,
    "train.epochs": 1,
    "optim.warmup_epochs": 0,
    "probe.every": 1,
    "probe.knn_k": 5,
}
"""Two training steps, and all that is evaluated, drawn from and written of any trial."""

study = Study(
    name="scale",
    question="What does a trial cost besides its training?",
    arms={f"koleo_{number}": {"loss.koleo_weight": number / 100} for number in range(ARMS)},
    base=TRIVIAL,
    contrasts=tuple(
        Contrast(treatment=f"koleo_{number}", control="koleo_0", primary=number == 1) for number in range(1, ARMS)
    ),
    margin=0.02,
)

if __name__ == "__main__":
    main(study)
