"""Does training in bf16 cost accuracy?

Source   bf16 halves what encoder and head move through memory, and tensor cores are made for it. Its 8 bits of
         precision may blur small gradients. Weights, optimiser, losses and probes stay fp32 with it: the factors of
         the linear layers' products are rounded (jbot.trainer.model.bf16_linear).
Design   Arms differ in train.precision alone.
Command  python studies/precision.py                               some five minutes on two cores (12 x 52 s)
         python studies/precision.py --preset laptop --null        fp32 against itself too
Read     Equivalent means that bf16 changes nothing that matters (margin 0.01). How much faster it is depends on the
         CPU: see docs/performance.md.
"""

from studies import Contrast, Study, main

study = Study(
    name="precision",
    question="Does pre-training in bf16 change the accuracy of the embedding?",
    arms={precision: {"train.precision": precision} for precision in ("fp32", "bf16")},
    contrasts=(Contrast(treatment="bf16", control="fp32", primary=True),),
    metric="test/knn_accuracy",
    margin=0.01,
)

if __name__ == "__main__":
    main(study)
