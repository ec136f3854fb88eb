"""The command of the page: python -m lab.page, or python PATH/lab/page from any folder."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from lab.page.page import main

sys.exit(main())
