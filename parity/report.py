"""Opens report.html in headless Chromium, as a reader would, and checks it.

    python parity/report.py runs/tutorial/report.html [more pages] [--out shots]

Checked in light and dark, on a wide screen and a phone, and in print: no console message, no request that
leaves the page, nothing wider than the screen, and that the temperature slider shows the softmax that is
computed here from the page's own logits. With --out the screenshots and the PDF are kept for looking at.

Needs Chromium (--chromium, $CHROMIUM, or on the path) and nothing else but Python's own library. Without
Chromium it says SKIPPED and ends with code 77: that is not a pass.
"""

import argparse
import base64
import json
import math
import os
import pathlib
import select
import shutil
import subprocess
import sys
import tempfile
import time

SKIPPED = 77
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
]
VIEWS = [
    ("wide-light", 1280, 900, "light"),
    ("wide-dark", 1280, 900, "dark"),
    ("phone-light", 390, 844, "light"),
    ("phone-dark", 390, 844, "dark"),
]


class Browser:
    """Chromium's DevTools protocol over its pipe: JSON messages that end with a zero byte."""

    def __init__(self, program, profile):
        to_read, self.write_end = os.pipe()
        self.read_end, to_write = os.pipe()

        def connect():
            # The protocol's file numbers are 3 and 4; first out of the way of each other.
            a, b = os.dup2(to_read, 103), os.dup2(to_write, 104)
            os.dup2(a, 3)
            os.dup2(b, 4)

        self.process = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={profile}"],
            preexec_fn=connect,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self.buffer = b""
        self.next_id = 0
        self.events = []
        self.session = None

    def message(self, seconds):
        end = time.monotonic() + seconds
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.read_end], [], [], max(0, end - time.monotonic()))
            if not ready:
                return None
            part = os.read(self.read_end, 1 << 20)
            if not part:
                raise RuntimeError("Chromium ended")
            self.buffer += part
        line, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(line)

    def call(self, method, **params):
        self.next_id += 1
        message = {"id": self.next_id, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write_end, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.message(60)
            if answer is None:
                raise RuntimeError(f"{method}: no answer within a minute")
            if answer.get("id") == self.next_id:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self.events.append(answer)

    def wait_for(self, method, seconds=60):
        end = time.monotonic() + seconds
        while not any(event.get("method") == method for event in self.events):
            event = self.message(max(0, end - time.monotonic()))
            if event is None:
                raise RuntimeError(f"no {method} within {seconds} s")
            self.events.append(event)

    def run(self, script):
        result = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in result:
            raise RuntimeError(f"{script}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def open(self, page):
        self.events = []
        self.call("Page.navigate", url=page.resolve().as_uri())
        self.wait_for("Page.loadEventFired")

    def complaints(self):
        """What the console, uncaught errors and the network have to say."""
        found = []
        for event in self.events:
            method, params = event.get("method"), event.get("params", {})
            if method in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
                found.append(f"{method}: {json.dumps(params)[:400]}")
            if method == "Network.requestWillBeSent":
                url = params["request"]["url"]
                if not url.startswith(("file:", "data:")):
                    found.append(f"a request to {url}")
        return found

    def close(self):
        try:
            self.session = None
            self.call("Browser.close")
        except (RuntimeError, OSError):
            self.process.kill()
        self.process.wait(20)


def view(browser, width, height, scheme):
    browser.call(
        "Emulation.setDeviceMetricsOverride",
        width=width,
        height=height,
        deviceScaleFactor=1,
        mobile=width < 600,
    )
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.call("Emulation.setEmulatedMedia", media="screen", features=features)


def screenshot(browser, path, width):
    height = math.ceil(browser.run("document.documentElement.scrollHeight"))
    clip = {"x": 0, "y": 0, "width": width, "height": min(height, 16000), "scale": 1}
    shot = browser.call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
    path.write_bytes(base64.b64decode(shot["data"]))


def softmax(logits, temperature):
    shifted = [(logit - max(logits)) / temperature for logit in logits]
    weights = [math.exp(value) for value in shifted]
    return [weight / sum(weights) for weight in weights]


def check_slider(browser):
    """The slider's figures against the softmax of the page's logits. The number of figures compared."""
    samples = browser.run("document.getElementById('soft-data')?.textContent")
    if samples is None:
        return 0
    data = json.loads(samples)
    compared = 0
    seen = set()
    students = browser.run("document.getElementById('student').options.length")
    for position, student in ((0, 0), (250, students - 1), (500, 0), (1000, students - 1)):
        browser.run(
            "(() => { const s = document.getElementById('student');"
            f" s.selectedIndex = {student}; s.dispatchEvent(new Event('change', {{bubbles: true}})); }})()"
        )
        browser.run(
            "(() => { const s = document.getElementById('temperature');"
            f" s.value = {position}; s.dispatchEvent(new Event('input', {{bubbles: true}})); }})()"
        )
        temperature = float(browser.run("document.getElementById('temperature').dataset.value"))
        shown = browser.run(
            "[...document.querySelectorAll('.soft [data-who]')].map(e => "
            "[+e.dataset.image, +e.dataset.who, +e.dataset.class, e.querySelector('.share').textContent,"
            " e.querySelector('.bar').style.width])"
        )
        if {who for _, who, *_ in shown} != {0, student + 1}:
            raise RuntimeError("the page does not show the student that was chosen")
        for image, who, label, text, width in shown:
            share = 100 * softmax(data["logits"][who][image], temperature)[label]
            for figure, tolerance in ((float(text.rstrip(" %")), 0.0501), (float(width[:-1]), 0.02)):
                if abs(figure - share) > tolerance:
                    raise RuntimeError(
                        f"image {image}, network {who}, class {label} at T {temperature}: "
                        f"the page shows {text} ({width}), expected {share:.3f} %"
                    )
                compared += 1
        seen.add(json.dumps(shown))
    if len(seen) < 4:
        raise RuntimeError("the slider does not change the figures")
    return compared


def check(browser, page, out):
    problems = []
    for name, width, height, scheme in VIEWS:
        view(browser, width, height, scheme)
        browser.open(page)
        overflow = browser.run("document.documentElement.scrollWidth")
        if overflow > width:
            wide = browser.run(
                "[...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > "
                f"{width} + 1 && !e.closest('.scroll, pre')).slice(0, 5).map(e => e.outerHTML.slice(0, 120))"
            )
            problems.append(f"{name}: {overflow} px wide on a screen of {width}: {wide}")
        ground = browser.run("getComputedStyle(document.body).backgroundColor")
        light = sum(int(part) for part in ground[4:-1].split(",")) > 3 * 128
        if light != (scheme == "light"):
            problems.append(f"{name}: the ground is {ground}")
        if out:
            screenshot(browser, out / f"{page.parent.name}-{page.stem}-{name}.png", width)
        compared = check_slider(browser)
        problems += [f"{name}: {text}" for text in browser.complaints()]
    browser.call("Emulation.clearDeviceMetricsOverride")
    browser.call("Emulation.setEmulatedMedia", media="", features=[])
    browser.open(page)
    printed = browser.call("Page.printToPDF", preferCSSPageSize=True)
    pdf = base64.b64decode(printed["data"])
    if not pdf.startswith(b"%PDF"):
        problems.append("it can't be printed")
    if out:
        (out / f"{page.parent.name}-{page.stem}.pdf").write_bytes(pdf)
    return problems, compared


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pages", nargs="+", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, help="keep screenshots and PDFs here")
    parser.add_argument("--chromium", default=os.environ.get("CHROMIUM"))
    options = parser.parse_args()
    names = ("chromium", "chromium-browser", "google-chrome")
    program = options.chromium or next(filter(None, map(shutil.which, names)), None)
    if program is None:
        print("SKIPPED: no Chromium here; give it with --chromium or $CHROMIUM", file=sys.stderr)
        sys.exit(SKIPPED)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
    failed = False
    with tempfile.TemporaryDirectory() as profile:
        browser = Browser(program, profile)
        try:
            target = browser.call("Target.createTarget", url="about:blank")["targetId"]
            attached = browser.call("Target.attachToTarget", targetId=target, flatten=True)
            browser.session = attached["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                browser.call(f"{domain}.enable")
            for page in options.pages:
                problems, compared = check(browser, page, options.out)
                failed |= bool(problems)
                for problem in problems:
                    print(f"{page}: {problem}")
                slider = f"the slider's {compared} figures are right" if compared else "no slider on it"
                print(f"{page}: {len(problems)} problems in {len(VIEWS)} views and print; {slider}")
        finally:
            browser.close()
    sys.exit(failed)


if __name__ == "__main__":
    main()
