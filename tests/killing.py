"""For programs that end in the middle of their work."""

import os
import signal


def die_at(owner, name, moment, *, after):
    """Have the process killed right before, or right after, the nth call of a function of a module or a class."""
    real, left = getattr(owner, name), [moment]

    def counted(*args, **more):
        left[0] -= 1
        if left[0] == 0 and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*args, **more)
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, counted)
