"""Words for methods: every option of every method reaches it from text, and what is no option or value is refused."""

import inspect

import optax
import pytest
from toys import toy

from jaxtta.core import InputError, everything
from jaxtta.methods import METHODS
from jaxtta.runs.options import method_of, method_options

# By the type of a keyword's default: a text that is not it, and what that means.
OTHER = {float: ("0.25", 0.25), int: ("3", 3), bool: ("true", True), str: ("rotation", "rotation")}


@pytest.mark.parametrize("name", METHODS)
def test_every_option_reaches_the_method(name):
    model, task, _, _ = toy()
    signature, given = inspect.signature(METHODS[name]), {}

    def recording(model, task, **keywords):
        given.update(keywords)
        return METHODS[name](model, task)

    recording.__signature__ = signature
    plain = {key: OTHER[type(signature.parameters[key].default)] for key in method_options(name) if is_plain(name, key)}
    words = {key: text for key, (text, _) in plain.items()}
    learns = "optimiser" in signature.parameters
    words |= {"optimiser": "sgd", "learning_rate": "0.01", "predict": "before"} if learns else {}
    words |= {"select": "everything"} if "select" in signature.parameters else {}
    assert set(words) == set(method_options(name))
    method_of(name, words, registry={name: recording})(model, task)
    assert {key: given[key] for key in plain} == {key: value for key, (_, value) in plain.items()}
    assert isinstance(given["optimiser"], optax.GradientTransformation) if learns else "optimiser" not in given
    assert given.get("select", everything) is everything


def is_plain(name, key):
    """Whether an option is a number, a truth or a word that the method is given as it is."""
    parameters = inspect.signature(METHODS[name]).parameters
    return key in parameters and key not in ("optimiser", "select")


@pytest.mark.parametrize("name", METHODS)
def test_what_is_no_option_is_refused_with_those_there_are(name):
    with pytest.raises(InputError, match=f"{name} has no option colour; its options are ") as error:
        method_of(name, {"colour": "red"})
    assert all(key in str(error.value) for key in method_options(name))
