"""What holds for all tests."""

from hypothesis import settings

# No test asserts a time: a busy machine is no fault.  And whether a change passes is not left to
# chance: what is drawn follows from the test.  `pytest --hypothesis-profile=new` draws anew.
settings.register_profile("new", deadline=None, print_blob=True)
settings.register_profile("same", settings.get_profile("new"), derandomize=True)
settings.load_profile("same")
