"""The report's stylesheet: system fonts, one accent colour, light and dark by preference, phone to print."""

CSS = """\
:root {
  color-scheme: light dark;
  --page: #fcfbf9; --panel: #f4f2ed; --ink: #1c2126; --dim: #646c74; --rule: #dedbd4;
  --accent: #1c5d99; --other: #878e95; --lost: #a8672a; --warn: #7a5200; --warn-page: #fcf2da;
  --serif: Charter, "Bitstream Charter", "Iowan Old Style", "Source Serif 4", Georgia, "DejaVu Serif", serif;
  --sans: ui-sans-serif, system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  --mono: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171a; --panel: #1d2125; --ink: #e4e3df; --dim: #99a0a7; --rule: #33383d;
    --accent: #78b4ec; --other: #7f868d; --lost: #d99a5b; --warn: #f0cd86; --warn-page: #2b2412;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 var(--sans); }
main { max-width: 1060px; margin: 0 auto; padding: 56px 28px 96px; }
h1, h2, .headline { font-family: var(--serif); font-weight: 600; text-wrap: balance; }
.unbroken { white-space: nowrap; }
h1, .headline, p, li, figcaption, summary, h4, dd, dt, tbody th { overflow-wrap: anywhere; }
h1 { font-size: 1.15rem; margin: 0; color: var(--dim); font-weight: 500; }
h2 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 14px; }
h3 { font-size: 1rem; margin: 30px 0 10px; }
h4 { font-size: .8125rem; margin: 0 0 6px; color: var(--dim); font-weight: 600; }
p { margin: 0 0 14px; max-width: 72ch; }
section { margin-top: 60px; }
.eyebrow { font-size: .8125rem; color: var(--dim); margin-bottom: 6px; }
.headline { font-size: clamp(1.4rem, 1rem + 2vw, 2.1rem); line-height: 1.28; margin: 16px 0 0;
  max-width: 34em; font-weight: 500; }
.dim, .note { color: var(--dim); }
.note { font-size: .8125rem; }
.calm { margin-top: 26px; color: var(--dim); }

.warnings { margin-top: 34px; background: var(--warn-page); border-radius: 6px; padding: 18px 22px; }
.warnings h2 { font: 600 .9375rem/1.4 var(--sans); color: var(--warn); margin-bottom: 6px; }
.warnings ul { margin: 0; padding-left: 1.15em; }
.warnings li { margin: 4px 0; max-width: 76ch; }
.warnings li::marker { color: var(--warn); }

/* A shadow at the right edge while there is more to scroll to; the page's colour hides it at the end. */
.scroll { overflow-x: auto; margin: 0 0 14px; background:
  linear-gradient(to left, var(--page) 40%, transparent) right / 56px 100% no-repeat local,
  linear-gradient(to left, color-mix(in srgb, var(--ink) 30%, transparent), transparent) right / 18px 100% no-repeat scroll; }
.scroll th:first-child, .scroll thead td:first-child { position: sticky; left: 0; z-index: 1; background: var(--page); }
table { border-collapse: collapse; width: 100%; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: 9px 14px; text-align: right; vertical-align: top; border-bottom: 1px solid var(--rule); }
td { white-space: nowrap; }
th { font-weight: 500; }
thead th { color: var(--dim); font-size: .8125rem; vertical-align: bottom;
  border-bottom-color: var(--other); }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th:last-child, td:last-child { padding-right: 0; }
tbody th { min-width: 9.5em; }
td small, th small { display: block; color: var(--dim); font-size: .75rem; font-weight: 400; }
.matrix { width: auto; }
.matrix thead th { vertical-align: bottom; text-align: left; }
.matrix thead span { writing-mode: vertical-rl; transform: rotate(180deg); white-space: nowrap; }
.matrix tbody th { min-width: 7em; max-width: 14em; padding-right: 10px; }
.matrix td, .matrix thead th { padding: 8px 9px; vertical-align: middle; text-align: center; }
.matrix td:last-child, .matrix th:last-child { padding-right: 9px; }
.matrix th:first-child { padding-left: 0; }
.matrix .won { background: color-mix(in srgb, var(--accent) var(--tint), transparent); }
.matrix .lost { background: color-mix(in srgb, var(--lost) var(--tint), transparent); }
.matrix .untested { font-style: italic; }
.matrix .self { color: var(--dim); text-align: center; }
.facts { width: auto; }
.facts td { white-space: normal; overflow-wrap: anywhere; }

.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap: 28px 48px;
  align-items: start; margin-bottom: 26px; }
.pair > * { min-width: 0; }
figure + .scroll, .note + .scroll { margin-top: 26px; }
.pair .facts { margin-top: 18px; }
figure { margin: 0; max-width: 500px; }
figcaption { font-size: .8125rem; color: var(--dim); margin-top: 8px; max-width: 62ch; }
.multiples { display: grid;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 222px), 1fr)); gap: 30px 28px; }
.multiples figcaption { display: flex; flex-wrap: wrap; justify-content: space-between;
  gap: 0 12px; margin: 0 0 4px; }
.multiples figcaption b { color: var(--ink); font-weight: 600; overflow-wrap: anywhere; }
.stage { flex-basis: 100%; font-size: .75rem; }
.last { font-variant-numeric: tabular-nums; color: var(--accent); }
.key { display: inline-block; width: 14px; height: 3px; border-radius: 2px; margin: 0 5px 3px 8px; }
.key.main { background: var(--accent); }
.key.second { background: var(--other); }

svg { display: block; width: 100%; height: auto; overflow: visible; font: 11px var(--sans); }
svg text { fill: var(--dim); font-variant-numeric: tabular-nums; }
svg .name { fill: var(--ink); font-size: 12.5px; }
svg .note { font-size: inherit; }
svg .num { fill: var(--ink); font-size: 12px; }
svg .halo { paint-order: stroke; stroke: var(--page); stroke-width: 4px; stroke-linejoin: round; }
.grid { stroke: var(--rule); stroke-width: 1; }
.axis { stroke: var(--other); stroke-width: 1; }
.ref { stroke: var(--ink); stroke-width: 1; stroke-dasharray: 3 3; opacity: .7; }
.track { stroke: var(--rule); stroke-width: 6; stroke-linecap: round; }
.line { fill: none; stroke-width: 1.8; stroke-linejoin: round; stroke-linecap: round; }
.bar { stroke-width: 3; stroke-linecap: round; }
.bar.thin { stroke-width: 1.6; }
.bar.wide { stroke-width: 6; opacity: .55; }
.line.main, .bar.main { stroke: var(--accent); }
.line.second, .bar.second { stroke: var(--other); }
.dot { stroke: var(--page); stroke-width: 1.5; }
.dot.main { fill: var(--accent); }
.dot.second { fill: var(--other); }

.line.fit { stroke: var(--ink); stroke-width: 1; opacity: .55; }
.line.dotted { stroke-dasharray: 1 5; }

.tools { display: flex; flex-wrap: wrap; gap: 10px 18px; align-items: end; margin: 0 0 22px; font-size: .8125rem;
  color: var(--dim); }
.tools label { display: grid; gap: 3px; }
.tools .find { flex: 1 1 240px; }
.tools output { flex-basis: 100%; font-variant-numeric: tabular-nums; }
input, select, button { font: .875rem/1.4 var(--sans); color: var(--ink); background: var(--page);
  border: 1px solid var(--other); border-radius: 5px; padding: 6px 9px; min-width: 0; max-width: 100%; min-height: 36px; }
button { padding: 6px 18px; cursor: pointer; }
select:disabled { opacity: .45; }
mark { background: color-mix(in srgb, var(--accent) 18%, transparent); color: inherit; border-radius: 2px; padding: .06em 0; }
[hidden] { display: none !important; }

.sample { border-top: 1px solid var(--rule); padding: 18px 0 26px; }
.sample h3 { margin: 0 0 6px; font-size: .75rem; font-weight: 500; color: var(--dim); }
.sides > .prompt { margin-bottom: 14px; }
.long .sides { display: grid; grid-template-columns: minmax(0, 5fr) minmax(0, 6fr); gap: 24px; align-items: start; }
.long .prompt { position: sticky; top: 12px; max-height: min(36em, 88vh); overflow-y: auto; padding-bottom: 2em;
  mask-image: linear-gradient(#000 calc(100% - 2em), transparent); }
.long .cards { display: block; columns: 2 210px; column-gap: 12px; }
.long .card { break-inside: avoid; margin-bottom: 12px; }
.scores span { margin-right: 10px; }
.prompt, .text { font-family: var(--serif); white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: plaintext; }
.prompt { max-width: 78ch; font-size: .9375rem; }
.pick { color: var(--accent); font-weight: 400; font-size: .75rem; margin-left: 6px; }
.card.reference { background: none; box-shadow: inset 0 0 0 1px var(--rule); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 220px), 1fr)); gap: 12px; }
.card { display: flex; flex-direction: column; background: var(--panel); border-radius: 6px;
  padding: 14px 16px 12px; }
.card.main { box-shadow: inset 0 2px 0 var(--accent); }
.card.main h4 { color: var(--accent); }
.card .text { flex: 1; font-size: .9375rem; line-height: 1.5; margin: 0 0 12px; }
.card .scores { font-size: .75rem; color: var(--dim); font-variant-numeric: tabular-nums; margin: 0; }

dl { display: grid; grid-template-columns: minmax(9em, 13em) 1fr; 
  gap: 10px 24px; margin: 0; font-size: .9375rem; }
dt { font-weight: 600; }
dd { margin: 0; max-width: 72ch; }
details { border-top: 1px solid var(--rule); padding: 10px 0; margin-top: 10px; }
summary { cursor: pointer; color: var(--accent); font-size: .875rem; }
details[open] > summary { margin-bottom: 14px; }
pre { background: var(--panel); border-radius: 6px; padding: 12px 14px; margin: 0 0 16px; overflow-x: auto;
  font: .8125rem/1.5 var(--mono); max-height: 30em; }
code { font: .8125rem var(--mono); }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 3px; border-radius: 3px; }

@media (max-width: 600px) {
  main { padding: 28px 18px 64px; }
  section { margin-top: 44px; }
  dl { grid-template-columns: 1fr; gap: 2px; }
  dd { margin-bottom: 12px; }
  tbody th { min-width: 7.5em; }
  svg { font-size: 13px; }
  svg .name, svg .num { font-size: 14px; }
  .multiples svg { font-size: 8.5px; }
  .long .sides { grid-template-columns: 1fr; }
  .long .prompt { position: static; max-height: 16em; }
  .tools label { flex: 1 1 45%; }
  .tools .find { flex-basis: 100%; }
  input, select { width: 100%; font-size: 16px; }
}
@media print {
  :root { --page: #fff; --panel: #f5f4f1; --ink: #000; --dim: #505050; --rule: #ccc; --accent: #174f84;
    --other: #777; --warn: #5c3d00; --warn-page: #fbf1da; color-scheme: light; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  body { font-size: 10.5pt; }
  main { max-width: none; padding: 0; }
  section { margin-top: 26pt; }
  h2, h3 { break-after: avoid; }
  .tools, #more { display: none; }
  figure, .card, .sample h3, tr, .warnings { break-inside: avoid; }
  .scroll { overflow: visible; background: none; }
  .scroll th:first-child { position: static; }
  table { font-size: 8pt; }
  th, td { padding: 4pt 3pt; }
  thead th, td small { font-size: 7pt; }
  tbody th { min-width: 0; }
  .long .prompt { position: static; mask-image: none; }
  pre, .prompt { max-height: none; white-space: pre-wrap; overflow: visible; }
}
"""
