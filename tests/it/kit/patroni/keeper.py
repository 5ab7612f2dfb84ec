"""Runs a command and takes in what it leaves behind, as a real init does.

Usage: keeper.py PIDFILE COMMAND ARGUMENT...

A process that dies is reaped at once; Patroni takes one that is not for alive. When standard input ends, because the
test closed it or is gone, everything is killed, frozen processes too.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time

PR_SET_CHILD_SUBREAPER = 36


def descendants(pid):
    found = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children") as children:
                for child in map(int, children.read().split()):
                    found += [child, *descendants(child)]
    except OSError:
        pass  # it has just ended
    return found


def end():
    while os.read(0, 1):
        pass
    begun = time.monotonic()
    while (left := descendants(os.getpid())) and time.monotonic() - begun < 10:
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        time.sleep(0.01)
    os._exit(0)


ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
command = subprocess.Popen(sys.argv[2:], stdin=subprocess.DEVNULL)
with open(sys.argv[1], "w") as file:
    file.write(str(command.pid))
threading.Thread(target=end, daemon=True).start()
while True:
    try:
        os.wait()
    except ChildProcessError:
        time.sleep(0.01)
