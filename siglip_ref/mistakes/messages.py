"""Ids that reports print and that are no mistakes: what each of them means."""

WORDS = {
    "unknown": """what it looks like

No mistake of the catalogue explains the numbers. The finding says what was measured: where the deviation begins, which
factor or which terms it is made of, which settings nearly fit. Look at the first tensor that deviates, at its smallest
probe; report.save_case("case") writes that probe and a program that shows the fault.""",
    "conversion": """weights converted wrongly

An engine was given a probe's weights through its own converter. With these weights changed as the finding says, the
reference computes the stage that the engine computed, on the engine's own input: a kernel transposed, the rows of the
patch kernel in another order, queries and values exchanged, a bias lost. Mend it in the converter.""",
    "convention": """another convention

Everything is right under another legal convention than the declared one: a scale that is given itself, rows that are
normalised inside, gradients that are summed instead of averaged, another resize. The finding names the argument that
declares it. If it is not what you meant, it is a mistake all the same.""",
    "derived": """worked out

No mistake of the catalogue has this name. What the loss computes was worked out by experiments: a formula that gave the
loss and all its gradients at inputs which no experiment had used. The finding is one thing in which that formula is not
SigLIP's, and what to change. How the report knows: the documentation's page of that name.""",
}
