"""Times and sizes in words: "12.3 ms", "4.3 MB"."""


def time(value: float) -> str:
    """Return a time in words."""
    if value >= 1:
        return f"{value:,.2f} s"
    if value >= 0.0995:
        return f"{value * 1e3:,.0f} ms"
    return f"{value * 1e3:.3g} ms" if value >= 1e-3 else f"{value * 1e6:,.0f} us"


def size(count: float) -> str:
    """Return a number of bytes in words, with units of 1,000."""
    if abs(count) < 999.5:
        return f"{count:,.0f} bytes"
    for unit in ("kB", "MB"):
        count /= 1000
        if abs(count) < 999.5:
            return f"{count:.3g} {unit}"
    return f"{count / 1000:,.3g} GB"
