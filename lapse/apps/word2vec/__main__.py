"""``python -m lapse.apps.word2vec``: the command line."""

from __future__ import annotations

import sys

from lapse.apps._shared import job
from lapse.apps.word2vec import options, query


def main(argv: list[str] | None = None) -> None:
    """Run the application, or ``query``, with the given arguments (default: those of the command line)."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["query"]:
        query.main(argv[1:])
        return
    args = options.parse(argv)
    with job.start() as comm:
        from lapse.apps.word2vec import train  # not before: `--help` needs no compiled module

        train.run(args, comm)


if __name__ == "__main__":
    main()
