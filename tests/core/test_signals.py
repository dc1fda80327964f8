"""A run that is asked to stop does so in time, and can go on."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from paradigms.core.signals import EXIT_STATUS, StopRequest


@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_a_request(which):
    before = signal.getsignal(which)
    with StopRequest() as stop:
        assert not stop and stop.received is None
        os.kill(os.getpid(), which)
        assert stop and stop.received == which.name
        os.kill(os.getpid(), signal.SIGTERM)  # once more changes nothing
        assert stop.received == which.name
    assert signal.getsignal(which) is before


def test_a_second_interrupt_is_one():
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.received == "SIGINT"


def test_other_threads_are_left_alone():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def enter():
        with StopRequest():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [before]


BUSY = """
import os, signal, time
from paradigms.core.signals import StopRequest
with StopRequest(grace=0.2):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)  # as in the compiler, where nobody looks at the request
"""


def test_who_cannot_stop_is_ended_in_time():
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", BUSY], capture_output=True, text=True)
    assert time.perf_counter() - begin < 30
    assert done.returncode == EXIT_STATUS == 75
    assert done.stderr == (
        "stopped by SIGTERM before it could save: the same command goes on from the last "
        "checkpoint\n"
    )
