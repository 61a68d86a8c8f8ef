"""Put on PYTHONPATH by tests: in a rank, the import of one module fails as if it were not installed.

FAULT_IMPORT=torch FAULT_RANK=2     once the rank knows that it is rank 2
FAULT_IMPORT=ray_memprof.rank.actor       in every process of Ray's workers, while the actor is being made
"""

import os
import sys
from collections.abc import Sequence
from types import ModuleType


class _Refusal:
    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> None:
        if name != os.environ["FAULT_IMPORT"] or os.environ.get("FAULT_RANK", "") != os.environ.get(
            "RANK", ""
        ):
            return
        if "default_worker" in sys.argv[0]:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


if "FAULT_IMPORT" in os.environ:
    sys.meta_path.insert(0, _Refusal())
