"""Do we find the paper's figures, and how far do they move from seed to seed?

Source   arXiv:2601.11719 gives one training of each model; its spreads are folds of one test set, so how much of a
         difference is luck of the seed is unknown. Two of its tables, and what it says of five classes, stand here.
Design   jBOT-S and B, pre-trained for five classes, top tagging and anomaly detection by the paper's recipe, with its
         splits scaled to the preset's jets; k-NN, linear probe, supervised baselines, fine-tuning, anomaly scores.
Command  python studies/paper_tables.py                            (time: docs/studies/paper_tables.md)
         python studies/paper_tables.py --released FOLDER          the authors' checkpoints as rows, on our test jets
         python studies/paper_tables.py --address auto --preset paper --data jetnet
Read     paper_tables.html: paper, ours and each spread, line under line. Only preset paper on JetNet is the paper's
         experiment; others show the way there. The contrasts B - S are exploratory.
"""

from jbot.config import JBOT_B
from studies import SMALL, Contrast, Study, main

LABELS = {"finetune.fractions": (0.1, 1.0)}
FIVE, TOP = {"data.task": "all", **LABELS}, {"data.task": "tqg", **LABELS}
ANOMALY = {"data.task": "qg", "anomaly.scan": True}

study = Study(
    name="paper_tables",
    question="Which of the paper's figures do we find, and with what spread over seeds?",
    arms={
        "S_all": {**FIVE, "finetune.lr": 4e-4, "finetune.layer_decay": 0.65},
        "S_tqg": {**TOP, "finetune.lr": 4e-4, "finetune.layer_decay": 0.80},
        "S_qg": ANOMALY,
        "B_all": {**JBOT_B, **FIVE, "finetune.lr": 2e-4, "finetune.layer_decay": 0.70},
        "B_tqg": {**JBOT_B, **TOP, "finetune.lr": 4e-4, "finetune.layer_decay": 0.70},
        "B_qg": {**JBOT_B, **ANOMALY},
    },
    contrasts=tuple(Contrast(treatment=f"B_{task}", control=f"S_{task}") for task in ("all", "tqg", "qg")),
    metric="test/knn_accuracy",
    margin=0.01,
    against_paper=True,
    arms_by_preset=dict.fromkeys(SMALL, ("S_all", "S_tqg", "S_qg")),
    seeds_by_preset={"quick": 3, "laptop": 5},
)

if __name__ == "__main__":
    main(study)
