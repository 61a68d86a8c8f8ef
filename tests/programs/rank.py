"""A rank without Ray: runs a script as rank/actor.py does, and leaves outcome.json, and what it was asked to look at.

    rank.py '{"path": "train.py", "args": ["--x"]}' [--look SECONDS | --stop SECONDS | --leave SECONDS]

--look: after these seconds beat() and where() go to looks.json; --stop: the process is stopped; --leave: this process
kills itself.
"""

import json
import os
import signal
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

from ray_memprof.rank.script_messages import ScriptOrders, message_of
from ray_memprof.rank.script_process import ScriptProcess
from ray_memprof.recorder.options import RecordingOptions


def main() -> None:
    asked, what, seconds = json.loads(sys.argv[1]), *(sys.argv[2:] or ["", "0"])
    path = asked.pop("path", None)
    process = ScriptProcess(os.environ, Path(asked.pop("cwd", ".")))
    Path("pid").write_text(str(process.pid))
    options = RecordingOptions(
        run_dir=Path("run").absolute(), device="cpu", level=asked.pop("level", "event")
    )
    given = None if path is None else Path(path)
    if "trace_file" in asked:
        asked["trace_file"] = Path(asked["trace_file"])

    def look() -> None:
        time.sleep(float(seconds))
        if what == "--look":
            began = time.monotonic()
            beat, where = process.beat(), process.where()
            found = {
                "beat": None if beat is None else asdict(beat),
                "where": message_of(where),
                "seconds": time.monotonic() - began,
            }
            Path("looks.json").write_text(json.dumps(found))
        if what == "--leave":
            os.kill(os.getpid(), signal.SIGKILL)
        process.stop()

    if what:
        threading.Thread(target=look, daemon=True).start()
    outcome = process.run(ScriptOrders(recording=options, path=given, **asked))
    Path("outcome.json").write_text(json.dumps(message_of(outcome)))
    process.stop()


if __name__ == "__main__":
    main()
