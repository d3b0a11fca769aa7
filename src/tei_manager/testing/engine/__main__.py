"""`python -m tei_manager.testing.engine`."""

from __future__ import annotations

import sys

from tei_manager.testing.engine import main

sys.exit(main())
