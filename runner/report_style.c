/* How report.html looks: one style sheet, in both themes and at any width. Colours carry no meaning alone:
 * what is coloured is also in the same order in a table, or has a label. */
#include "runner/report_parts.h"

enum { NAME = 200 }; /* bytes of a name that are shown */

static const char colours[] =
    ":root{color-scheme:light dark;--bg:#fcfcfb;--panel:#f3f4f2;--ink:#1b2026;--soft:#59626c;--line:#dadeda;"
    "--accent:#0b57b0;--good:#0a6b52;--warn:#9a4a00;--bad:#b3261e;--onbar:#fff;"
    "--start:#6b7580;--wait:#86672f;--sample:#93560f;--profile:#a8451f;--load:#8c3b7a;--calibrate:#5b4bb3;"
    "--plan:#7a4fa3;--prefill:#1f5fbf;--decode:#0b7060;--other:#66707a;--finish:#3f4a55;"
    "--rank:#8a949e;--slow:#c4432b;--mean:#0a7d6c;--cell:#0b57b0}\n"
    "@media (prefers-color-scheme:dark){:root{--bg:#101418;--panel:#181d23;--ink:#e4e9ee;--soft:#9ca7b2;"
    "--line:#2c343c;--accent:#7ab6ff;--good:#4fd0a5;--warn:#f0b060;--bad:#ff8a80;--onbar:#101418;"
    "--start:#a9b4bf;--wait:#d3b67a;--sample:#e0a75e;--profile:#ee9070;--load:#d794c8;--calibrate:#a99bf5;"
    "--plan:#c59bea;--prefill:#7db4ff;--decode:#4fd0b5;--other:#98a3ae;--finish:#c9d2da;"
    "--rank:#77828d;--slow:#ff8a6b;--mean:#3fcab3;--cell:#6cb2ff}}\n";

static const char text[] =
    "*{box-sizing:border-box}\n"
    "html{-webkit-text-size-adjust:100%}\n"
    "body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.5 system-ui,-apple-system,\"Segoe UI\","
    "\"DejaVu Sans\",sans-serif;font-variant-numeric:tabular-nums}\n"
    "main,header,footer{max-width:1040px;margin:0 auto;padding:0 28px}\n"
    "header{padding-top:44px}header p{max-width:none}\n"
    "h1{font-size:32px;line-height:1.2;margin:2px 0 10px;font-weight:650;overflow-wrap:anywhere}\n"
    "h2{font-size:20px;line-height:1.3;margin:0 0 4px;font-weight:650}\n"
    "h3{font-size:15px;margin:0;font-weight:600}\n"
    "p{margin:0 0 14px;max-width:72ch}\n"
    "section{border-top:1px solid var(--line);padding:28px 0 32px}\n"
    ".kicker{color:var(--soft);font-size:14px;margin:0}\n"
    ".soft,.lead{color:var(--soft)}.lead{margin-bottom:18px}\n"
    ".badge{display:inline-block;border:1.5px solid currentColor;border-radius:5px;padding:1px "
    "9px;font-size:14px;"
    "font-weight:600;margin-right:8px}\n"
    ".good{color:var(--good)}.warn{color:var(--warn)}.bad{color:var(--bad)}\n"
    ".figures{list-style:none;display:grid;grid-template-columns:repeat(4,minmax(0,1fr));gap:1px;"
    "margin:24px 0 32px;padding:0;background:var(--line);border:1px solid var(--line);border-radius:8px;"
    "overflow:hidden}\n"
    ".figures.many{grid-template-columns:repeat(3,minmax(0,1fr))}\n"
    ".figures li{background:var(--bg);padding:14px 18px}\n"
    ".figures b{display:block;font-size:26px;line-height:1.25;font-weight:600}\n"
    ".figures span{color:var(--soft);font-size:14px}\n"
    "dl{display:grid;grid-template-columns:minmax(90px,max-content) 1fr;gap:6px 24px;margin:0}\n"
    "dl.two{grid-template-columns:max-content 1fr max-content 1fr}\n"
    "dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}\n"
    "footer{color:var(--soft);font-size:14px;padding-bottom:48px;border-top:0}\n";

static const char tables[] =
    ".scroll{overflow-x:auto}\n"
    "table{border-collapse:collapse;width:100%;font-size:15px}\n"
    "th,td{padding:6px 14px 6px 0;text-align:left;vertical-align:baseline;border-bottom:1px solid "
    "var(--line)}\n"
    "th{font-weight:600}thead th{color:var(--soft);font-size:13px;font-weight:500;vertical-align:bottom}\n"
    "tbody th{font-weight:500;white-space:nowrap}\n"
    ".n{text-align:right;white-space:nowrap}th:last-child,td:last-child{padding-right:0}\n"
    "tfoot td,tfoot th{border-bottom:0;font-weight:600}\n"
    "tbody:last-child tr:last-child>*{border-bottom:0}thead .n{white-space:normal}\n"
    ".small{max-width:620px;margin-top:22px}\n"
    "td.what{color:var(--soft);width:99%}\n"
    "td.long{overflow-wrap:anywhere}\n"
    "details{margin-top:16px}summary{cursor:pointer;color:var(--accent);font-size:14px;padding:4px 0}\n"
    "details .scroll{max-height:420px;overflow:auto;margin-top:6px}\n"
    "details table{font-size:14px}\n"
    "pre{background:var(--panel);border-radius:8px;padding:16px "
    "18px;overflow:auto;max-height:560px;margin:8px 0 0;"
    "font:13px/1.5 ui-monospace,\"DejaVu Sans Mono\",monospace}\n"
    "a:focus-visible,summary:focus-visible{outline:2px solid var(--accent);outline-offset:2px}\n";

static const char charts[] =
    "figure{margin:0}figcaption{margin-bottom:8px;display:flex;flex-wrap:wrap;gap:2px "
    "14px;align-items:baseline}\n"
    "figcaption .soft{font-size:14px}\n"
    "svg{display:block;width:100%}\n"
    ".bar{display:flex;gap:1px;height:46px;border-radius:4px;overflow:hidden;margin:0 0 20px}\n"
    ".seg{min-width:0;overflow:hidden;white-space:nowrap;color:var(--onbar);font-size:14px;line-height:1.25;"
    "padding:6px 0}\n"
    ".seg b,.seg i{display:block;font-style:normal;padding-left:9px}.seg b{font-weight:600}\n"
    ".key{display:inline-block;width:12px;height:12px;border-radius:3px;margin-right:9px}\n"
    ".plot{display:grid;grid-template-columns:52px minmax(0,1fr);gap:4px 8px}\n"
    ".plot svg{border-bottom:1px solid var(--soft)}\n"
    ".ys,.xs{display:flex;justify-content:space-between;color:var(--soft);font-size:12px;line-height:1}\n"
    ".ys{flex-direction:column;text-align:right;margin:-5px 0}\n"
    ".xs{grid-column:2}.xs.each span{flex:1;text-align:center}.xs.each .first{text-align:left}\n"
    ".ys.each{margin:0}.ys.each span{flex:1;display:flex;align-items:center;justify-content:flex-end}\n"
    ".ys.each .first{align-items:flex-start}\n"
    ".xname{grid-column:2;color:var(--soft);font-size:12px;text-align:center}\n"
    ".grid{stroke:var(--line);stroke-width:1;vector-effect:non-scaling-stroke}\n"
    ".area{fill:var(--accent);fill-opacity:.16}\n"
    ".stroke{fill:none;stroke:var(--accent);stroke-width:2;vector-effect:non-scaling-stroke}\n"
    ".pair{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:30px "
    "36px;margin-bottom:20px}.pair.stack{grid-template-columns:minmax(0,1fr)}\n"
    ".pair figcaption{flex-direction:column}\n"
    ".rank{fill:var(--rank)}.slow{fill:var(--slow)}.mean{fill:var(--mean)}.cell{fill:var(--cell)}\n"
    ".hist td.track{width:60%;padding-right:14px}.hist svg{height:13px}\n"
    ".hist rect{fill:var(--accent)}\n"
    ".legend{display:flex;flex-wrap:wrap;gap:4px 20px;color:var(--soft);font-size:13px;margin:0 0 16px}\n"
    ".legend span{white-space:nowrap}.legend "
    "svg{display:inline-block;width:16px;height:10px;margin-right:7px}\n"
    ".scale{display:flex;gap:4px;margin:14px 0 0 60px;color:var(--soft);font-size:12px;max-width:380px}\n"
    ".scale span{flex:1;text-align:center}.scale svg{height:12px;margin-bottom:3px}\n";

static const char narrow[] =
    "@media (max-width:720px){\n"
    "main,header,footer{padding:0 18px}header{padding-top:26px}footer{padding-bottom:32px}\n"
    "h1{font-size:25px}section{padding:22px 0 26px}\n"
    ".figures,.figures.many{grid-template-columns:repeat(2,minmax(0,1fr))}.figures li{padding:11px "
    "14px}.figures "
    "b{font-size:21px}\n"
    ".figures li:last-child:nth-child(odd){grid-column:1/-1}\n"
    ".pair{grid-template-columns:minmax(0,1fr)}\n"
    "dl,dl.two{grid-template-columns:minmax(0,1fr);gap:0}dd{margin-bottom:10px}\n"
    ".scale{margin-left:48px}\n"
    ".seg:not(.wide) b,.seg:not(.wide) i{display:none}\n"
    "td.what,th.what{display:none}.plot{grid-template-columns:40px minmax(0,1fr)}\n"
    "table{font-size:14px}th,td{padding-right:10px}\n"
    "}\n"
    "@media print{body{font-size:12px}section{break-inside:avoid}details .scroll,pre{max-height:none}}\n";

static void style(fkv_markup *m)
{
    fkv_markup_raw(m, colours);
    fkv_markup_raw(m, text);
    fkv_markup_raw(m, tables);
    fkv_markup_raw(m, charts);
    for (int i = 0; i < FKV_STAGES; i++) {
        const char *name = fkv_stage_name((fkv_stage)i);
        fkv_markup_put(m, ".s-%s{background:var(--%s)}\n", name, name);
    }
    fkv_markup_raw(m, narrow);
}

void fkv_report_head(fkv_markup *m, const char *name, const char *what, const char *more)
{
    fkv_markup_put(m,
                   "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n"
                   "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src "
                   "'unsafe-inline'; base-uri 'none'; form-action 'none'\">\n<meta name=\"viewport\" "
                   "content=\"width=device-width,initial-scale=1\">\n<meta name=\"referrer\" "
                   "content=\"no-referrer\">\n<meta name=\"generator\" content=\"fairkv-batch %s\">\n<title>",
                   FKV_VERSION);
    fkv_markup_text(m, name, NAME);
    fkv_markup_put(m, " - fairkv-batch %s</title>\n<style>\n", what);
    style(m);
    fkv_markup_raw(m, more);
    fkv_markup_put(m, "</style></head>\n<body>\n");
}
