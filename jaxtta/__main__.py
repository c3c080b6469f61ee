"""`python -m jaxtta` and the command `jaxtta`: signals are heard from here on, before anything heavy is imported."""

import atexit
import os
import signal
import sys
import threading
import time
from typing import NoReturn

UNSAID = 120  # status where all went well but for the output, as Python has it
GRACE = 3.0  # seconds in which the main thread hears a signal, unless it compiles


def main() -> NoReturn:
    """Runs the command line to its exit, and ends at once on Ctrl-C and SIGTERM where no run has a state to save first.

    That can be at any moment: what a run has written is whole, see `jaxtta.written`. Nothing is unwound: an exception
    in the midst of an import or of a destructor would be lost, or end in a crash.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) not in (signal.SIG_IGN, None):
            signal.signal(number, _stopped)
    heard, told = os.pipe()
    os.set_blocking(told, False)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(heard,), daemon=True).start()
    from jaxtta import cli

    try:
        status = cli.main()
    except SystemExit as end:
        status = end.code
    if not status:  # what is left of a failed save, or of a run that was stopped, has nothing to say any more
        atexit._run_exitfuncs()
    _end(status)


def _stopped(number: int, _) -> None:
    if number == signal.SIGINT:
        os.write(2, b"jaxtta: interrupted; go on with --resume where the command has it\n")
    _end(128 + number)


def _watch(heard: int) -> None:
    """Ends the process on a signal that the main thread does not come to hear, unless a run is to save its state; a
    second signal ends that too."""
    for count in range(2**31):
        number = os.read(heard, 1)[0]
        time.sleep(GRACE)
        run = getattr(sys.modules.get("jaxtta.runs.folder"), "RunFolder", None)
        if number in (signal.SIGINT, signal.SIGTERM) and (count or run is None or not run.saving):
            _stopped(number, None)


def _end(status: int) -> NoReturn:
    """Ends the process without the threads, destructors and libraries that have something to do yet, in which Python
    would hear no signal any more."""
    try:
        sys.stdout.flush()
    except Exception:
        status = status or UNSAID
    os._exit(status or 0)


if __name__ == "__main__":
    main()
