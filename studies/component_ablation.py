"""What is each component of jBOT worth, alone and together with the others?

Source   arXiv:2601.11719 has no ablation.
Design   Each of ten components left out of the base, and each added to the [CLS] loss alone. What one leaves undone
         another may do, so some are left out together: half of all combinations of five factors, of four in the
         smaller presets. Those that guard against collapse are not among them: without two of them, or without KoLeo
         and particle loss, nothing was left to compare in a first quick run. The report says what is aliased.
Command  python studies/component_ablation.py                      some twenty minutes on two cores (45 x 52 s)
         python studies/component_ablation.py --preset gpu         on one GPU (not timed yet)
         python studies/component_ablation.py --address auto --preset paper --data jetnet
Read     The component table: base - no_X, with intervals. A collapsed or diverged arm is an outcome, and is counted.
"""

from search_spaces.components import COMPONENTS, add_one_in, fraction, leave_one_out
from studies import SMALL, Contrast, Study, main

# Half of all combinations of these factors; the minus sign takes the half that has the leave-one-out arms.
FOUR = fraction(("particle_loss", "rotation", "smearing"), {"splitting": "-particle_loss*rotation*smearing"})
WORD = "-particle_loss*rotation*smearing*splitting"
FIVE = fraction(("particle_loss", "rotation", "smearing", "splitting"), {"mask_token": WORD})

study = Study(
    name="component_ablation",
    question="What is each component of jBOT worth, alone and together with the others?",
    arms=leave_one_out() | add_one_in() | FIVE,
    factors=COMPONENTS,
    contrasts=tuple(Contrast(treatment="base", control=f"no_{name}", primary=True) for name in COMPONENTS),
    metric="test/knn_accuracy",
    margin=0.01,
    arms_by_preset=dict.fromkeys(SMALL, tuple(leave_one_out() | FOUR)),
    seeds_by_preset={
        "quick": 3,
        "laptop": 9,
        "gpu": 10,
        "paper": 10,
    },  # ten primary contrasts need nine seeds to decide
)

if __name__ == "__main__":
    main(study)
