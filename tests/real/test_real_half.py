"""The registry models off float32: they load where their activations fit, and say so where they do not (rule 9)."""

import pytest

import patchscopes as ps
from patchscopes.selfcheck import check_model

pytestmark = pytest.mark.real


@pytest.mark.parametrize(
    ("name", "dtype"), [("smollm2-135m", "bfloat16"), ("gemma3-270m", "bfloat16"), ("smollm2-135m", "float16")]
)
def test_real_models_load_in_half_precision(name: str, dtype: str) -> None:
    """As loading checks them, by what the model's own ways differ by; `models check` takes all layers."""
    from patchscopes.models import LoadOptions, load_by_name
    from patchscopes.settings import Settings

    report = check_model(load_by_name(name, LoadOptions(dtype=dtype), Settings.from_env()), thorough=False)
    assert report.passed, report
    found = report.yardstick
    assert found is not None
    assert found.apart == ()
    assert found.n_tokens == 256
    assert 0.5 < found.ratio < 1.2
    rounding = {"bfloat16": 2**-8, "float16": 2**-11}[dtype]
    assert 3 < found.theirs.median / rounding < 30


def test_activations_that_float16_cannot_hold_are_refused_at_load() -> None:
    with pytest.raises(ps.PatchscopesError, match=r"gemma3-270m does not run in float16: .*not finite.*65,504"):
        ps.load("gemma3-270m", dtype="float16")
