"""A source with a split of its own: pieces, each tokenised by itself, joined behind one BOS."""

import json
from pathlib import Path

import pytest

import patchscopes as ps
from conftest import tiny_model
from odd_tokenizers import model_with
from patchscopes import errors
from patchscopes.models import Model
from patchscopes.prompts import find_prompt, resolve_positions, tokenize, tokenize_pieces
from patchscopes.prompts.tokens import verify_spans
from patchscopes.resolve import resolve
from patchscopes.sources import read_sources_file
from patchscopes.spec import Source, State, Sweep

TEXT = "the cat of Spain is"
PIECES = ("the cat of Sp", "ain is")
PROMPT = find_prompt("the capital of {} is")
KINDS = ("byte-level", "with BOS", "trimmed", "llama-2", "gemma", "metaspace")


def model_of(kind: str) -> Model:
    if kind in ("byte-level", "with BOS"):
        return tiny_model("llama", add_bos=kind == "with BOS")
    return model_with(kind)


def ids_at(model: Model, source: Source) -> tuple[tuple[int, ...], int]:
    """What the first cell of a source reads: ids and position."""
    requests = resolve(model, Sweep((source,), (PROMPT,), (1,))).requests
    assert requests[0].cell is not None
    assert requests[0].cell.write is not None
    state = requests[0].cell.write.vectors[0]
    assert isinstance(state, State)
    return state.ids, state.position


@pytest.mark.parametrize("kind", KINDS)
def test_the_ids_are_those_of_the_pieces(kind: str) -> None:
    model = model_of(kind)
    found = tokenize_pieces(model, PIECES)
    plain, head = tokenize(model, TEXT), tokenize(model, PIECES[0])
    assert found.text == TEXT
    assert found.ids[: len(head)] == head.ids
    assert found.ids != plain.ids
    bos = model.tokenizer.bos_token_id
    assert found.ids.count(bos) == plain.ids.count(bos) == (1 if kind == "with BOS" else 0)
    names = [str(name) for name in model.tokenizer.convert_ids_to_tokens(found.ids[len(head) :])]
    if kind == "byte-level":
        assert found.ids[len(head) :] == tokenize(model, PIECES[1]).ids
    assert "".join(names).replace("▁", " ").replace("Ġ", " ") == PIECES[1], "no space before the piece"
    verify_spans(model, found)


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_ends_where_a_piece_does_and_phrases_are_found(kind: str) -> None:
    model = model_of(kind)
    plain, found = tokenize(model, TEXT), tokenize_pieces(model, PIECES)
    cut = len(PIECES[0])
    assert cut in {end for _, end in found.spans}
    assert cut not in {end for _, end in plain.spans}, "else the split would not be another one"
    (before,) = resolve_positions(model, found, "Sp")
    (last,) = resolve_positions(model, found, "Spain")
    assert found.spans[before][1] == cut
    assert found.spans[last][1] == cut + len("ain")
    covering = resolve_positions(model, found, "span:Spain")
    assert covering == tuple(range(covering[0], last + 1))
    assert before in covering[:-1]
    with pytest.raises(errors.PositionError, match="inside a token"):
        resolve_positions(model, plain, "Sp")


def test_pieces_that_end_with_spaces_and_signs_of_many_bytes() -> None:
    for kind in KINDS:
        model = model_of(kind)
        found = tokenize_pieces(model, ("the ", "cat", " of é", "😀"))
        assert found.text == "the cat of é😀"
        assert found.spans[-1][1] == len(found.text)
        assert resolve_positions(model, found, "cat") == (
            next(i for i, span in enumerate(found.spans) if span[1] == 7 and span[0] < 7),
        )


def test_a_split_is_another_cell_and_the_same_split_the_same(llama: Model) -> None:
    plain, split = Source(TEXT, at="Spain"), Source(TEXT, at="Spain", split=PIECES)
    assert ids_at(llama, plain) != ids_at(llama, split)
    results = ps.inspect(llama, [plain, split, split], prompt=PROMPT, source_layers=(0, 2))
    cells = [row.cell for row in results]
    assert cells[2:4] == cells[4:6]
    assert not set(cells[:2]) & set(cells[2:4])
    assert {row.source for row in results if row.control is None} == {TEXT}
    assert ids_at(llama, Source(TEXT, at="Spain", split=("the cat", " of Spain is"))) == ids_at(llama, plain)


def test_the_engine_and_the_reference_read_the_same() -> None:
    for family in ("llama", "bloom", "gpt2"):
        model = tiny_model(family)
        sources = [Source(TEXT, at="Spain", split=PIECES), Source(TEXT, at="last", split=tuple(TEXT)), Source(TEXT)]
        runs = [
            ps.inspect(
                model, sources, prompt=PROMPT, source_layers="all", target_layers=(1,), runner=runner, max_new_tokens=5
            )
            for runner in ("engine", "reference")
        ]
        assert [row.token_ids for row in runs[0]] == [row.token_ids for row in runs[1]]
        assert len({row.token_ids for row in runs[0]}) > 3


@pytest.mark.parametrize(
    ("split", "said"),
    [
        (("the cat of Sp", "", "ain is"), "a piece of its split is empty"),
        (("the cat of Sp", "ain"), "not its text"),
        (("the cat of", "Spain is"), "spaces included"),
    ],
)
def test_pieces_that_do_not_make_the_text(llama: Model, split: tuple[str, ...], said: str) -> None:
    bad = Source(TEXT, split=split)
    with pytest.raises(errors.SourceError, match=said):
        ps.inspect(llama, [bad], prompt=PROMPT, source_layers=1)
    rows = list(ps.inspect(llama, [bad, Source(TEXT)], prompt=PROMPT, source_layers=1, controls=()))
    assert [row.status for row in rows] == ["failed", "ok"]
    assert said in (rows[0].reason or "")


def test_a_split_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "sources.jsonl"
    file.write_text(json.dumps({"text": TEXT, "split": PIECES}))
    assert read_sources_file(str(file)) == [Source(TEXT, split=PIECES)]
    for bad in ("the cat", [1]):
        file.write_text(json.dumps({"text": TEXT, "split": bad}))
        with pytest.raises(errors.SourceError, match='"split" must be a list'):
            read_sources_file(str(file))
