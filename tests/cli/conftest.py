"""What the tests of the commands share."""

import pytest

from raggedstore.cli import main


@pytest.fixture
def run(capsys):
    """Run the command in this process: its exit status, what it printed, and its complaints."""

    def call(*arguments):
        status = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return status, out, err

    return call
