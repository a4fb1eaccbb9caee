"""Run `cappy`, and print the peak of its process' memory in MiB.

python benchmarks/peak_memory.py train conf/quickstart.yaml
"""

import re
import sys
from pathlib import Path

from cappy_lightning.cli import main


def peak_mib() -> int:
    """The peak of this process' resident memory since its program began, in MiB (`VmHWM` of proc(5), Linux).

    `ru_maxrss` of getrusage(2) begins with the memory of the process that started this one.
    """
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    assert found is not None
    return int(found[1]) // 1024


if __name__ == "__main__":
    code = main(sys.argv[1:])
    print(peak_mib())
    sys.exit(code)
