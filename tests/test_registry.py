import pickle

import pytest

from wanlab import registry
from wanlab.errors import UsageError, WanlabError


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    monkeypatch.setattr(registry, "_known", {})


def test_registered_is_found():
    item = registry.register("solver", "unipc")(object())
    assert registry.lookup("solver", "unipc") is item
    registry.register("solver", "unipc")(item)  # a module imported twice under one name is no conflict
    assert registry.names("solver") == ["unipc"]


def test_unknown_name_answers_with_the_nearest():
    registry.register("policy", "cfg")(object())
    registry.register("policy", "half")(object())
    with pytest.raises(UsageError) as caught:
        registry.lookup("policy", "hlaf")
    assert caught.value.hint == "did you mean half?"
    with pytest.raises(UsageError, match="choose from cfg, half"):
        registry.lookup("policy", "zzzzzz")
    with pytest.raises(UsageError):
        registry.lookup("nothing", "cfg")


def test_two_objects_of_one_name_are_a_programming_error():
    registry.register("policy", "cfg")(object())
    with pytest.raises(ValueError, match="twice"):
        registry.register("policy", "cfg")(object())


def test_errors_carry_exit_codes_and_survive_pickling():
    assert (WanlabError("a").exit_code, UsageError("a").exit_code) == (1, 2)
    back = pickle.loads(pickle.dumps(UsageError("what", "do this")))
    assert type(back) is UsageError and (back.message, back.hint) == ("what", "do this")
    assert str(back) == "what; do this"
