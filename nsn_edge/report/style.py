"""The look: one style sheet, light and dark, screen and paper, and a colour for each rung."""

from __future__ import annotations

from collections.abc import Iterable

# From the lowest rung to the dense one. Each is at least 3:1 against its background, and they differ in lightness,
# so that the order survives colour blindness and grey printers.
_LIGHT = ((20, 150, 130), (38, 118, 190), (86, 72, 178), (116, 34, 128))
_DARK = ((84, 214, 190), (104, 178, 244), (160, 150, 248), (222, 150, 242))

DRAWING = """
svg{--paper:#fff;--ink:#1b1f24;--soft:#57606a;--line:#d5dae0;--mark:#2676be;--told:#b3541e;background:var(--paper)}
@media(prefers-color-scheme:dark){svg{--paper:#14171b;--ink:#e8eaed;--soft:#a0a9b4;--line:#363d46;--mark:#68b2f4;
--told:#f0a060}}
text{font:13px system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",sans-serif;fill:var(--ink)}
.tick,.title,.aside{fill:var(--soft)}.tick{font-size:12px}.strong{font-weight:600}
.strong,.aside{paint-order:stroke;stroke:var(--paper);stroke-width:3px;stroke-linejoin:round}
.axis{stroke:var(--soft)}.grid{stroke:var(--line)}.trend{fill:none;stroke:var(--mark);stroke-width:1.6}
"""
"""Of a drawing that is a file of its own: quality against cost, a line and what was foretold."""

_SHEET = """
:root{color-scheme:light dark;--paper:#fff;--ink:#1b1f24;--soft:#57606a;--line:#d5dae0;--wash:#f4f6f8;
--good:#1a7f4b;--bad:#c02f2f;--warn:#8a5a00;--warnwash:#fff6e0;LIGHT}
@media(prefers-color-scheme:dark){:root{--paper:#14171b;--ink:#e8eaed;--soft:#a0a9b4;--line:#363d46;--wash:#1d2127;
--good:#5fd394;--bad:#ff8f85;--warn:#f0c060;--warnwash:#2b2415;DARK}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",sans-serif;-webkit-text-size-adjust:100%}
main{max-width:1080px;margin:0 auto;padding:40px 24px 64px}
h1{font-size:1.75rem;line-height:1.25;margin:0 0 12px;max-width:36em;text-wrap:balance}
h2{font-size:1.2rem;margin:56px 0 6px}
h3{font-size:1rem;margin:0 0 4px}
p{margin:0 0 12px;max-width:46em}
.kicker{color:var(--soft);font-size:.875rem;margin:0 0 8px}
.soft{color:var(--soft)}
.small{font-size:.875rem}
.facts{list-style:none;margin:20px 0 0;padding:0;display:grid;gap:1px;
grid-template-columns:repeat(auto-fit,minmax(170px,1fr))}
.facts li{box-shadow:0 0 0 1px var(--line);padding:12px 16px;font-size:.875rem;color:var(--soft)}
.facts b{display:block;font-size:1.2rem;color:var(--ink);font-variant-numeric:tabular-nums}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,310px),1fr));gap:24px 40px;margin-top:16px}
.panels{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr));gap:24px 40px;margin-top:16px}
.panels>*{min-width:0;max-width:540px}
.pair>*{min-width:0}
figure{margin:0}
.pair>figure{max-width:540px}
figcaption{font-size:.875rem;color:var(--soft);max-width:46em}
svg{display:block;width:100%;height:auto;overflow:visible}
svg text{font:13px system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",sans-serif;fill:var(--ink);
font-variant-numeric:tabular-nums}
svg .tick,svg .title,svg .aside{fill:var(--soft)}
svg .tick{font-size:12px}
svg .strong{font-weight:600}
svg .title,svg .strong,svg .aside{paint-order:stroke;stroke:var(--paper);stroke-width:3px;stroke-linejoin:round}
svg .axis{stroke:var(--soft);stroke-width:1}
svg .grid{stroke:var(--line);stroke-width:1}
svg .trend{fill:none;stroke:var(--soft);stroke-width:1}
svg .spread{stroke-width:3;stroke-opacity:.55}
svg .curve{fill:none;stroke:var(--ink);stroke-width:1.6;stroke-linejoin:round}
svg .ideal{fill:var(--paper);stroke:var(--soft);stroke-width:1.4}
svg .switch{stroke:var(--soft);stroke-width:1;stroke-dasharray:2 3}
svg .mains{fill:var(--soft);opacity:.16}
.narrow{display:none}
.scroll{overflow-x:auto;margin-top:12px}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
table.full{width:100%}
caption{text-align:left;padding-bottom:6px}
caption span{display:inline-block;position:sticky;left:0;max-width:min(46em,calc(100vw - 32px));color:var(--soft);
font-size:.875rem}
th,td{padding:7px 16px 7px 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
thead th{color:var(--soft);font-weight:500;vertical-align:bottom;border-bottom-color:var(--soft)}
th.n,td.n{text-align:right}
td.n{white-space:nowrap}
th.bar{width:24%}
tbody th,td.r{font-weight:600;white-space:nowrap}
.meter{display:block;height:10px;margin-top:7px;background:var(--wash)}
.meter i{display:block;height:100%}
.dot{display:inline-block;width:.7em;height:.7em;border-radius:50%;margin-right:.45em}
.good{color:var(--good);font-weight:600}.bad{color:var(--bad);font-weight:600}
.warn{background:var(--warnwash);border-left:3px solid var(--warn);padding:10px 16px;margin:20px 0 0;font-size:.9rem}
.warn p,.warn ul{margin:0}.warn ul{padding-left:1.2em}
.hits{list-style:none;margin:10px 0 0;padding:0;border-top:1px solid var(--line)}
.hits li{display:grid;grid-template-columns:3.2em 1fr;gap:2px 10px;padding:9px 0;border-bottom:1px solid var(--line)}
.hits .score{font-variant-numeric:tabular-nums;color:var(--soft)}
.hits .where{grid-column:2;font-size:.8rem;color:var(--soft)}
.hits .text{grid-column:2;font-size:.875rem;overflow-wrap:anywhere}
.hits b{overflow-wrap:anywhere}
.bars{display:grid;grid-template-columns:max-content 1fr;gap:8px 14px;align-items:center;margin-top:12px;
font-size:.9rem}
.bars .bar{display:flex;align-items:center;gap:10px}
.bars strong{white-space:nowrap}
.bars .lane{flex:none;height:14px}
dl{display:grid;grid-template-columns:max-content 1fr;gap:4px 20px;margin:12px 0 0;font-size:.9rem}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
pre{background:var(--wash);padding:10px 14px;margin:4px 0 14px;overflow-x:auto;font-size:.85rem;white-space:pre-wrap;
overflow-wrap:anywhere}
code,pre{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
details{margin-top:8px;font-size:.9rem}summary{cursor:pointer;color:var(--soft)}
footer{margin-top:56px;border-top:1px solid var(--line);padding-top:12px;color:var(--soft);font-size:.875rem}
@media(max-width:640px){main{padding:24px 16px 48px}h1{font-size:1.35rem}h2{margin-top:40px}
.wide{display:none}.narrow{display:block}dl{grid-template-columns:1fr;gap:0}dd{margin-bottom:8px}
.bars{grid-template-columns:1fr;gap:2px}.bars .bar{margin-bottom:8px;flex-wrap:wrap;row-gap:2px}.m{display:none}}
@media print{:root{color-scheme:light;--paper:#fff;--ink:#000;--soft:#444;--line:#bbb;--wash:#f2f2f2;--good:#1a7f4b;
--bad:#c02f2f;--warn:#8a5a00;--warnwash:#fff6e0;LIGHT}
main{max-width:none;padding:0}h2{break-after:avoid}figure,tr,li,.pair>*,.panels>*{break-inside:avoid}
svg,i,.dot{-webkit-print-color-adjust:exact;print-color-adjust:exact}.scroll{overflow:visible}body{font-size:11pt}}
"""


def style_sheet(rungs: int) -> str:
    """The sheet, with the variables `--r0` (lowest rung) to `--r{rungs-1}` (the top one)."""
    return _SHEET.replace("LIGHT", _variables(_LIGHT, rungs)).replace("DARK", _variables(_DARK, rungs)).strip()


class RungColours:
    """Which colour a rank has, the same in every chart and table."""

    def __init__(self, ranks: Iterable[int]) -> None:
        self._ranks = sorted(set(ranks))

    def __len__(self) -> int:
        return len(self._ranks)

    def __call__(self, rank: int) -> str:
        """A CSS colour; a rank that is no rung has the soft ink."""
        return f"var(--r{self._ranks.index(rank)})" if rank in self._ranks else "var(--soft)"


def _variables(stops: tuple[tuple[int, int, int], ...], count: int) -> str:
    return "".join(f"--r{index}:{_mix(stops, index / max(count - 1, 1))};" for index in range(count))


def _mix(stops: tuple[tuple[int, int, int], ...], position: float) -> str:
    scaled = position * (len(stops) - 1)
    low = min(int(scaled), len(stops) - 2)
    share = scaled - low
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(stops[low], stops[low + 1], strict=True))
    return f"#{red:02x}{green:02x}{blue:02x}"
