"""What do the discrepancies of the released code cost?

Source   Run by hand, the code released with arXiv:2601.11719 does not do what the paper says in three places: smearing
         moves padding, splitting loses the pT it splits off, attention sees padded slots.
Design   `text` is the paper's text, the default everywhere here. The other arms put the code's variants in its place:
         each alone, all (`code`), and smearing with padding: alone it does nothing, as nobody sees the slots it moves.
Command  python studies/text_vs_code.py                            some thirteen minutes on two cores (30 x 52 s)
         python studies/text_vs_code.py --preset gpu               on one GPU (not timed yet)
         python studies/text_vs_code.py --address auto --preset paper --data jetnet
Read     The verdict on code - text; each alone is exploratory. Those that cannot be arms: docs/studies/text_vs_code.md.
"""

from studies import SMALL, Contrast, Study, main

SMEAR = {"augment.smear_variant": "reference"}
SPLIT = {"augment.split_variant": "reference"}
PADDING = {"model.padding": "reference"}
SLIPS = {"smear": SMEAR, "split": SPLIT, "padding": PADDING, "smear_padding": SMEAR | PADDING}

study = Study(
    name="text_vs_code",
    question="What do the discrepancies of the released code cost, each alone and all together?",
    arms={"text": {}, **SLIPS, "code": SMEAR | SPLIT | PADDING},
    contrasts=(
        Contrast(treatment="code", control="text", primary=True),
        *(Contrast(treatment=slip, control="text") for slip in SLIPS),
    ),
    metric="test/knn_accuracy",
    margin=0.01,
    arms_by_preset=dict.fromkeys(SMALL, ("text", "split", "padding", "smear_padding", "code")),
)

if __name__ == "__main__":
    main(study)
