"""``python -m lapse.apps.clicks``: the command line."""

from __future__ import annotations

from lapse.apps._shared import job
from lapse.apps.clicks import options


def main(argv: list[str] | None = None) -> None:
    """Run the application with the given arguments (default: those of the command line)."""
    args = options.parse(argv)
    with job.start() as comm:
        from lapse.apps.clicks import train  # not before: `--help` needs no compiled module

        train.run(args, comm)


if __name__ == "__main__":
    main()
