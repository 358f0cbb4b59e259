"""The scripts of DVC's stages; they run the package that lies beside them."""

import sys
from pathlib import Path

# A queued experiment runs in a copy of the project, and the installed package is the original's.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
