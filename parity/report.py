"""Opens a report in headless Chromium, as a reader would, and checks what only a browser can tell.

    python parity/report.py runs/tutorial/report.html [more pages] [--out shots]
    python parity/report.py runs/tutorial/report.html --self-test

Every page is opened four times: light and dark, 1280 and 390 pixels wide. In each view

- the console stays empty, no script fails, and no request leaves the page,
- nothing is wider than the screen,
- the page follows the system's choice of light or dark,
- text stands out from what is behind it as WCAG 2.1 asks for level AA (4.5 to 1; large text 3 to 1),
- the temperature slider and the choice of a student show the softmax that is computed here from the page's logits.

Afterwards the page is printed to PDF. With --out the screenshots and the PDF are kept for looking at.
--self-test breaks the page in one way for each check and makes sure that the check finds it.

It needs Python alone and Chromium (--chromium, $CHROMIUM, or on the path). Exit codes: 0 nothing was found; 1 something was
found, or Chromium failed; 2 wrong command line; 77 there is no Chromium, so that nothing was checked.
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

NO_BROWSER = 77
PROGRAMS = ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
]
VIEWS = [
    ("light, 1280 pixels", "wide-light", 1280, 900, "light"),
    ("dark, 1280 pixels", "wide-dark", 1280, 900, "dark"),
    ("light, 390 pixels", "phone-light", 390, 844, "light"),
    ("dark, 390 pixels", "phone-dark", 390, 844, "dark"),
]
# At most this many places are named for one kind of problem.
NAMED = 5
# Seconds after which Chromium counts as hanging; on a busy machine a page may take a minute.
PATIENCE = 600


class BrowserError(Exception):
    """Chromium did not do what it was asked; the message says what that was."""


class Browser:
    """One Chromium, driven by its DevTools protocol over a pipe: JSON messages, each ended by a zero byte."""

    def __init__(self, program, folder):
        to_read, self.write_end = os.pipe()
        self.read_end, to_write = os.pipe()

        def connect():
            # The protocol's file numbers are 3 and 4; both ends first get out of the way of each other.
            first, second = os.dup2(to_read, 103), os.dup2(to_write, 104)
            os.dup2(first, 3)
            os.dup2(second, 4)

        self.program = program
        self.log = pathlib.Path(folder) / "stderr"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [program, *FLAGS, f"--user-data-dir={folder}/profile"],
                preexec_fn=connect,
                close_fds=False,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
        os.close(to_read)
        os.close(to_write)
        self.buffer = b""
        self.next_id = 0
        self.events = []
        self.session = None

    def start(self):
        """Opens the one tab in which everything happens."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        # The empty page is loaded, too: reported later, that would pass for a report's.
        while self.run("document.readyState") != "complete":
            time.sleep(0.01)

    def message(self, seconds):
        """The next message, or None if none arrives within `seconds`."""
        end = time.monotonic() + seconds
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.read_end], [], [], max(0, end - time.monotonic()))
            if not ready:
                return None
            part = os.read(self.read_end, 1 << 20)
            if not part:
                said = self.log.read_text(errors="replace").strip().splitlines()[-5:]
                raise BrowserError("\n".join([f"{self.program} ended by itself; its last lines:", *said]))
            self.buffer += part
        line, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(line)

    def call(self, method, **params):
        self.next_id += 1
        message = {"id": self.next_id, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        try:
            os.write(self.write_end, json.dumps(message).encode() + b"\0")
        except BrokenPipeError:
            self.message(1)
        while True:
            answer = self.message(PATIENCE)
            if answer is None:
                raise BrowserError(f"{self.program} gave no answer to {method} within {PATIENCE} seconds")
            if answer.get("id") == self.next_id:
                if "error" in answer:
                    raise BrowserError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self.events.append(answer)

    def wait_for(self, method, seconds=PATIENCE):
        end = time.monotonic() + seconds
        while not any(event.get("method") == method for event in self.events):
            event = self.message(max(0, end - time.monotonic()))
            if event is None:
                raise BrowserError(f"{self.program} did not report {method} within {seconds} seconds")
            self.events.append(event)

    def run(self, script):
        """The value of a JavaScript expression in the page."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise BrowserError(f"{script}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def open(self, page):
        self.events = []
        self.call("Page.navigate", url=page.resolve().as_uri())
        self.wait_for("Page.loadEventFired")

    def close(self):
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.read_end)
        os.close(self.write_end)


# --- The checks: each gives a list of problems ----------------------------------------------------


def complaints(browser):
    """What the console, scripts that failed, and the network said since the page was opened."""
    found = []
    for event in browser.events:
        method, params = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            text = details.get("exception", {}).get("description", details["text"])
            found.append(f"a script failed: {text}")
        elif method == "Runtime.consoleAPICalled":
            words = [str(part.get("value", part.get("description"))) for part in params["args"]]
            found.append(f"the console shows ({params['type']}): {' '.join(words)}")
        elif method == "Log.entryAdded":
            entry = params["entry"]
            found.append(f"the console shows ({entry['level']}): {entry['text']} {entry.get('url', '')}")
        elif method == "Network.requestWillBeSent":
            url = params["request"]["url"]
            if not url.startswith(("file:", "data:")):
                found.append(f"the page requests {url}; it must need no network")
    return found


def check_width(browser, width):
    wide = browser.run("document.documentElement.scrollWidth")
    if wide <= width:
        return []
    elements = browser.run(
        "[...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > "
        f"{width} + 1 && !e.closest('.scroll, pre')).slice(0, {NAMED}).map(e => e.outerHTML.slice(0, 120))"
    )
    return [f"the page is {wide} pixels wide on a screen of {width}; beyond its edge: {elements}"]


def check_scheme(browser, scheme):
    ground = browser.run("getComputedStyle(document.body).backgroundColor")
    light = sum(int(part) for part in ground[4:-1].split(",")) > 3 * 128
    if light == (scheme == "light"):
        return []
    return [f"the system asks for a {scheme} page, and its background is {ground}"]


# For each visible text: its colour against the last opaque thing below it. In a chart that is a rectangle drawn earlier.
CONTRAST = """
(() => {
  const parse = text => {
    const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number);
    return text.startsWith('rgb') ? [r, g, b, a] : [255 * r, 255 * g, 255 * b, a];
  };
  const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
  const faded = (colour, opacity) => [...colour.slice(0, 3), colour[3] * opacity];
  const luminance = colour => {
    const [r, g, b] = colour.map(c => c / 255).map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = element => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) {
      const colour = parse(getComputedStyle(e).backgroundColor);
      layers.unshift(colour);
      if (colour[3] === 1) { break; }
    }
    return layers.reduce((below, top) => over(top, below), [255, 255, 255, 1]);
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.data.trim() || !element.checkVisibility({ visibilityProperty: true })) { continue; }
    const range = document.createRange();
    range.selectNodeContents(node);
    const box = range.getBoundingClientRect();
    if (!box.width || !box.height || element.closest('title, script, style, option')) { continue; }
    const style = getComputedStyle(element);
    const svg = element.closest('svg');
    let below = ground(element);
    let colour = parse(style.color);
    if (svg) {
      const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
      for (const shape of svg.querySelectorAll('rect')) {
        if (!(shape.compareDocumentPosition(element) & Node.DOCUMENT_POSITION_FOLLOWING)) { continue; }
        const s = shape.getBoundingClientRect();
        if (x < s.left || x > s.right || y < s.top || y > s.bottom) { continue; }
        const paint = getComputedStyle(shape);
        if (!paint.fill.match(/^(rgb|color)/)) { continue; }
        below = over(faded(parse(paint.fill), paint.fillOpacity * paint.opacity), below);
      }
      colour = parse(style.fill);
    }
    const lights = [luminance(over(colour, below)), luminance(below)].sort((a, b) => b - a);
    const ratio = (lights[0] + 0.05) / (lights[1] + 0.05);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    const wanted = large ? 3 : 4.5;
    if (ratio < wanted) { found.push([ratio, wanted, node.data.trim().slice(0, 40), style.color, `rgb(${below.slice(0, 3).map(Math.round)})`]); }
  }
  return found.sort((a, b) => a[0] - b[0]);
})()
"""


def check_contrast(browser):
    found = browser.run(CONTRAST)
    problems = [
        f"the text {text!r} has a contrast of {ratio:.2f} to 1 with {ground}, wanted are at least {wanted}"
        for ratio, wanted, text, _, ground in found[:NAMED]
    ]
    if len(found) > NAMED:
        problems.append(f"... and {len(found) - NAMED} more texts with too little contrast")
    return problems


def softmax(logits, temperature):
    shifted = [(logit - max(logits)) / temperature for logit in logits]
    weights = [math.exp(value) for value in shifted]
    return [weight / sum(weights) for weight in weights]


def set_control(browser, control, what, value, event):
    browser.run(
        f"(() => {{ const control = document.getElementById('{control}'); control.{what} = {value};"
        f" control.dispatchEvent(new Event('{event}', {{bubbles: true}})); }})()"
    )


def check_slider(browser):
    """Moves the slider and chooses students; every figure and bar must be the softmax of the page's logits."""
    samples = browser.run("document.getElementById('soft-data')?.textContent")
    if samples is None:
        return ["there is no temperature slider (with --no-slider that is no problem)"]
    data = json.loads(samples)
    students = browser.run("document.getElementById('student').options.length")
    for position, student in ((0, 0), (250, students - 1), (500, 0), (1000, students - 1)):
        set_control(browser, "student", "selectedIndex", student, "change")
        set_control(browser, "temperature", "value", position, "input")
        temperature = float(browser.run("document.getElementById('temperature').dataset.value"))
        # The slider's thousand steps go from 1 to the highest temperature, evenly in the logarithm.
        wanted = data["highest"] ** (position / 1000)
        if abs(temperature - wanted) > 0.0501:
            return [f"the slider was moved to T = {wanted:.1f}, and the page shows T = {temperature}"]
        shown = browser.run(
            "[...document.querySelectorAll('.soft [data-who]')].map(e => "
            "[+e.dataset.image, +e.dataset.who, +e.dataset.class, e.querySelector('.share').textContent,"
            " e.querySelector('.bar').style.width])"
        )
        if {who for _, who, *_ in shown} != {0, student + 1}:
            return [f"student {student + 1} was chosen, and the page shows others"]
        for image, who, label, text, width in shown:
            share = 100 * softmax(data["logits"][who][image], temperature)[label]
            for figure, tolerance in ((float(text.rstrip(" %")), 0.0501), (float(width[:-1]), 0.02)):
                if abs(figure - share) > tolerance:
                    return [
                        f"the slider at T = {temperature}, image {image}, network {who}, class {label}: "
                        f"the page shows {text} (bar {width}), expected {share:.3f} %"
                    ]
    return []


def check_print(browser, path):
    browser.call("Emulation.clearDeviceMetricsOverride")
    browser.call("Emulation.setEmulatedMedia", media="", features=[])
    printed = browser.call("Page.printToPDF", preferCSSPageSize=True)
    pdf = base64.b64decode(printed["data"])
    if path:
        path.write_bytes(pdf)
    return [] if pdf.startswith(b"%PDF") else ["in print: Chromium made no PDF of it"]


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


def check(browser, page, views=VIEWS, out=None, slider=True):
    problems = []
    stem = f"{page.resolve().parent.name}-{page.stem}"
    for title, name, width, height, scheme in views:
        view(browser, width, height, scheme)
        browser.open(page)
        found = check_width(browser, width) + check_scheme(browser, scheme) + check_contrast(browser)
        if out:
            screenshot(browser, out / f"{stem}-{name}.png", width)
        if slider:
            found += check_slider(browser)
        problems += [f"{title}: {text}" for text in found + complaints(browser)]
    return problems + check_print(browser, out / f"{stem}.pdf" if out else None)


# --- The checks are checked: what is put before </body>, and what has to be said of it --------------

DEFECTS = [
    ("an error in the console", "<script>console.error('defect')</script>", "the console shows"),
    ("a script that fails", "<script>throw new Error('defect')</script>", "a script failed"),
    ("a picture from the network", "<img src='http://127.0.0.1:9/defect.png' alt=''>", "must need no network"),
    ("a box of 1400 pixels", "<div style='width: 1400px; height: 1px'></div>", "pixels wide on a screen"),
    ("always light", "<style>:root { color-scheme: light !important }</style>", "the system asks for a dark page"),
    ("grey on grey", "<p style='color: #777; background: #999'>defect</p>", "has a contrast of"),
    (
        "grey on grey in a chart",
        "<svg width='90' height='20'><rect width='90' height='20' fill='#999'/><text y='15' fill='#777'>defect</text></svg>",
        "has a contrast of",
    ),
    (
        "a slider that does nothing",
        "<script>addEventListener('input', event => event.stopImmediatePropagation(), true)</script>",
        "the slider was moved to T",
    ),
    (
        "figures of other logits",
        "<script>{ const soft = document.getElementById('soft-data'), data = JSON.parse(soft.textContent);"
        " for (const row of data.logits[0]) { row[0] += 1; } soft.textContent = JSON.stringify(data); }</script>",
        "the page shows",
    ),
    ("no slider", "<script>document.getElementById('soft-data').remove()</script>", "there is no temperature slider"),
]


def self_test(browser, page, folder):
    """The problems that the checks did not find in pages that have them."""
    html = page.read_text()
    problems = []
    for name, defect, expected in DEFECTS:
        broken = pathlib.Path(folder) / "broken.html"
        broken.write_text(html.replace("</body>", f"{defect}</body>"))
        # One view is enough; each of these defects shows on a small dark screen.
        found = check(browser, broken, VIEWS[-1:])
        if not any(expected in problem for problem in found):
            problems.append(f"a page with this defect passes: {name}; found was {found}")
    return problems


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pages", nargs="+", type=pathlib.Path, metavar="PAGE")
    parser.add_argument("--out", type=pathlib.Path, metavar="DIR", help="keep screenshots and PDFs here")
    parser.add_argument("--no-slider", action="store_true", help="pages of runs without a teacher have none")
    parser.add_argument("--self-test", action="store_true", help="also check that each check finds a defect")
    parser.add_argument("--chromium", metavar="FILE", default=os.environ.get("CHROMIUM"))
    options = parser.parse_args()
    for page in options.pages:
        if not page.is_file():
            parser.error(f"there is no page {page}")
    if options.self_test and options.no_slider:
        parser.error("--self-test needs a page with a slider")
    program = options.chromium or next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        print(
            f"error: none of {', '.join(PROGRAMS)} is on the path, so nothing was checked; "
            "install Debian's package `chromium`, or name the program with --chromium or $CHROMIUM",
            file=sys.stderr,
        )
        return NO_BROWSER
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
    failed = False
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        try:
            browser = Browser(program, folder)
        except OSError as error:
            print(f"error: {program} can't be started: {error}", file=sys.stderr)
            return 1
        try:
            browser.start()
            for page in options.pages:
                problems = check(browser, page, VIEWS, options.out, not options.no_slider)
                if not problems:
                    print(f"{page}: no problem in {len(VIEWS)} views and in print")
                    if options.self_test:
                        problems = self_test(browser, page, folder)
                        print(f"{page}: {len(DEFECTS) - len(problems)} of {len(DEFECTS)} defects were found")
                failed |= bool(problems)
                for problem in problems:
                    print(f"{page}: {problem}", file=sys.stderr)
        except BrowserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        finally:
            browser.close()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
