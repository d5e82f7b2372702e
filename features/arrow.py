"""Arrow's compute functions, for type checkers too."""

from typing import Any

import pyarrow.compute

pc: Any = pyarrow.compute
"""Module ``pyarrow.compute``: its functions are made when it is imported, so type checkers know none of them."""
