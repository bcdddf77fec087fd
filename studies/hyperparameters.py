"""Is there a better recipe of pre-training than the base?

Source   The paper gives one recipe and no search (arXiv:2601.11719).
Design   Optuna's TPE, seeded, over the joint space of search_spaces/joint.py; points at one seed, compared on
         validation jets, given up early by successive halving (ASHA). The best point is then run against the base on
         seeds that the search has not seen, and tested on test jets: that difference alone is the answer.
Command  python studies/hyperparameters.py
         python studies/hyperparameters.py --objectives accuracy,anomaly,cost     a Pareto front, no pruning
         python studies/hyperparameters.py --address auto --preset gpu --gpus 0.25
Read     The verdict on winner - base. What the search saw is biased upwards: it picked the luckiest of many points.
"""

from search_spaces.joint import COST, joint
from studies import Search, Study, main

study = Study(
    name="hyperparameters",
    question="Is there a better recipe of pre-training than the base?",
    arms={"base": {}},
    contrasts=(),
    metric="test/knn_accuracy",
    margin=0.01,
    search=Search(space=joint, cost_axes=COST),
)

if __name__ == "__main__":
    main(study)
