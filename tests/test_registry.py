import pytest

from spectral_mlops.errors import InputError, SpectralError, UnknownNameError
from spectral_mlops.registry import Registry, nearest, spell


@pytest.fixture
def models() -> Registry[str, object]:
    registry: Registry[str, object] = Registry("model")
    registry.register("mlp")(1)
    registry.register("transformer", "attention")(2)
    return registry


def test_what_is_decorated_comes_back_unchanged_and_is_found():
    registry: Registry[str, object] = Registry("model")

    @registry.register("plain", "other")
    def build() -> int:
        return 3

    assert build() == 3
    assert registry.get("plain") is registry.get("other") is build


def test_keys_in_the_order_they_came(models):
    assert list(models) == ["mlp", "transformer", "attention"]
    assert "mlp" in models
    assert "cnn" not in models


def test_an_unknown_key_is_answered_with_the_keys_there_are(models):
    with pytest.raises(UnknownNameError) as caught:
        models.get("transfomer")
    assert str(caught.value) == (
        "Unknown model 'transfomer': choose one of mlp, transformer, attention. "
        "Did you mean 'transformer'?"
    )
    assert isinstance(caught.value, LookupError)
    with pytest.raises(UnknownNameError, match=r"attention\.$"):
        models.get("zzz")


def test_an_empty_registry_says_so():
    with pytest.raises(UnknownNameError, match=r"one of \(none registered\)"):
        Registry("cohort").get("x")


def test_a_key_that_is_taken_is_refused_and_nothing_is_filed(models):
    with pytest.raises(InputError, match=r"model 'mlp' is registered.*mlp, transf"):
        models.register("new", "mlp")
    assert "new" not in models
    assert models.get("mlp") == 1


def test_types_are_keys_by_identity_and_spelt_by_name():
    registry: Registry[type, str] = Registry("row rule")
    registry.register(int)("whole")
    assert registry.get(int) == "whole"
    assert bool not in registry  # a subclass is another type
    with pytest.raises(UnknownNameError, match="row rule 'bool': choose one of int"):
        registry.get(bool)
    with pytest.raises(InputError, match="row rule 'int' is registered"):
        registry.register(int)


def test_registries_share_nothing():
    first: Registry[str, int] = Registry("a")
    first.register("x")(1)
    assert "x" not in Registry("b")


def test_spelling_and_the_nearest_name():
    assert (spell(int), spell("int"), spell(3)) == ("int", "int", "3")
    assert nearest("epoch", ["epochs", "folds"]) == " Did you mean 'epochs'?"
    assert nearest("zzz", ["epochs", "folds"]) == ""
    assert nearest("epoch", []) == ""


def test_errors_are_of_the_kind_python_users_catch():
    assert issubclass(InputError, ValueError)
    assert issubclass(InputError, SpectralError)
