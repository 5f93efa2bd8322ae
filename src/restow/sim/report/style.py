"""How the page looks, light and dark, on a phone and on a large screen; and the few lines that sort its tables."""

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1d2126; --faint: #68717c; --line: #d9dde2; --shade: #f3f5f7;
  --gone: #c0262d; --back: #1a7f37; --moved: #1d2126;
  --c0: #0b62a8; --c1: #c2410c; --c2: #15803d; --c3: #9d174d; --c4: #6d28d9; --c5: #0f766e; --c6: #a16207; --c7: #475569; }
@media (prefers-color-scheme: dark) { :root { --paper: #15181c; --ink: #e4e7eb; --faint: #98a2ad; --line: #353b43; --shade: #1e2329;
  --gone: #ff7b72; --back: #56d364; --moved: #f0f3f6;
  --c0: #6cb6ff; --c1: #fb923c; --c2: #4ade80; --c3: #f472b6; --c4: #b794f6; --c5: #5eead4; --c6: #facc15; --c7: #a3b1c2; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 72rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: .5rem 0; } h2 { font-size: 1.15rem; margin: 2rem 0 .25rem; } p { margin: .4rem 0; }
.faint { color: var(--faint); font-size: .9rem; }
.wide { overflow-x: auto; } .wide svg { display: block; width: 100%; min-width: 44rem; height: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { cursor: pointer; font-weight: 600; } th:first-child, td:first-child, .words { text-align: left; }
td.words { white-space: normal; max-width: 14rem; } td.words:last-child { min-width: 16rem; max-width: none; }
summary { cursor: pointer; padding: .3rem 0; font-weight: 600; }
.key { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; font-size: .9rem; } .key svg { width: 2rem; height: .8rem; min-width: 0; }
svg text { font: 11px system-ui, sans-serif; fill: var(--faint); }
.grid { stroke: var(--line); stroke-width: 1; } .curve { fill: none; stroke-width: 2; }
.band { fill: var(--shade); } .bar { stroke: var(--paper); stroke-width: .7; fill-opacity: .8; } text.job { fill: var(--paper); }
.gone { stroke: var(--gone); stroke-width: 2.5; } .back { stroke: var(--back); stroke-width: 2.5; }
.lost { stroke: var(--gone); stroke-width: 4; stroke-dasharray: 3 2; } .away { fill: var(--gone); fill-opacity: .3; }
.slow { fill: var(--moved); fill-opacity: .3; }
.move { stroke: var(--moved); stroke-width: 1.3; fill: none; } .tip { fill: var(--moved); }
"""
DASHES = ("", "6 3", "2 3", "9 3 2 3")  # so that lines can be told apart without colours, too
COLOURS = 8

SCRIPT = """
for (const table of document.querySelectorAll("table")) table.tHead.addEventListener("click", event => {
  const head = event.target.closest("th"); if (!head) return;
  const at = head.cellIndex, down = head.dataset.down = head.dataset.down === "1" ? "0" : "1";
  const value = row => { const v = row.cells[at].dataset.value; return v === undefined ? row.cells[at].textContent : Number(v); };
  const rows = [...table.tBodies[0].rows].sort((a, b) => value(a) < value(b) ? -1 : value(a) > value(b) ? 1 : 0);
  if (down === "0") rows.reverse();
  table.tBodies[0].append(...rows);
});
"""


def colour(number: int) -> str:
    return f"var(--c{number % COLOURS})"


def dash(number: int) -> str:
    return DASHES[number // COLOURS % len(DASHES)] if number >= COLOURS else DASHES[number % len(DASHES)]
