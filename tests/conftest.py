"""Shared fixtures, and the package name `eagle` for the flat root modules (they import each other relatively)."""

import os
import sys
from pathlib import Path
from types import ModuleType

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parent.parent

if "eagle" not in sys.modules:
    package = ModuleType("eagle")
    package.__path__ = [str(ROOT)]
    sys.modules["eagle"] = package
