"""What attributes does a hidden state hold, compared with a probe?

After section 4.2 of the paper: a subject's state in the place of the subject in a verbalised relation. Reported beside
what the paper lacks: one (ℓ, ℓ*) chosen on held-out subjects next to the best of many, the same best-of with shuffled
states, every control of rule 16, the rank of the object among the relation's objects, a probe with its ceiling on the
same folds.
"""

from patchscopes.studies.attribute_extraction.study import run

__all__ = ["run"]
