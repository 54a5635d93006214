"""Made-up data for the tests of patchscopes.data: a small relation and an entity, and how to write them to files."""

import json
from pathlib import Path
from typing import Any

Json = Any

HEADER = ("", "sample_id", "prompt_target", "position_target", "object", "subject", "prompt_source", "position_source")


def sample(subject: str, answer: str, **more: Json) -> dict[str, Json]:
    return {"subject": subject, "object": answer, **more}


def relation(*samples: dict[str, Json], **more: Json) -> dict[str, Json]:
    """A relation in the project's own form, without carrier and contexts."""
    return {"name": "moon planet", "prompt_templates": ["The planet of {}"], "samples": list(samples), **more}


def entity(name: str = "Grace Paley Bridge", **more: Json) -> dict[str, Json]:
    base = {
        "name": name,
        "type": "work",
        "tier": 2,
        "description": "Bridge over a made-up river.",
        "keywords": ["made-up river", "seven arches"],
    }
    return {**base, **more}


def write(path: Path, value: Json) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return path


def write_table(path: Path, *rows: tuple[str, str, str, str], header: tuple[str, ...] = HEADER) -> Path:
    """Rows of subject, object, target and source, in the columns of the paper's code."""
    lines = ["\t".join(header)]
    for number, (subject, answer, target, source) in enumerate(rows):
        cells = {"subject": subject, "object": answer, "prompt_target": target, "prompt_source": source}
        cells |= {"": str(number), "sample_id": str(number), "position_target": "-1", "position_source": "3"}
        lines.append("\t".join(_cell(cells[column]) for column in header))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _cell(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if set(text) & set('"\n\t') else text
