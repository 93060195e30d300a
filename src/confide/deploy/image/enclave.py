"""The program that a Nitro enclave's image names: one service, started again where it ends, and not as root.

AWS's first program has made /proc, /sys, /dev, /run and /tmp by then, and loaded the security module's driver, whose
device is open to everybody. The service is what follows on the command line, which stands in the image and is measured.
"""

import signal
import sys
from pathlib import Path
from typing import NoReturn

from confide.deploy.image.machine import KERNEL_SETTINGS, Kept


def main() -> NoReturn:
    """Until the enclave ends."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    settle(Path("/proc/sys/kernel"))
    service = Kept(sys.argv[1:])
    while True:
        service.tend()
        signal.sigtimedwait([signal.SIGCHLD], 1.0)


def settle(kernel: Path) -> None:
    """What a kernel does not have need not be switched off, and it is AWS's to choose."""
    for name, value in KERNEL_SETTINGS.items():
        if (kernel / name).exists():
            (kernel / name).write_text(value)


if __name__ == "__main__":
    main()
