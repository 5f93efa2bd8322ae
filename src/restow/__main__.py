"""`python -m restow` is the command `restow`."""

import signal


def main() -> None:
    """Run the command line. Ctrl-C while it is still being imported ends it without a traceback."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # not where somebody told us to ignore it
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from restow.cli import main as command

    signal.signal(signal.SIGINT, before)
    command.main()


if __name__ == "__main__":
    main()
