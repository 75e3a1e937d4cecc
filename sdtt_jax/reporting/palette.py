"""Colours of the report, in light and in dark, and how numbers are written.

Rounds are ordered, so they run along one hue from pale to strong; the teacher is neutral and
the references are far from blue in hue and in lightness, which colour-blind eyes keep apart.
"""

# In light and in dark mode.
_COLOURS = {
    "ink": ("#1c1d21", "#ecebe6"),
    "muted": ("#6a6d75", "#9b9ea7"),
    "grid": ("#e6e4de", "#2c2f36"),
    "page": ("#fdfcfa", "#14161a"),
    "teacher": ("#63666e", "#b3b6be"),
    "first_round": ("#7db4e3", "#3b6790"),
    "accent": ("#0b56a8", "#7cc4ff"),
    "causal": ("#c4500f", "#f29a5c"),
    "data": ("#1c7c5c", "#62cda3"),
    "judge": ("#8a5a9c", "#c79bd8"),
    "coupled": ("#b3246b", "#f27bb5"),
    "coupled_first": ("#d98bb2", "#8f4a6d"),
}
LIGHT, DARK = ({name: pair[mode] for name, pair in _COLOURS.items()} for mode in (0, 1))
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def colours(mode: dict[str, str], rounds: int) -> dict[str, str]:
    """Hex colours by name: those of LIGHT or DARK, and "r1" … for the rounds.

    Rounds go from `first_round` to `accent`; a single one gets the accent.
    """
    shares = [i / (rounds - 1) for i in range(rounds)] if rounds > 1 else [1.0]
    shades = [mix(mode["first_round"], mode["accent"], share) for share in shares]
    return mode | {f"r{i}": shade for i, shade in enumerate(shades, start=1)}


def mix(first: str, second: str, share: float) -> str:
    """A colour between two: the first at share 0, the second at 1."""
    pairs = [(int(first[i : i + 2], 16), int(second[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in pairs)


def css_variables(mode: dict[str, str], rounds: int) -> str:
    """Declarations `--name: colour;` of a mode."""
    return " ".join(f"--{name}: {colour};" for name, colour in colours(mode, rounds).items())


def number(value: float | None, digits: int = 3) -> str:
    """A number with about `digits` significant digits; below a thousandth as a power of ten."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}".replace(",", "\u202f")
    if abs(value) < 1e-3:
        mantissa, exponent = f"{value:.{min(digits, 3) - 1}e}".split("e")
        power = "10" + str(int(exponent)).translate(SUPERSCRIPT)
        return power if float(mantissa) == 1 else f"{mantissa.replace('-', '−')}·{power}"
    text = f"{value:#.{digits}g}"
    return text.rstrip(".").replace("-", "−")


def count(value: float) -> str:
    """A count, with thin spaces between thousands and a decimal only where it has one."""
    whole = abs(value - round(value)) < 0.05
    return f"{value:,.{0 if whole else 1}f}".replace(",", "\u202f")


def counted(number_of: int, noun: str) -> str:
    """`1 call`, `8 calls`."""
    return f"{number_of} {noun}" + ("" if number_of == 1 else "s")


def steps_text(steps: int) -> str:
    """`1 step`, `8 steps`."""
    return counted(steps, "step")


def percent(share: float, *, sign: bool = False) -> str:
    """A share as percent: one decimal under 10 %, none above; a real minus sign, and no sign of 0.0.

    What one decimal would make zero has two.
    """
    value = 100 * share
    digits = 0 if abs(value) >= 9.95 else 1 if abs(value) >= 0.05 else 2
    if abs(value) < 0.005:
        value, digits, sign = 0.0, 1, False
    text = f"{value:{'+' if sign else ''},.{digits}f}"
    return text.replace("-", "−").replace(",", "\u202f") + "\u202f%"


def duration(seconds: float) -> str:
    """Seconds as `42 s`, `3 min 05 s` or `1 h 32 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s" if whole else f"{seconds:.1f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
