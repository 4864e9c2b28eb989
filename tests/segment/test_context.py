"""What readers share: threads, and each thread's part of them."""

import threading

import numpy as np

from raggedstore.segment.context import ReadContext, sharing


def test_threads_that_read_beside_others_have_their_share_of_the_cores() -> None:
    context = ReadContext(1000)
    context._cores = 5

    assert context.threads == 5 and context.pool is not None
    with sharing(2):
        assert context.threads == 2 and context.pool is not None
        with sharing(5):
            assert context.threads == 1 and context.pool is None
        assert context.threads == 2
        elsewhere = []
        other = threading.Thread(target=lambda: elsewhere.append(context.threads))
        other.start()
        other.join()
        assert elsewhere == [5]  # it is this thread that shares, and no other
    assert context.threads == 5


def test_scratch_memory_is_a_threads_own_and_used_again() -> None:
    context = ReadContext(1000)
    mine = context.scratch("stored", 100)
    mine[:] = 1
    others: list[np.ndarray] = []
    thread = threading.Thread(target=lambda: others.append(context.scratch("stored", 100)))
    thread.start()
    thread.join()
    others[0][:] = 2

    assert (mine == 1).all()
    assert np.shares_memory(context.scratch("stored", 50), mine)
    assert not np.shares_memory(context.scratch("decoded", 50), mine)
