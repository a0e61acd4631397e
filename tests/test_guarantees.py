"""Guarantees: values that cannot claim what is not there."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_dp.errors import ArgumentError
from beam_dp.guarantees import CentralGuarantee, Guarantee, LocalGuarantee, MetricGuarantee, guarantee_fields

OWN: dict[type[Guarantee], dict[str, str]] = {
    MetricGuarantee: {"metric": "euclidean", "index_digest": "ab" * 32},
    LocalGuarantee: {"privacy_unit": "user"},
    CentralGuarantee: {"privacy_unit": "user"},
}


@pytest.mark.parametrize("model", OWN)
def test_guarantees_are_values(model: type[Guarantee]) -> None:
    one = model(basis="proved", epsilon=2, delta=1e-9, **OWN[model])
    assert one == model(basis="proved", epsilon=2.0, delta=1e-9, **OWN[model])
    assert one != model(basis="proved", epsilon=2.5, delta=1e-9, **OWN[model])
    assert one == pickle.loads(pickle.dumps(one)) == copy.deepcopy(one)
    assert hash(one) == hash(model(basis="proved", epsilon=2.0, delta=1e-9, **OWN[model]))
    assert type(one.epsilon) is float
    assert f"{model.__name__}(epsilon=2.0" in repr(one)
    with pytest.raises(AttributeError):
        one.epsilon = 3.0  # type: ignore[misc]


def test_models_are_never_equal() -> None:
    assert LocalGuarantee(basis="proved", epsilon=1.0, privacy_unit="user") != CentralGuarantee(
        basis="proved", epsilon=1.0, privacy_unit="user"
    )
    assert [model.model for model in OWN] == ["metric", "local", "central"]


@pytest.mark.parametrize("model", OWN)
@pytest.mark.parametrize(
    ("claim", "named"),
    [
        ({"epsilon": 0}, "epsilon"),
        ({"epsilon": -1.0}, "epsilon"),
        ({"epsilon": math.nan}, "epsilon"),
        ({"epsilon": math.inf}, "epsilon"),
        ({"epsilon": "1"}, "epsilon"),
        ({"epsilon": True}, "epsilon"),
        ({"epsilon": 1.0, "delta": 1.0}, "delta"),
        ({"epsilon": 1.0, "delta": -1e-9}, "delta"),
        ({"epsilon": 1.0, "delta": math.nan}, "delta"),
        ({"epsilon": 1.0, "delta": None}, "delta"),
        ({"epsilon": 1.0, "delta": True}, "delta"),
        ({"epsilon": 1.0, "basis": "estimated"}, "basis"),
        ({"epsilon": 1.0, "basis": "none"}, "basis none"),
        ({"epsilon": 1.0, "reason": "why"}, "reason"),
        ({"epsilon": None}, "reason must say why"),
        ({"epsilon": None, "basis": "proved", "reason": "why"}, "basis must be none"),
        ({"epsilon": None, "basis": "none"}, "reason must say why"),
        ({"epsilon": None, "basis": "none", "reason": ""}, "reason must say why"),
    ],
)
def test_claims_that_cannot_be_right_are_refused(model: type[Guarantee], claim: dict[str, Any], named: str) -> None:
    with pytest.raises(ArgumentError, match=named):
        model(**{"basis": "proved", **claim}, **OWN[model])


def test_sentences() -> None:
    own = OWN[MetricGuarantee]
    proved = MetricGuarantee(basis="proved", epsilon=12, **own)
    assert proved.sentence() == "metric epsilon 12 (proved) per word and unit of euclidean distance"
    computed = MetricGuarantee(epsilon=0.5, delta=1.3e-13, basis="computed", **own)
    assert computed.sentence() == "metric epsilon 0.5, delta 1.3e-13 (computed) per word and unit of euclidean distance"
    nothing = MetricGuarantee(epsilon=None, basis="none", reason="explicit scale", **own)
    assert nothing.sentence() == "no finite metric guarantee: explicit scale"
    assert CentralGuarantee(basis="proved", epsilon=1, privacy_unit="user").sentence() == "central epsilon 1 (proved)"


@given(epsilon=st.floats(1e-9, 1e9), delta=st.floats(0, 0.999))
def test_fields_hold_the_whole_claim(epsilon: float, delta: float) -> None:
    for model, own in OWN.items():
        guarantee = model(basis="proved", epsilon=epsilon, delta=delta, **own)
        fields = guarantee_fields(guarantee)
        assert fields == {
            "model": model.model,
            "epsilon": epsilon,
            "delta": delta,
            "basis": "proved",
            "reason": None,
            "guarantee": guarantee.sentence(),
            **own,
        }
