"""Commands in the pages of the documentation."""

from __future__ import annotations

import re
import shlex


def commands(text: str) -> list[list[str]]:
    """Return the arguments of each specport command in a page's blocks of shell commands."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    parts = [part.strip() for line in lines for part in re.split(r"&&|\s\|\s", line)]
    return [shlex.split(part, comments=True)[1:] for part in parts if part.startswith("specport ")]
