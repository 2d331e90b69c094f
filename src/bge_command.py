"""Start of the ``bge`` command, outside the package: nothing inside it can run before its imports."""

import signal


def main() -> int:
    """Run the command; Ctrl-C before it is there ends the process in silence, as it ends a program in C."""
    is_python_s_own = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_python_s_own:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from bge_integrations.cli import main as run

    if is_python_s_own:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return run()
