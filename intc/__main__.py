"""``python -m intc`` is the program ``intc``."""

import sys

from intc.cli import main

if __name__ == "__main__":
    sys.exit(main())
