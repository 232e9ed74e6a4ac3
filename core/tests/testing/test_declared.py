"""A test of the kit is passed or declared, never quietly replaced."""

import pytest

from st.testing.declared import Conformance, not_applicable


class Kit(Conformance):
    """Stands for a conformance class."""

    def test_claim(self) -> None:
        raise AssertionError("not kept")


del Conformance  # Only subclasses are collected.
Kit.__test__ = False  # type: ignore[attr-defined]


def test_replacing_a_test_is_refused() -> None:
    with pytest.raises(TypeError, match="replaces a test of the kit"):

        class Quiet(Kit):
            def test_claim(self) -> None:
                pass


def test_declaring_a_test_that_does_not_exist_is_refused() -> None:
    with pytest.raises(TypeError, match="no such test"):

        class Misspelt(Kit):
            test_clam = not_applicable("a reason")


def test_a_declaration_needs_a_reason() -> None:
    with pytest.raises(TypeError, match="reason"):
        not_applicable(" ")


def test_a_declared_test_is_skipped_with_its_reason() -> None:
    class Declared(Kit):
        test_claim = not_applicable("it has no wheels")

    with pytest.raises(pytest.skip.Exception, match="it has no wheels"):
        Declared().test_claim()

    assert Declared.declared == {"test_claim": "it has no wheels"}


def test_subclasses_inherit_declarations_and_may_add_tests() -> None:
    class Declared(Kit):
        test_claim = not_applicable("it has no wheels")

    class More(Declared):
        def test_of_its_own(self) -> None:
            pass

    assert More.declared == {"test_claim": "it has no wheels"}
