"""`python -m afina`: nothing is imported from the current folder, where data lie."""

import sys

if not sys.flags.safe_path:
    del sys.path[0]  # the current folder, which `python -m` puts first

from afina.ui.cli import main

sys.exit(main())
