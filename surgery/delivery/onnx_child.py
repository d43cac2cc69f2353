"""A process of its own that loads an ONNX file, runs it, and prints by how many bytes its largest resident memory grew, or ``null``.

It imports nothing of this package, so that nothing else is in that memory.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def largest_resident() -> int | None:
    """Bytes; ``None`` where the system does not tell. On Linux not the ``rusage`` of the process, which begins with its parent's."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    """Do the task that stands in the first argument as JSON."""
    import numpy as np
    import onnxruntime

    task = json.loads(sys.argv[1])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = task["threads"], 1
    options.log_severity_level = 3
    x = np.zeros(task["shape"], dtype=np.float32)
    before = largest_resident()
    session = onnxruntime.InferenceSession(task["path"], options, providers=["CPUExecutionProvider"])
    for _ in range(2):
        session.run(None, {session.get_inputs()[0].name: x})
    after = largest_resident()
    print(json.dumps(None if before is None or after is None else after - before))


if __name__ == "__main__":
    main()
