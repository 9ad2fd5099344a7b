"""Draws docs/images/architecture.svg: `make generate` writes it from the boxes and arrows below.

The picture follows the reader's light or dark setting, and can be read at 400 px.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 720, 600
TITLE = (
    "The controller prepares each GPU host by SSH. In the host's container, sgl-admin warms the"
    " kernel caches with the SGLang server, and Prometheus scrapes that server. The host tree keeps"
    " models, caches and records. The controller writes a report."
)

STYLE = """\
  svg { color-scheme: light dark; }
  .ground { fill: #ffffff; }
  .outer { fill: #f3f5f8; stroke: #57606a; }
  .box { fill: #ffffff; stroke: #0b62c1; }
  .done { fill: #dff3e4; stroke: #1a7f37; }
  text { font-family: system-ui, "DejaVu Sans", sans-serif; font-size: 19px; fill: #1f2328; }
  .name { font-weight: 600; }
  .small { font-size: 17px; fill: #424a53; }
  .arrow { stroke: #424a53; stroke-width: 2.5; fill: none; marker-end: url(#head); }
  .head { fill: #424a53; }
  rect { stroke-width: 2; }
  @media (prefers-color-scheme: dark) {
    .ground { fill: #0d1117; }
    .outer { fill: #161b22; stroke: #8b949e; }
    .box { fill: #0d1117; stroke: #4493f8; }
    .done { fill: #12361f; stroke: #3fb950; }
    text { fill: #f0f6fc; }
    .small { fill: #c3ccd5; }
    .arrow { stroke: #c3ccd5; }
    .head { fill: #c3ccd5; }
  }
"""


@dataclass(frozen=True)
class Box:
    kind: str
    x: int
    y: int
    width: int
    height: int
    name: str
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Arrow:
    """A line through these points; `label` stands at `at`."""

    points: tuple[tuple[int, int], ...]
    label: str = ""
    at: tuple[int, int] = (0, 0)


BOXES = (
    Box("box", 10, 10, 335, 92, "Controller", ("ansible-playbook", "inventory")),
    Box("done", 375, 10, 335, 92, "Report", ("one page and its JSON", "METRICS_READY: true")),
    Box("outer", 10, 160, 700, 430, "GPU host: one, ten or two hundred"),
    Box("outer", 30, 205, 660, 232, "Container"),
    Box("box", 50, 248, 180, 74, "sgl-admin", ("the prep",)),
    Box("box", 270, 248, 195, 74, "SGLang server", ("port 30000",)),
    Box("box", 505, 248, 165, 74, "Prometheus", ("port 9090",)),
    Box("box", 270, 352, 400, 72, "Exporters and traces", ("CPU, GPU (dcgm-exporter), Jaeger",)),
    Box(
        "outer",
        30,
        488,
        660,
        92,
        "Host tree",
        ("models, kernel caches (profiles),", "samples, logs, records (telemetry)"),
    ),
)
ARROWS = (
    Arrow(((177, 102), (177, 160)), "SSH", (187, 138)),
    Arrow(((540, 160), (540, 102)), "result", (550, 138)),
    Arrow(((230, 285), (270, 285))),
    Arrow(((505, 285), (465, 285))),
    Arrow(((590, 322), (590, 352))),
    Arrow(((140, 322), (140, 488)), "warms, proves, records", (150, 470)),
)


def svg() -> str:
    shapes = [*map(_box, BOXES), *map(_arrow, ARROWS)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
        f' aria-labelledby="title">\n<title id="title">{escape(TITLE)}</title>\n'
        "<!-- Generated from scripts/architecture.py by `make generate`. -->\n"
        f"<style>\n{STYLE}</style>\n<defs>\n"
        '  <marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7"'
        ' markerHeight="7" orient="auto"><path class="head" d="M 0 0 L 10 5 L 0 10 z"/></marker>\n'
        f'</defs>\n<rect class="ground" width="{WIDTH}" height="{HEIGHT}"/>\n'
        + "".join(shapes)
        + "</svg>\n"
    )


def _box(box: Box) -> str:
    left, top = box.x + 14, box.y + 28
    texts = [f'<text class="name" x="{left}" y="{top}">{escape(box.name)}</text>\n']
    texts += [
        f'<text class="small" x="{left}" y="{top + 25 * number}">{escape(line)}</text>\n'
        for number, line in enumerate(box.lines, 1)
    ]
    return (
        f'<rect class="{box.kind}" x="{box.x}" y="{box.y}" width="{box.width}"'
        f' height="{box.height}" rx="8"/>\n' + "".join(texts)
    )


def _arrow(arrow: Arrow) -> str:
    path = " L ".join(f"{x} {y}" for x, y in arrow.points)
    line = f'<path class="arrow" d="M {path}"/>\n'
    if not arrow.label:
        return line
    x, y = arrow.at
    return f'{line}<text class="small" x="{x}" y="{y}">{escape(arrow.label)}</text>\n'
