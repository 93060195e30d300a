"""The `confide` command, from its first moment."""

import signal


def run() -> None:
    """Run it. Ctrl-C while modules are imported just ends the process, where Python would print a traceback."""
    heeded = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # a parent may ignore it, as nohup does
    if heeded:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from confide.cli import main

    if heeded:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    main()


if __name__ == "__main__":
    run()
