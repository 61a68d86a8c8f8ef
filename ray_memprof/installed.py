"""Whether the packages of an optional extra are there, said in one line before the first of them is imported.

    need(("torch", "ray"), "a launch")        # ConfigError: a launch needs ray, which is not installed here

Takes names as `import` takes them; imports none of them.
"""

from collections.abc import Sequence
from importlib.util import find_spec

from ray_memprof.errors import ConfigError


def need(packages: Sequence[str], what: str, *, extra: str = "run") -> None:
    """Refuse `what` where one of `packages` is not installed.

    Args:
        packages: top-level names.
        what: the first words of the message: who needs them.
        extra: the optional extra of this package that brings them.

    Raises:
        ConfigError: one of them, or more, is missing; the message names each.
    """
    if missing := [name for name in packages if find_spec(name) is None]:
        be = "is" if len(missing) == 1 else "are"
        raise ConfigError(
            f"{what} needs {', '.join(missing)}, which {be} not installed here",
            hint=f"pip install 'ray-memprof[{extra}]'",
        )
