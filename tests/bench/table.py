"""The table, and its place in tests/README.md."""

import statistics
from dataclasses import dataclass

import machine
from figures import Figure
from proxies import HAPROXY, NGINX, SHIM, SPLICE

WHO = {SHIM: "shim", NGINX: "nginx", HAPROXY: "HAProxy"}
README = machine.ROOT / "tests/README.md"


@dataclass(frozen=True)
class Row:
    figure: Figure
    shim: float | None
    nginx: float | None
    haproxy: float | None
    limit: float | None

    @classmethod
    def of(cls, figure: Figure, values: dict) -> "Row":
        def median(who: str) -> float | None:
            got = values.get((figure.key, who))
            return statistics.median(got) if got else None

        shim, nginx, plain = median(SHIM), median(NGINX), median(HAPROXY)
        spliced = median(SPLICE)
        haproxy = plain if spliced is None else spliced
        against = {"": 1.0, "nginx": nginx, "haproxy": haproxy, "best": min(filter(None, (nginx, haproxy)), default=None)}
        base = against[figure.against]
        return cls(figure, shim, nginx, haproxy, None if base is None else figure.limit * base)

    @property
    def holds(self) -> bool | None:
        return None if self.shim is None or self.limit is None else self.shim <= self.limit

    def cells(self) -> list[str]:
        figure = self.figure

        def shown(value: float | None) -> str:
            return "–" if value is None else f"{value:.{figure.digits}f}"

        limit = f"{figure.limit:g} {figure.unit}"
        ratio = "–"
        if figure.against and self.shim is not None and self.limit:
            ratio = f"{self.shim / (self.limit / figure.limit):.2f}"
            limit = f"{figure.limit:.2f} × {dict(best='the best', nginx='nginx', haproxy='HAProxy')[figure.against]}"
        holds = {True: "yes", False: "**no**", None: "not measured"}[self.holds]
        return [f"{figure.title}, {figure.unit}", shown(self.shim), shown(self.nginx), shown(self.haproxy), ratio, limit, holds]


def markdown(rows: list[Row], on: dict[str, str], rounds: int, others: list[float]) -> str:
    lines = [["", "shim", "nginx", "HAProxy", "ratio", "at most", "holds"], ["---", *["---:"] * 4, "---", "---"]]
    lines += [row.cells() for row in rows]
    text = "".join("| " + " | ".join(line) + " |\n" for line in lines)
    text += f"\nMedians of {rounds}: " + ", ".join(f"{what} {which}" for what, which in on.items()) + "."
    if others:
        text += f" Other programs took {statistics.median(others):.0%} of the proxies' core (at worst {max(others):.0%})."
    return text + "\n"


def write(name: str, text: str) -> None:
    """Puts the text between the marks of that name."""
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
    before, found, rest = README.read_text().partition(begin)
    _old, closed, after = rest.partition(end)
    if not found or not closed:
        raise SystemExit(f"{README} has no marks {begin.strip()} … {end.strip()}")
    README.write_text(before + begin + text + end + after)
