"""``python -m intc`` is the program ``intc``."""

import sys

from intc.cli import main

sys.exit(main())
