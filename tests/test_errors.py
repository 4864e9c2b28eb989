"""Every error can be caught as ours and as the builtin that people would catch."""

import pytest

from raggedstore import errors


@pytest.mark.parametrize("name", sorted(set(errors.__all__) - {"RaggedStoreError"}))
def test_every_error_is_ours_and_a_builtin(name: str) -> None:
    error = getattr(errors, name)
    builtin = (ValueError, TypeError, IndexError, LookupError, KeyError, OSError, ImportError)

    assert issubclass(error, errors.RaggedStoreError)
    assert issubclass(error, builtin)
    assert str(error("what was wrong")) == "what was wrong"
    assert error.__doc__
