"""A headless Chromium, told over its DevTools pipe what to show: for tests of pages. And PNG, as far as
Chromium writes it, as pixels."""

import base64
import collections
import json
import os
import shutil
import struct
import subprocess
import tempfile
import zlib


def program():
    """The browser's path; None: there is none."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if shutil.which(name):
            return shutil.which(name)
    return None


class Browser:
    """with Browser() as b: b.open(path, width, dark) shows a file; then picture() and ask()."""

    def __enter__(self):
        self.folder = tempfile.mkdtemp(prefix="fkv-browser-")
        self.requests = []
        to_read, self.to = os.pipe()
        self.back, back_write = os.pipe()
        args = [program(), "--headless=new", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
                "--disable-dev-shm-usage", "--disable-background-networking", "--remote-debugging-pipe",
                # The pages are ours, and neither root nor a container may have a sandbox.
                "--no-sandbox", "--force-device-scale-factor=1", "--user-data-dir=" + self.folder]

        def streams():
            # Far from 3 and 4 first: a pipe's end may be one of them.
            os.dup2(to_read, 103)
            os.dup2(back_write, 104)
            os.dup2(103, 3)
            os.dup2(104, 4)

        self.process = subprocess.Popen([*args, "about:blank"], stdin=subprocess.DEVNULL,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, close_fds=False,
                                        preexec_fn=streams)
        os.close(to_read)
        os.close(back_write)
        self.rest, self.number, self.session = b"", 0, None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(domain + ".enable")
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        os.close(self.to)
        os.close(self.back)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _message(self):
        while b"\0" not in self.rest:
            more = os.read(self.back, 1 << 16)
            assert more, "the browser ended"
            self.rest += more
        one, self.rest = self.rest.split(b"\0", 1)
        message = json.loads(one.decode("utf-8"))
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(message["params"]["request"]["url"])
        return message

    def call(self, method, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode("utf-8") + b"\0")
        while True:
            answer = self._message()
            if answer.get("id") == self.number:
                assert "error" not in answer, (method, answer)
                return answer["result"]

    def open(self, path, width, dark=False):
        """The whole page, however long, in a window of that width."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia",
                  features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        self.call("Page.navigate", url="file://" + os.path.abspath(path))
        while self._message().get("method") != "Page.loadEventFired":
            pass
        height = self.ask("document.documentElement.scrollHeight")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                  mobile=False)

    def ask(self, expression):
        """What an expression of JavaScript gives; the page's policy is no matter here."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def picture(self):
        """PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])


def pixels(png):
    """(width, height, rows): rows of (r, g, b) bytes, from a PNG of 8 bits without interlace: RGB, RGBA or a
    palette."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    at, packed, palette = 8, b"", b""
    while at < len(png):
        n, kind = struct.unpack(">I4s", png[at : at + 8])
        data = png[at + 8 : at + 8 + n]
        if kind == b"IHDR":
            width, height, depth, colour, _, _, interlace = struct.unpack(">IIBBBBB", data)
            assert depth == 8 and colour in (0, 2, 3, 6) and not interlace, (depth, colour)
        elif kind == b"PLTE":
            palette = data
        elif kind == b"IDAT":
            packed += data
        at += 12 + n
    size = {0: 1, 2: 3, 3: 1, 6: 4}[colour]
    raw, stride, before, rows = zlib.decompress(packed), width * size, bytearray(width * size), []
    for y in range(height):
        kind, line = raw[y * (stride + 1)], bytearray(raw[y * (stride + 1) + 1 : (y + 1) * (stride + 1)])
        unfilter(kind, line, before, size)
        before = line
        if colour == 3:
            line = b"".join(palette[3 * i : 3 * i + 3] for i in line)
        elif colour == 0:
            line = b"".join(bytes((i, i, i)) for i in line)
        elif colour == 6:
            line = bytes(b for i, b in enumerate(line) if i % 4 != 3)
        rows.append(bytes(line))
    return width, height, rows


def unfilter(kind, line, before, size):
    for i in range(len(line) if kind else 0):
        a = line[i - size] if i >= size else 0
        b, c = before[i], before[i - size] if i >= size else 0
        if kind == 1:
            guess = a
        elif kind == 2:
            guess = b
        elif kind == 3:
            guess = (a + b) // 2
        else:
            p = a + b - c
            guess = min((abs(p - a), 0, a), (abs(p - b), 1, b), (abs(p - c), 2, c))[2]
        line[i] = (line[i] + guess) & 255


def packed(width, height, rows):
    """The same as a small PNG: of 256 colours, those that are there most."""
    coarse = bytes(min(255, (i + 8) // 17 * 17) for i in range(256))
    rows = [row.translate(coarse) for row in rows]
    counts = collections.Counter()
    for row in rows:
        counts.update(zip(row[0::3], row[1::3], row[2::3]))
    palette = [colour for colour, _ in counts.most_common(256)]
    index = {colour: i for i, colour in enumerate(palette)}
    for colour in counts:
        if colour not in index:
            index[colour] = min(range(256), key=lambda i: sum(abs(a - b) for a, b in zip(palette[i], colour)))

    def chunk(kind, data):
        return struct.pack(">I4s", len(data), kind) + data + struct.pack(">I", zlib.crc32(kind + data))

    raw = b"".join(b"\0" + bytes(map(index.get, zip(row[0::3], row[1::3], row[2::3]))) for row in rows)
    head = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    return b"".join([b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", head), chunk(b"PLTE", b"".join(map(bytes, palette))),
                     chunk(b"IDAT", zlib.compress(raw, 9)), chunk(b"IEND", b"")])
