"""The pages of the project as tests read them."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def joined(text: str) -> list[str]:
    """The lines of a shell text: continued lines made one, comments and surplus blanks taken out."""
    lines = text.replace("\\\n", " ").splitlines()
    return [" ".join(re.sub(r"(^|\s)#.*", "", line).split()) for line in lines]


def console_commands(markdown: str) -> list[str]:
    """What stands after `$ ` in the console blocks of `markdown`, in order."""
    blocks = re.findall(r"^```console\n(.*?)^```", markdown, flags=re.DOTALL | re.MULTILINE)
    return [line.removeprefix("$ ") for block in blocks for line in joined(block) if line.startswith("$ ")]
