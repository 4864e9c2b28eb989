"""What holds for all tests."""

from collections.abc import Iterator

import pytest
from hypothesis import settings

from raggedstore import kernel

# No test asserts a time: a busy machine is no fault.  And whether a change passes is not left to
# chance: what is drawn follows from the test.  `pytest --hypothesis-profile=new` draws anew.
settings.register_profile("new", deadline=None, print_blob=True)
settings.register_profile("same", settings.get_profile("new"), derandomize=True)
settings.load_profile("same")


@pytest.fixture(scope="module", params=["compiled", "NumPy"])
def either_kernel(request: pytest.FixtureRequest) -> Iterator[None]:
    """Once with the compiled kernel, where there is one, and once without."""
    if request.param == "compiled" and not kernel.is_there():
        pytest.skip("the kernel is not compiled here")
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "NumPy":
            patch.setattr(kernel, "_compiled", None)
        yield
