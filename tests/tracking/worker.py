"""A process that logs epochs as a training would, to be killed at any time.

python -m tests.tracking.worker FOLDER URI EPOCHS CHECKPOINT [LIMIT]
"""

import resource
import sys
import time
from pathlib import Path

from spectral_mlops.tracking import open_tracker
from tests.tracking.factory import epoch


def main(folder: str, uri: str, epochs: int, checkpoint: Path, limit: int) -> None:
    tracker = open_tracker(uri, folder=folder)
    with tracker:
        tracker.start("killed", {"epochs": epochs}, epochs=epochs)
        if limit:  # files grow no larger, as on a full disk
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        done = int(checkpoint.read_text()) if checkpoint.exists() else -1
        print(f"from {done + 1}", flush=True)
        for number in range(done + 1, epochs):
            tracker.log(epoch(number), {"train/loss": 1 / (1 + number)})
            time.sleep(0.01)
            if tracker.durable:
                checkpoint.with_suffix(".new").write_text(str(number))
                checkpoint.with_suffix(".new").replace(checkpoint)
            if limit and number == epochs // 2:
                print(f"held {not tracker.durable}", flush=True)
                soft = resource.RLIM_INFINITY
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, soft))
        tracker.log_text("end", "notes.txt")
    print(f"undelivered {tracker.undelivered}", flush=True)


if __name__ == "__main__":
    where, store, count, file, size = sys.argv[1:]
    main(where, store, int(count), Path(file), int(size))
