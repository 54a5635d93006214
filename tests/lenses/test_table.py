"""The lens table beside plain passes: layer n_layers is the model's own output, the others what their states give."""

import csv
import io
import json

import pytest
import torch

import families
from conftest import tiny_model
from patchscopes.errors import ContextLengthError, LayerError, MappingError, OptionError, SourceError
from patchscopes.hooks import Places, capture
from patchscopes.lenses import LensTable, lens_logits, lens_table
from patchscopes.mappings import Mapping, Mappings, Side, agreeing_positions
from patchscopes.models import Model

TEXT = "the capital of Spain is hello"


def made_up(model: Model) -> Mappings:
    """A lens with a map of its own for every layer."""
    generator = torch.Generator().manual_seed(0)
    d, side = model.d_model, Side.of(model)
    maps = {
        (layer, model.n_layers): Mapping(torch.randn(d, d, generator=generator), torch.randn(d, generator=generator))
        for layer in range(model.n_layers)
    }
    return Mappings("tuned", side, side, maps)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_the_last_layer_is_the_models_own_output(family: str) -> None:
    model = tiny_model(family)
    table = lens_table(model, TEXT, made_up(model), top_k=3)
    logits = model.all_logits(torch.tensor([table.ids]))[0]
    top = torch.log_softmax(logits.double(), -1).topk(3)
    assert table.layers == tuple(range(model.n_layers + 1))
    assert len(table.cells) == len(table.layers) * len(table.ids)
    for position, cell in enumerate(table.of_layer(model.n_layers)):
        assert (cell.layer, cell.position) == (model.n_layers, position)
        assert (cell.kl, cell.rank, cell.agrees) == (0, 1, True)
        assert [one.token_id for one in cell.top] == top.indices[position].tolist()
        assert [one.logprob for one in cell.top] == pytest.approx(top.values[position].tolist(), abs=1e-3)


@pytest.mark.parametrize("family", ["llama", "gemma2", "opt-projected", "granite"])
@pytest.mark.parametrize("kind", ["logit", "tuned"])
def test_a_cell_is_what_its_state_gives_through_the_head(family: str, kind: str) -> None:
    model = tiny_model(family)
    lens = made_up(model) if kind == "tuned" else None
    table = lens_table(model, TEXT, lens, layers=(0, 2), top_k=2)
    ids = torch.tensor([table.ids])
    places = Places((0,) * len(table.ids), tuple(range(len(table.ids))))
    with capture(model, {0: places, 2: places}) as states:
        own = torch.log_softmax(model.all_logits(ids)[0].double(), -1)
    for layer in (0, 2):
        q = torch.log_softmax(lens_logits(model, lens, layer, states[layer]).double(), -1)
        for position, cell in enumerate(table.of_layer(layer)):
            p, here = own[position], q[position]
            assert cell == table[layer, position]
            assert cell.top[0].token_id == int(here.argmax())
            assert cell.top[0].logprob == pytest.approx(float(here.max()), abs=1e-3)
            assert cell.entropy == pytest.approx(float(-(here.exp() * here).sum()), abs=1e-3)
            assert cell.kl == pytest.approx(float((p.exp() * (p - here)).sum()), abs=1e-3)
            assert cell.rank == int((here > here[p.argmax()]).sum()) + 1
            assert cell.agrees == (cell.rank == 1)
    mean = sum(cell.kl for cell in table.of_layer(2)) / len(table.ids)
    assert table.mean_kl(2) == pytest.approx(mean)


def test_long_texts_are_read_in_parts(llama: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = lens_table(llama, TEXT, layers=(1, 4))
    monkeypatch.setattr("patchscopes.lenses.table.ROWS_AT_ONCE", 2)
    parts = lens_table(llama, TEXT, layers=(4, 1))
    assert [(cell.layer, cell.position) for cell in parts.cells] == [(c.layer, c.position) for c in whole.cells]
    for one, other in zip(whole.cells, parts.cells, strict=True):
        assert one.top[0].token_id == other.top[0].token_id
        assert one.kl == pytest.approx(other.kl, abs=1e-4)


@pytest.fixture
def table(llama: Model) -> LensTable:
    """A lens table of five layers."""
    return lens_table(llama, f"{TEXT}\nWales", top_k=2)


def test_a_table_fits_the_width_and_has_the_last_layer_on_top(table: LensTable) -> None:
    for width in (40, 60, 100, 300):
        lines = table.as_text(width).splitlines()
        assert max(map(len, lines)) <= width, width
        heads = [line for line in lines if line.startswith("ℓ")]
        assert (len(heads) == 1) == (width == 300)
        shown = " ".join(heads).split()
        assert [int(word) for word in shown if word.isdigit()] == list(range(len(table.ids))), "each position once"
        column = [line[0] for line in lines if line[:1].isdigit()]
        assert column[:5] == ["4", "3", "2", "1", "0"]
    wide = table.as_text(300)
    assert "logit lens · llama · “the capital of Spain is hello⏎Wales”" in wide
    assert "1 ▁capital" in wide
    top = table[4, 3].top
    assert f"{top[0].token.replace(' ', '▁')} {top[0].logprob:.0f}" not in wide, "a probability, and no logarithm"
    assert wide.count("✓") == sum(cell.agrees for cell in table.cells) + 1
    assert str(table)


def test_even_a_narrow_terminal_shows_every_position(table: LensTable) -> None:
    """One to a block, cropped where it must be."""
    lines = table.as_text(20).splitlines()
    assert sum(line.startswith("─") for line in lines) == len(table.ids)


def test_json_holds_all_of_it_and_where_it_comes_from(llama: Model) -> None:
    lens = made_up(llama)
    document = json.loads(lens_table(llama, TEXT, lens, layers=(1, 4), top_k=2).to_json())
    assert document["schema"] == "patchscopes.lens/1"
    assert document["lens"]["digest"] == lens.digest
    assert document["spec"] == {"layers": [1, 4], "top_k": 2, "bos": "auto", "lens": lens.digest}
    assert document["cautions"] == list(lens_table(llama, TEXT).cautions)
    assert document["model"]["weights"] == llama.fingerprint
    assert document["versions"]["torch"] == torch.__version__
    assert "".join(token["token"] for token in document["tokens"]) == TEXT
    assert len(document["cells"]) == 2 * len(document["tokens"])
    cell = document["cells"][0]
    assert set(cell) == {"layer", "position", "entropy", "kl", "rank", "agrees", "top"}
    assert set(cell["top"][1]) == {"token", "token_id", "logprob"}
    assert json.loads(lens_table(llama, TEXT).to_json())["lens"] is None


def test_csv_has_a_line_for_each_cell(table: LensTable) -> None:
    rows = list(csv.DictReader(io.StringIO(table.to_csv())))
    assert len(rows) == len(table.cells)
    for row, cell in zip(rows, table.cells, strict=True):
        assert (int(row["layer"]), int(row["position"])) == (cell.layer, cell.position)
        assert int(row["id"]) == table.ids[cell.position]
        assert (row["top_2"], float(row["top_2_logprob"])) == (cell.top[1].token, cell.top[1].logprob)


def test_what_cannot_be_read(llama: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("", " \n"):
        with pytest.raises(SourceError, match="the text is empty; give at least one word"):
            lens_table(llama, text)
    with pytest.raises(ContextLengthError, match=r"the text has 300 tokens, beyond the model's context \(128\)"):
        lens_table(llama, " cat" * 300)
    with monkeypatch.context() as patched:
        patched.setattr(llama, "rope_switch", 20)
        with pytest.raises(ContextLengthError, match=r"changes its rotary frequencies \(20\)"):
            lens_table(llama, " cat" * 21)
        assert len(agreeing_positions(llama, llama, " cat" * 300).source) == 20
    for layers, said in (((5,), "layer 5 is out of range: llama has layers 0 "), ((), "no layer was given")):
        with pytest.raises(LayerError, match=said):
            lens_table(llama, TEXT, layers=layers)
    with pytest.raises(OptionError, match="top_k is 0; it must be at least 1 and at most"):
        lens_table(llama, TEXT, top_k=0)
    with pytest.raises(MappingError, match="fitted for the source model mistral with the weights"):
        lens_table(llama, TEXT, made_up(tiny_model("mistral")))
    side = Side.of(llama)
    part = Mappings("affine", side, side, {(1, 4): Mapping(torch.eye(32), torch.zeros(32))})
    table = lens_table(llama, TEXT, part, layers=(1, 4))
    assert table.name == f"affine lens {part.digest[:8]}"
    with pytest.raises(LayerError, match="layer 2 is not in this table; it has 1, 4"):
        table[2, 0]
    with pytest.raises(MappingError, match=r"not fitted for \(ℓ, ℓ\*\) = \(2, 4\); it has ℓ = 1 with ℓ\* = 4"):
        lens_table(llama, TEXT, part, layers=(1, 2))


def test_sinks_are_warned_of(llama: Model) -> None:
    assert "position 0 is an attention sink" in lens_table(llama, TEXT).cautions[0]
    with_bos = lens_table(llama, TEXT, bos="always")
    assert with_bos.cautions == ()
    assert len(with_bos.ids) == len(lens_table(llama, TEXT).ids) + 1
