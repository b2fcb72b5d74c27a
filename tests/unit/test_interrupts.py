"""Signals that are counted, and waits that they cannot break."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from ice_notebook.host.interrupts import Listeners, held, stopped


def send(number: int = signal.SIGINT) -> None:
    """Send this process a signal, whose handler has run when this returns."""
    os.kill(os.getpid(), number)


def test_a_signal_is_only_counted_and_wakes_who_waits():
    with held(signal.SIGINT, signal.SIGTERM) as interrupts:
        send()
        send(signal.SIGTERM)
        assert interrupts.arrived == [signal.SIGINT, signal.SIGTERM]
        assert [interrupts.wait(), interrupts.wait(), interrupts.wait(0)] == [signal.SIGINT, signal.SIGTERM, 0]
        interrupts.wake()
        assert interrupts.wait() == 0


def test_a_signal_that_comes_just_before_a_wait_ends_it():
    def interrupt():
        os.kill(os.getpid(), signal.SIGINT)

    with held(signal.SIGINT) as interrupts:
        for _ in range(200):
            thread = threading.Thread(target=interrupt)
            thread.start()
            assert interrupts.wait(60) == signal.SIGINT
            thread.join()


def test_what_signals_did_before_they_do_again():
    with held(signal.SIGINT, signal.SIGTERM):
        pass
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    with pytest.raises(KeyboardInterrupt):
        send()


def test_a_descriptor_that_was_woken_before_and_is_closed_meanwhile_is_let_go():
    reader, writer = os.pipe2(os.O_NONBLOCK)
    before = signal.set_wakeup_fd(writer)
    with held(signal.SIGINT):
        os.close(writer)
    assert signal.set_wakeup_fd(before) == -1
    os.close(reader)


def test_a_signal_that_is_ignored_or_has_a_handler_of_the_users_stays_so(monkeypatch):
    heard = []
    before = signal.signal(signal.SIGINT, lambda *_: heard.append(1)), signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with held(signal.SIGINT, signal.SIGHUP) as interrupts:
            send()
            send(signal.SIGHUP)
        assert (heard, interrupts.arrived) == ([1], [])
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGHUP, before[1])


def test_the_users_own_code_is_interrupted_as_anywhere():
    with held(signal.SIGINT) as interrupts:
        with pytest.raises(KeyboardInterrupt), interrupts.let_through():
            send()
        send()  # counted again
        with pytest.raises(KeyboardInterrupt, match="the launch was interrupted"), interrupts.let_through():
            pytest.fail("it came before the code began")


def test_a_check_raises_what_nobody_has_waited_for():
    with held(signal.SIGINT) as interrupts:
        interrupts.wake()
        interrupts.check()
        send()
        with pytest.raises(KeyboardInterrupt) as raised:
            interrupts.check()
        assert raised.value._render_traceback_() == ["KeyboardInterrupt: the launch was interrupted"]
        interrupts.check()


def test_in_another_thread_no_signal_is_taken():
    def hold():
        with held(signal.SIGINT) as interrupts:
            taken.append(interrupts.wait(0))

    taken = []
    thread = threading.Thread(target=hold)
    thread.start()
    thread.join()
    assert taken == [0]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_wait_ends_when_its_condition_holds_or_its_time_is_over():
    listeners, facts = Listeners(), []
    thread = threading.Thread(target=lambda: (facts.append(1), listeners.tell()))
    thread.start()
    assert listeners.wait_for(lambda: bool(facts))
    thread.join()
    assert not listeners.wait_for(lambda: False, 0.01)
    assert listeners._told == []


def test_a_wait_that_is_interrupted_leaves_nothing_locked():
    listeners = Listeners()

    def interrupt_once_it_waits():
        while not listeners._told:
            pass
        os.kill(os.getpid(), signal.SIGINT)

    for _ in range(50):
        thread = threading.Thread(target=interrupt_once_it_waits)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            listeners.wait_for(lambda: False, 1)  # Python may see a signal that comes just before it waits when it goes on
        thread.join()
        listeners.tell()  # nobody holds a lock that it needs
    assert listeners._told == []


def test_an_error_that_says_how_it_is_drawn():
    assert stopped("the run was stopped")._render_traceback_() == ["KeyboardInterrupt: the run was stopped"]
