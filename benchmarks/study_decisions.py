"""Which attention when: rules that read an answer, with its numbers, off the study's results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from benchmarks.study_plan import BASE
from benchmarks.study_results import Difference, Result

Results = Mapping[str, Result]

SHOWN = 0.05  # corrected p-values below it count as shown
CHEAP = 1.1  # of the step time of 'none'
SOLVES = 80.0  # percent; a network that cannot bind the cue is right about half the time
MISSING = "not measured yet"


def table(photos: Results, cued: Results) -> list[tuple[str, str, str]]:
    """Returns the rows (wanted, take, because) of the decision table.

    Args:
        photos: results on the photographs, with the step times.
        cued: those on the cued task.
    """
    blocks = [r for r in photos.values() if r.kind in ("mixer", "context")]
    cheap = [r for r in blocks if r.ratio is not None and r.ratio <= CHEAP]
    rows = [
        ("something to start from", *_start(photos)),
        ("accuracy, whatever it costs", *_best(blocks, "no block is trained")),
        (
            f"accuracy for at most {CHEAP} x the step time of `{BASE}`",
            *_best(cheap, "no step time is measured, or none is that short"),
        ),
        (
            "attention in place of convolutions",
            *_best([r for r in blocks if r.kind == "mixer"], "no mixer is trained"),
        ),
        ("fewer parameters, no measured loss", *_smaller(photos)),
        (
            "a whole hierarchical network",
            *_best([r for r in photos.values() if r.kind == "backbone"], "none is trained"),
        ),
        ("parts that lie far apart have to be related", *_far_apart(photos, cued)),
    ]
    rows += [
        (f"pictures may be {what}", *_robust(photos, group))
        for what, group in (("shifted", "shift"), ("noisy", "noise_32"), ("blurred", "blur_2"))
    ]
    return [*rows, ("what to leave out on such data", *_worse(photos))]


def signed(value: float) -> str:
    """Returns percent points with their sign."""
    return f"{value:+.1f}".replace("-", "\N{MINUS SIGN}")


def p_value(value: float) -> str:
    """Returns a p-value with two digits."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def _accuracy(result: Result) -> str:
    return f"{result.accuracy:.1f} % ({result.low:.1f} to {result.high:.1f})"


def _against_base(difference: Difference) -> str:
    verdict = "shown" if difference.corrected < SHOWN else "not shown to differ"
    return (
        f"{signed(difference.mean)} points against `{BASE}` ({signed(difference.low)} to "
        f"{signed(difference.high)}), corrected p {p_value(difference.corrected)}: {verdict}"
    )


def _times(result: Result) -> str:
    return "" if result.ratio is None else f"; {result.ratio:.2f} x its step time"


def _compared(results: Iterable[Result]) -> list[Result]:
    return [r for r in results if r.difference is not None]


def _start(photos: Results) -> tuple[str, str]:
    base = photos.get(BASE)
    if base is None or base.accuracy is None:
        return MISSING, ""
    cost = f"{base.parameters / 1e6:.2f} M parameters, {base.macs / 1e6:.1f} M multiply-adds"
    return f"`{BASE}`", f"{_accuracy(base)} with {cost}"


def _best(results: Iterable[Result], otherwise: str) -> tuple[str, str]:
    found = _compared(results)
    if not found:
        return MISSING, otherwise
    best = max(found, key=lambda r: r.difference.mean)
    why = f"best of {len(found)}: {_against_base(best.difference)}{_times(best)}"
    return (f"`{best.name}`" if best.difference.mean > 0 else f"`{BASE}`; else `{best.name}`"), why


def _smaller(photos: Results) -> tuple[str, str]:
    base = photos.get(BASE)
    if base is None or base.parameters is None:
        return MISSING, ""
    found = [r for r in _compared(photos.values()) if r.parameters < base.parameters]
    equal = [r for r in found if r.difference.mean >= 0]
    if not found:
        return MISSING, "no smaller network is trained"
    if not equal:
        return f"`{BASE}`", f"all {len(found)} smaller networks have a lower mean"
    best = min(equal, key=lambda r: r.parameters)
    share = f"{100 * best.parameters / base.parameters:.0f} % of the parameters"
    return f"`{best.name}`", f"{share}; {_against_base(best.difference)}{_times(best)}"


def _far_apart(photos: Results, cued: Results) -> tuple[str, str]:
    found, base = _compared(cued.values()), cued.get(BASE)
    if not found or base is None or base.accuracy is None:
        return MISSING, "no block is trained on the cued task"
    solving = sorted((r for r in found if r.accuracy >= SOLVES), key=lambda r: -r.accuracy)
    if not solving:
        return MISSING, f"none of {len(found)} blocks reaches {SOLVES:.0f} % on the cued task"
    timed = [r for r in solving if photos.get(r.name) and photos[r.name].ratio is not None]
    best, why = solving[0], f"`{BASE}` {base.accuracy:.1f} %"
    why += f", `{best.name}` {_accuracy(best)}; {len(solving)} of {len(found)} reach {SOLVES:.0f} %"
    if timed:
        cheapest = min(timed, key=lambda r: photos[r.name].ratio)
        ratio = photos[cheapest.name].ratio
        why += f", of which `{cheapest.name}` costs least on photographs, {ratio:.2f} x a step"
        if cheapest is not best:
            return f"`{best.name}`, or cheaper `{cheapest.name}`", why
    return f"`{best.name}`", why


def _robust(photos: Results, group: str) -> tuple[str, str]:
    found = [r for r in photos.values() if group in r.varied]
    if not {r.name for r in found} - {BASE}:
        return MISSING, "no block is trained"
    best, base = max(found, key=lambda r: r.varied[group]), photos.get(BASE)
    why = f"{best.varied[group]:.1f} % (unvaried {best.accuracy:.1f} %)"
    if base is not None and group in base.varied:
        why += f"; `{BASE}` {base.varied[group]:.1f} % (unvaried {base.accuracy:.1f} %)"
    return f"`{best.name}`", f"highest mean of {len(found)}: {why}; no test"


def _worse(photos: Results) -> tuple[str, str]:
    found = _compared(photos.values())
    shown = [r for r in found if r.difference.corrected < SHOWN]
    worse = sorted((r for r in shown if r.difference.mean < 0), key=lambda r: r.difference.mean)
    if not found:
        return MISSING, ""
    if not worse:
        return "nothing", f"none of {len(found)} networks is shown to be worse than `{BASE}`"
    names = ", ".join(f"`{r.name}` ({signed(r.difference.mean)})" for r in worse)
    return f"{len(worse)} of {len(found)}", f"shown to be worse, by points: {names}"
