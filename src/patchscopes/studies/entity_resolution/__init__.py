"""At which layer does the model resolve an entity?

After section 4.3 of the paper and its follow-ups, with what they lack: a carrier, so that no name is the attention
sink; words that tell the entity from its kind and from a misleading part of its name; every control of rule 16; a
resolution layer with censoring (rule 23); and figures only from entities that chose nothing.
"""

from patchscopes.studies.entity_resolution.study import run

__all__ = ["run"]
