"""Is a model's state, through a linear map, of use to a model of another family?

After section 4.4 of the paper: maps between layers of two models, fitted on text, and what the target model then says.
Reported beside what the paper lacks: the map's bias alone, other states through the same map, one placement chosen on
items that are not scored next to the best of many, and what the target makes of the text itself.
"""

from patchscopes.studies.cross_model.study import run, usual_target

__all__ = ["run", "usual_target"]
