"""``python -m lapse.apps.mf``: the command line."""

from __future__ import annotations

import sys

from lapse.apps._shared import job
from lapse.apps.mf import options, recommend


def main(argv: list[str] | None = None) -> None:
    """Run the application, or ``recommend``, with the given arguments (default: those of the command line)."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["recommend"]:
        recommend.main(argv[1:])
        return
    args = options.parse(argv)
    with job.start() as comm:
        from lapse.apps.mf import train  # not before: `--help` needs no compiled module

        train.run(args, comm)


if __name__ == "__main__":
    main()
