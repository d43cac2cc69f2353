"""How the page looks: one style for light, dark and paper. Colours are told apart by those who see few of them, and never tell alone."""

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fbfbf9; --card: #ffffff; --ink: #1b1f24; --soft: #57606a; --rule: #e3e5e8; --axis: #8b949e;
  --mark: #2166ac; --other: #b35806; --recipe: #1b7837; --worse: #b2182b; --ghost: #d9dde2;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #12151a; --card: #1a1e25; --ink: #e8eaed; --soft: #a4adb8; --rule: #2b313a; --axis: #6b7683;
    --mark: #6baed6; --other: #fdae61; --recipe: #74c476; --worse: #f4837d; --ghost: #39414c;
  }
}
@media print {
  :root { --paper: #ffffff; --card: #ffffff; }
  section, figure { break-inside: avoid; }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif;
}
main, header, footer { max-width: 1040px; margin: 0 auto; padding: 0 20px; }
header { padding-top: 36px; }
footer { padding-bottom: 48px; color: var(--soft); font-size: 13px; }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 4px; letter-spacing: -0.01em; }
h2 { font-size: 21px; margin: 0 0 4px; overflow-wrap: anywhere; }
h3 { font-size: 15px; margin: 26px 0 8px; }
p { margin: 6px 0; max-width: 70ch; }
nav ul { list-style: none; display: flex; flex-wrap: wrap; gap: 4px 18px; padding: 0; margin: 14px 0 0; }
a { color: var(--mark); }
:focus-visible { outline: 2px solid var(--mark); outline-offset: 2px; }
section { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 22px 24px; margin: 22px 0; }
figure { margin: 10px 0 0; overflow-x: auto; }
figcaption { color: var(--soft); font-size: 13px; margin-top: 2px; }
.soft { color: var(--soft); }
.wide, .scroll { overflow-x: auto; }
.pair { display: flex; flex-wrap: wrap; gap: 8px 24px; }
.pair figure { flex: 1 1 340px; max-width: 430px; }
.swatch { display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin: 0 4px 0 12px; }
.swatch:first-child { margin-left: 0; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 5px 14px 5px 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
th { color: var(--soft); font-weight: 500; }
td:first-child { white-space: nowrap; }
th.n, td.n { text-align: right; white-space: nowrap; }
td.worse { color: var(--worse); font-weight: 600; }
ol.journal { padding-left: 22px; margin: 6px 0; }
ol.journal li { margin: 8px 0; }
code { font: 13px/1.4 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
details { margin-top: 8px; }
summary { cursor: pointer; color: var(--soft); font-size: 14px; }
svg { display: block; height: auto; max-width: none; }
svg text { fill: var(--ink); font-size: 12px; font-family: inherit; }
svg .soft, svg .tick { fill: var(--soft); }
svg .tick { font-size: 11px; }
svg .strong { font-weight: 600; font-size: 13px; }
svg .number { font-variant-numeric: tabular-nums; }
svg .mark { fill: var(--mark); }
svg .other { fill: var(--other); }
svg .recipe { fill: var(--recipe); }
svg .worse { fill: var(--worse); }
svg .ghost { fill: var(--ghost); }
svg .inner { opacity: 0.65; }
svg .rule { stroke: var(--rule); }
svg .axis { stroke: var(--axis); }
svg .whisker { stroke: var(--ink); stroke-width: 2; }
svg .faint { stroke: var(--axis); }
svg .diamond { fill: var(--card); stroke: var(--other); stroke-width: 2; }
svg .curve { fill: none; stroke: var(--mark); stroke-width: 2; stroke-linejoin: round; }
svg .second { stroke: var(--other); stroke-dasharray: 6 3; }
"""
