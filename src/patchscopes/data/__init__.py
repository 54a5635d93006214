"""Data sets: files, the project's own and others', as typed items, with what was left out and the hash of the files.

`load_relations` reads facts, `load_entities` names, `load_prose` paragraphs of text; `compositions` joins facts to
two-hop queries. The forms that are read, and what is left out, is in docs/data.md.
Nothing here imports torch.
"""

from patchscopes.data.compositions import Composition, Query, compositions
from patchscopes.data.entities import load_entities
from patchscopes.data.items import DataSet, Entity, Exclusion, Fact, Relation
from patchscopes.data.prose import Passage, load_prose, split_sections
from patchscopes.data.relations import load_relations

__all__ = [
    "Composition",
    "DataSet",
    "Entity",
    "Exclusion",
    "Fact",
    "Passage",
    "Query",
    "Relation",
    "compositions",
    "load_entities",
    "load_prose",
    "load_relations",
    "split_sections",
]
