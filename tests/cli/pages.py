"""The pages that the program makes: their source, and how they look in a browser."""

import html
import html.parser
import os
import re

import browser
import cli

VOID = {"meta", "br"}


class Page(html.parser.HTMLParser):
    """A page as tags and texts. Every tag must be closed, and nothing may be fetched."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.texts, self.found = [], [], [], {}
        self.source = text
        self.feed(text)
        self.close()
        assert self.open == [], self.open

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        assert tag not in ("script", "link", "img", "iframe", "object", "embed", "base", "form"), tag
        for name, value in attrs.items():
            assert not name.startswith("on") and name not in ("src", "href", "xlink:href"), (tag, attrs)
            assert "url(" not in (value or ""), (tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, (tag, self.open)
        self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    def text(self):
        return " ".join("".join(self.texts).split())

    def section(self, name):
        """The source of a section."""
        return re.search(r'<section id="%s">.*?</section>' % name, self.source, re.S).group(0)

    def rows(self, name):
        """The cells of a section's, or a table's, rows in its tables, as texts."""
        source = self.section(name) if '<section id="%s">' % name in self.source else \
            re.search(r'<table[^>]* id="%s">.*?</table>' % name, self.source, re.S).group(0)
        rows = []
        for row in re.findall(r"<tr[^>]*>(.*?)</tr>", source, re.S):
            cells = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S)
            rows.append([html.unescape(re.sub(r"<[^>]*>", "", c)) for c in cells])
        return rows

    def facts(self, name):
        """What a section's list of terms says."""
        found = re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", self.section(name), re.S)
        return {k: html.unescape(re.sub(r"<[^>]*>", "", v)) for k, v in found}

    def bars(self):
        """Of each bar: [(stage, seconds)]."""
        return [[(a["data-stage"], float(a["data-seconds"])) for a in bar] for bar in self._bars()]

    def _bars(self):
        bars = []
        for _, attrs in self.tags:
            if attrs.get("class") == "bar":
                bars.append([])
            elif "data-seconds" in attrs:
                bars[-1].append(attrs)
        return bars


LOOKS = [("light", 1100, False), ("dark", 1100, True), ("narrow", 390, False)]
BLOCK = 20  # px


def luminance(pixel):
    return (299 * pixel[0] + 587 * pixel[1] + 114 * pixel[2]) // 1000


def blocks(png):
    """(background's luminance, rows of blocks: True where something is drawn)."""
    width, height, rows = browser.pixels(png)
    background = luminance(rows[2][6:9])
    drawn = []
    for top in range(0, height - BLOCK + 1, BLOCK):
        line = []
        for left in range(0, width - BLOCK + 1, BLOCK):
            seen = (luminance(rows[y][3 * x : 3 * x + 3]) for y in range(top, top + BLOCK, 3)
                    for x in range(left, left + BLOCK, 2))
            line.append(any(abs(v - background) > 40 for v in seen))
        drawn.append(line)
    return background, drawn


def likeness(a, b):
    """The share of blocks that two pictures have alike; rows are compared with those near them, since a word
    more may move what is below."""
    same = 0
    for y, row in enumerate(a):
        near = [b[i] for i in range(y - 2, y + 3) if 0 <= i < len(b)]
        same += max((sum(p == q for p, q in zip(row, other)) for other in near), default=0)
    return same / (len(a) * len(a[0]))


def browse():
    if not browser.program():
        raise cli.Skip("chromium is missing")
    return browser.Browser()


def must_look_like(b, page, golden):
    """The page as in the pictures of a folder, and nothing fetched."""
    for name, width, dark in LOOKS:
        b.open(page, width, dark)
        with open(os.path.join(golden, name + ".png"), "rb") as f:
            want = f.read()
        background, drawn = blocks(b.picture())
        was, before = blocks(want)
        assert (background < 60) if dark else (background > 200), (name, background)
        assert abs(background - was) < 20, (name, background, was)
        assert abs(len(drawn) - len(before)) <= 0.05 * len(before), (name, len(drawn), len(before))
        alike = likeness(drawn, before)
        assert alike > 0.9, (name, alike)
    assert all(url == "file://" + os.path.abspath(page) for url in b.requests), b.requests


def must_fit(b, page):
    """Nothing is cut off or lies over something else, at any width."""
    for width in (1100, 800, 390, 320):
        b.open(page, width)
        assert b.ask("document.documentElement.scrollWidth") <= width, width
        wide = b.ask("[...document.querySelectorAll('h1,h2,h3,p,dd,dt,li b,li span,th,td,figcaption')].filter(e=>"
                     "e.scrollWidth>e.clientWidth+1&&e.clientWidth).map(e=>e.outerHTML)")
        assert wide == [], (width, wide)
        # Sections follow each other, and so do the numbers of an axis.
        tops = b.ask("[...document.querySelectorAll('section')].map(e=>[e.getBoundingClientRect().top,"
                     "e.getBoundingClientRect().bottom])")
        assert all(x[1] <= y[0] + 0.5 for x, y in zip(tops, tops[1:])), tops
        over = b.ask("[...document.querySelectorAll('.xs,.ys')].filter(a=>[...a.children].some((e,i,all)=>i&&(()=>{"
                     "const p=all[i-1].getBoundingClientRect(),q=e.getBoundingClientRect();"
                     "return p.right>q.left+.5&&p.bottom>q.top+.5})())).length")
        assert over == 0, (width, over)


CONTRAST = """(()=>{const l=c=>{const v=c.match(/[0-9.]+/g).slice(0,3).map(x=>{x/=255;
  return x<=.03928?x/12.92:((x+.055)/1.055)**2.4});return .2126*v[0]+.7152*v[1]+.0722*v[2]};
  const behind=e=>{for(;e;e=e.parentElement){const c=getComputedStyle(e).backgroundColor;
  if(!/, 0\\)$/.test(c))return c}return 'rgb(255,255,255)'};
  return [...document.querySelectorAll('body *')].filter(e=>!e.closest('svg')&&[...e.childNodes].some(n=>
  n.nodeType==3&&n.data.trim())).map(e=>{const a=l(getComputedStyle(e).color),b=l(behind(e));
  return [(Math.max(a,b)+.05)/(Math.min(a,b)+.05),e.outerHTML.slice(0,90)]}).filter(x=>x[0]<4.5)})()"""


def must_be_legible(b, page):
    """Words can be read on what is behind them."""
    for dark in (False, True):
        b.open(page, 1100, dark)
        pale = b.ask(CONTRAST)
        assert pale == [], (dark, pale[:3])


def make_pictures(page, golden):
    os.makedirs(golden, exist_ok=True)
    with browser.Browser() as b:
        for name, width, dark in LOOKS:
            b.open(page, width, dark)
            with open(os.path.join(golden, name + ".png"), "wb") as f:
                f.write(browser.packed(*browser.pixels(b.picture())))
