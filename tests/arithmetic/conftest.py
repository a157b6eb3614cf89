"""The table of cases is the specification's: every test of an arithmetic walks the same one."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "specification"))
