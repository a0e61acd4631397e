"""Makes the auditor importable from the statistical tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
