"""``python -m lapse.bench`` is ``python -m lapse bench``."""

import sys

from lapse.bench._program import main

if __name__ == "__main__":
    sys.exit(main())
