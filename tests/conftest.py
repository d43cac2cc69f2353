"""Makes the reference networks under ``networks/`` importable, as a user's own package on the path would be."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
