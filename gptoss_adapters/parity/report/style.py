"""The style sheet of the report: two colour schemes, print, any width from a phone's on. No font, no image, no import."""

CSP = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

CSS = """
:root{color-scheme:light dark;--page:#f6f7f9;--card:#fff;--ink:#1b2430;--soft:#5a6675;--line:#dce1e8;--seen:#0072b2;--null:#8a8f98;--bad:#c9480a;
--good:#00664b;--good-bg:#e2f3ec;--look:#7a5200;--look-bg:#fcf0d4;--fail:#9c2f00;--fail-bg:#fde6da;--none:#4a5563;--none-bg:#e9edf2;--mono:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
@media (prefers-color-scheme:dark){:root{--page:#10151c;--card:#18202a;--ink:#e4e9f0;--soft:#9aa7b6;--line:#2c3846;--seen:#56b4e9;--null:#98a2ae;--bad:#ff8f52;
--good:#6fd9b4;--good-bg:#123329;--look:#f2c14e;--look-bg:#352a10;--fail:#ff9d6b;--fail-bg:#3d2013;--none:#b8c2ce;--none-bg:#273240}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:1180px;margin:0 auto;padding:20px 20px 48px}
h1,h2,h3{line-height:1.25;margin:0;overflow-wrap:anywhere}
h1{font-size:15px;font-weight:600;color:var(--soft)}h2{font-size:20px}h3{font-size:15px;margin:26px 0 8px}
p{margin:6px 0;max-width:78ch;overflow-wrap:anywhere}.soft{color:var(--soft)}.small{font-size:13px}
.card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:18px 20px;margin:16px 0}
.verdict{font-size:26px;font-weight:700;letter-spacing:-.01em;margin:2px 0 4px;overflow-wrap:anywhere}
.badge{display:inline-block;font-weight:650;border-radius:6px;padding:2px 9px;overflow-wrap:anywhere}
.good{color:var(--good);background:var(--good-bg)}.look{color:var(--look);background:var(--look-bg)}.fail{color:var(--fail);background:var(--fail-bg)}.none{color:var(--none);background:var(--none-bg)}
.head{display:flex;flex-wrap:wrap;gap:8px 14px;align-items:baseline;justify-content:space-between}
.scroll{overflow-x:auto;max-width:100%}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:6px 10px;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
th{font-size:12.5px;font-weight:600;color:var(--soft);white-space:nowrap}tr:last-child>td{border-bottom:0}
td.n,th.n{text-align:right;white-space:nowrap}td .what{display:block;font-size:12.5px;color:var(--soft);min-width:24ch}
td.state{white-space:nowrap;font-weight:600}td.any{overflow-wrap:anywhere;min-width:16ch}
td.cell,th.cell{white-space:nowrap;text-align:center}.chip{display:inline-block;border-radius:5px;padding:0 7px;font-weight:600;font-size:13px}
.figures{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,330px),1fr));gap:18px 26px;margin-top:10px}
figure{margin:0;min-width:0}figcaption{font-weight:600;margin-bottom:2px}figure p{font-size:13px;color:var(--soft);margin:0 0 4px}
figure>svg{display:block;width:100%;height:auto;overflow:visible}
svg text{font:11px system-ui,-apple-system,"Segoe UI",Roboto,Arial,sans-serif;fill:var(--soft)}svg .label{fill:var(--ink)}svg .note{font-size:10.5px}
.axis,.tick{stroke:var(--soft);fill:none}.grid{stroke:var(--line);fill:none}.mark{stroke:var(--soft);stroke-dasharray:3 3;fill:none}
.line{fill:none;stroke-width:1.6;stroke-linejoin:round}.line.seen{stroke:var(--seen)}.line.null{stroke:var(--null);stroke-dasharray:4 2}
.bar.seen{fill:var(--seen)}.outline{fill:none;stroke-width:1.6}.outline.null{stroke:var(--ink)}
.dot.seen{fill:var(--seen)}.dot.raw{fill:var(--seen);opacity:.3}.dot.rawnull{fill:var(--null);opacity:.3}.cross{fill:none;stroke-width:2}.cross.bad{stroke:var(--bad)}.dot.bad{fill:var(--bad)}.pixels{image-rendering:pixelated}
.key{list-style:none;margin:2px 0 0;padding:0;display:flex;flex-wrap:wrap;gap:2px 16px;font-size:12.5px;color:var(--soft)}.key svg{width:18px;height:10px;margin-right:5px}
details{margin-top:4px}summary{cursor:pointer;font-size:13px;color:var(--soft)}details table{font-size:12.5px}details th,details td{padding:2px 8px}
pre{font:12.5px/1.5 var(--mono);background:var(--page);border:1px solid var(--line);border-radius:7px;padding:10px 12px;margin:8px 0;white-space:pre-wrap;overflow-wrap:anywhere}
code{font:.9em var(--mono);overflow-wrap:anywhere}
.faults{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,215px),1fr));gap:3px 18px;margin:8px 0 0;padding:0;list-style:none;font-size:13px}
.faults li{display:flex;gap:7px;min-width:0}.faults b{flex:none;width:1.2em;text-align:center}.faults span{min-width:0;overflow-wrap:anywhere}.faults i{font-style:normal;color:var(--soft);margin-left:auto;white-space:nowrap}
dl{display:grid;grid-template-columns:fit-content(40%) minmax(0,1fr);gap:3px 16px;margin:8px 0}dt{color:var(--soft);min-width:0;overflow-wrap:anywhere}dd{margin:0;overflow-wrap:anywhere}
.meter{display:inline-block;width:72px;height:8px;border-radius:4px;background:var(--line);vertical-align:middle;margin-right:7px;overflow:hidden}.meter i{display:block;height:100%;background:var(--seen)}
footer{color:var(--soft);font-size:13px;margin-top:20px}
@media (max-width:560px){main{padding:12px 10px 32px}.card{padding:14px 13px;border-radius:8px}.verdict{font-size:21px}dl{grid-template-columns:minmax(0,1fr)}dd{margin-bottom:6px}}
@media print{:root{--page:#fff;--card:#fff;--ink:#000;--soft:#444;--line:#bbb;--seen:#0072b2;--null:#777;--good:#00664b;--good-bg:#fff;--look:#7a5200;--look-bg:#fff;--fail:#9c2f00;--fail-bg:#fff;--none:#444;--none-bg:#fff}
body{font-size:11px}main{max-width:none;padding:0}.card{border-color:#999;padding:8px 10px;margin:8px 0}.card>.head,figure,tr,h3{break-inside:avoid}h3{break-after:avoid}
.badge,.chip{border:1px solid currentColor}.scroll{overflow:visible}th,td{padding:3px 6px}td .what{min-width:0}.figures{grid-template-columns:1fr 1fr}details:not([open]){display:none}}
"""
