"""The tiny models of `any_model` are found beside these tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "any_model"))
