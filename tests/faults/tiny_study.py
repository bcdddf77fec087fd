"""A study whose trials take a second: what the faults happen to. The whole command line, smallest Configs.

python tests/faults/tiny_study.py --preset smoke --inline --storage FOLDER --data tests/data/jets_sample.h5
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from studies import Contrast, Study, main

study = Study(
    name="faults",
    question="Is a trial lost?",
    base={
        "data.train_jets": 60,
        "data.val_jets": 40,
        "data.test_jets": 60,
        "model.dim": 8,
        "model.heads": 2,
        "model.layers": 2,
        "model.projection": 4,
        "train.batch": 16,
        "train.epochs": 20,
        "probe.every": 10,
        "probe.knn_k": 5,
    },
    arms={"momentum": {}, "none": {"mask.scheme": "none"}},
    contrasts=(Contrast(treatment="momentum", control="none", primary=True),),
    margin=0.02,
)


def no_report(*arguments: object) -> None:
    """Its figures take ten times the seconds of everything else."""


if __name__ == "__main__":
    if os.environ.get("JBOT_FAULTS_REPORT") != "1":
        from studies.runner import execute

        execute.write_report = no_report
    main(study)
