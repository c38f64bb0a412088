"""A number with its floor and its standard error."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lib.checks import reject


@dataclass(frozen=True)
class Measured:
    """A measured number, printed as ``0.0448 ± 0.0006 (floor 0)``.

    Attributes:
        value: what was measured.
        floor: what a perfect answer would have measured; ``-inf`` where no floor is known.
        stderr: the standard error of `value`; zero for a closed form.

    Raises:
        ValueError: a field that is no number, or NaN, or a negative `stderr`.
    """

    value: float
    floor: float = 0.0
    stderr: float = 0.0

    def __post_init__(self) -> None:
        for name in ("value", "floor", "stderr"):
            given = getattr(self, name)
            try:
                number = float(given)
            except (TypeError, ValueError, RuntimeError):
                reject(name, "one number", repr(given))
            if math.isnan(number):
                reject(name, "a number", number)
            object.__setattr__(self, name, number)
        if self.stderr < 0:
            reject("stderr", "a non-negative number", self.stderr)

    @property
    def excess(self) -> float:
        """How far the value lies above its floor, in the units of the value."""
        return self.value if self.value == self.floor == math.inf else self.value - self.floor

    def __float__(self) -> float:
        return self.value

    def __format__(self, spec: str) -> str:
        """Format as ``value ± stderr (floor ...)``; ``spec`` is applied to each of the numbers.

        Without a ``spec`` the standard error shows one digit, and the value as many decimals.
        """
        uncertain = 0 < self.stderr < math.inf
        if spec:
            show = lambda number: format(number, spec)  # noqa: E731
        elif uncertain and math.isfinite(self.value):
            # Rounding first: 0.00096 is 0.001, which has one decimal fewer.
            decimals = max(0, -math.floor(math.log10(float(f"{self.stderr:.0e}"))))
            show = lambda number: f"{number:.{decimals}f}" if number else "0"  # noqa: E731
        else:
            show = lambda number: f"{number:.4g}"  # noqa: E731
        error = f" ± {show(self.stderr)}" if self.stderr else ""
        floor = f" (floor {show(self.floor)})" if self.floor > -math.inf else ""
        return f"{show(self.value)}{error}{floor}"

    def __str__(self) -> str:
        return format(self, "")
