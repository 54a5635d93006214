"""What will the model say next, read from one hidden state: token identity, or a lens?

After section 4.1 of the paper. Reported beside what the paper lacks: a tuned lens that is trained as such, prompts of
random words and of 1 to 10 pairs, every control of rule 16 (for lenses through the same map), intervals over passages,
and no layer that was chosen on what it is reported for.
"""

from patchscopes.studies.next_token.study import run

__all__ = ["run"]
