"""A process that reads all blocks raw: told by lines on stdin, answers seconds.

python -m benchmarks.disk_tier.how.raw FOLDER
    4           four reads at a time, into memory that holds them
    discard     one read at a time into one small buffer, each over the last
"""

import sys
from pathlib import Path

from benchmarks.disk_tier.how.folder import Folder
from benchmarks.shared.raw_read import Reader

READERS = (2, 4)  # one at a time was never the best
DISCARD = "discard"


def main(root: str) -> None:
    reader = Reader(Folder(Path(root)).checkpoint)
    print("opened", flush=True)
    for line in sys.stdin:
        told = line.strip()
        seconds = reader.discarding_seconds() if told == DISCARD else reader.seconds(int(told))
        print(seconds, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
