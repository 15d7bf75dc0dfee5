import sys

from afina.ui.cli import main

sys.exit(main())
