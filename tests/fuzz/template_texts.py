"""Template texts for two readers of JSON to disagree about, and what Go's reader makes of them."""

import json
import shutil
import subprocess
from pathlib import Path

from memopod.steps.argo import containers, template_text
from memopod.steps.kubeflow import ContainerRefused, TemplateRefused, fingerprinted
from memopod.steps.names import OFFLOADED

TESTS = Path(__file__).parents[1]
ORACLE = TESTS / "steps" / "kubeflow_oracle" / "main.go"

NAMES = [
    *("container", "inputs", "outputs", "volumes", "initContainers", "sidecars", "script", "name"),
    *("image", "command", "args", "env", "volumeMounts", "Container", "INPUTS", "resources", ""),
    *("a", "b", "é", "日本", "\U0001f600", "\ufffd", "\ue000", "a<b", "\u2028"),
]
NUMBERS = [
    *("0", "-0", "-0.0", "0e0", "-0E+5", "1", "-1", "1.0", "1e0", "10", "1E3", "0.5", "123456789012345"),
    *("9007199254740991", "9007199254740992", "9007199254740993", "-9007199254740993", "999999999999999"),
    *("1000000000000000", "18446744073709551616", "1e20", "1e21", "999999999999999999999", "1e22", "1e23"),
    *("1e-5", "1e-6", "1e-7", "0.000001", "0.0000009999999999999999", "1.5e-9", "1.5e-10", "1e-100"),
    *("1e308", "1.7976931348623157e308", "5e-324", "2e-324", "2.2250738585072011e-308", "1e-400"),
    *("-1e-400", "0.1", "0.30000000000000004", "8.41e21", "5e-7", "1e00000000000000001", "1e+09"),
    *("0e99999999999", "1e-99999999999", "123456789.125"),
]
ODD_NUMBERS = [
    *("01", "1.", ".5", "+1", "1e", "1e+", "-", "--1", "0x1", "1_0", "NaN", "Infinity", "-Infinity", "1.e5"),
    *("1.7976931348623159e308", "1e309", "-1e400", "1e10000"),
]
STRINGS = [
    *('""', r'"a"', r'"<a href=\"x\">&</a>"', r'"\u003c"', r'"\b\f\n\r\t\/\\\""', r'"\u0008\u000C"'),
    *(r'"\u0000\u001f\u007f"', r'"\u2028\u2029"', '"\u2028\u2029"', '"é 日本 \U0001f600"', r'"\ud83d\ude00"'),
    *(r'"\ud83d"', r'"\ude00\ud83d"', r'"\ud83d\ud83d\ude00"', r'"\uD83Dx\uDE00"', r'"\\ud83d"', r'"\uDFFF"'),
    *(r'"\ud83d\\ude00"', r'"\uDBFF\uDFFF"', r'"\ufffd\ufeff"', r'"\ufffe\uffff"', '"\x7f\x80"', r'"\u00E9"'),
]
ODD_STRINGS = [
    *(
        r'"\x"',
        r'"\u12"',
        r'"\u00g0"',
        r'"\'"',
        "'a'",
        '"\t"',
        '"\n"',
        '"\x00"',
        '"\x1f"',
        '"a',
        r'"\ud83d\u',
    ),
    *(r'"\uD83D"'[:-1] + "\\", r'"\U0041"', r'"\u+123"', r'"\u 123"', '"\\u\u0661\u0662\u0663\u0664"'),
]
WORDS = ["true", "false", "null"]
ODD_WORDS = ["True", "nul", "nulll", "undefined", "//x", "/*x*/", "\u0661"]
SPACES = ["", "", "", "", "", "", " ", "\n", "\t\r", "  ", "\x0b", "\x0c", "\xa0", "\u2028", "\ufeff"]
BYTES = [
    *(b"\xff", b"\xc0\x80", b"\xe2\x82", b"\xed\xa0\x80", b"\xed\xa0\xbd\xed\xb8\x80", b"\xf4\x90\x80\x80"),
    *(b"\xf0\x9f\x98", b"\xf8\x88\x80\x80\x80", b"\x80", b"\xe0\x80\xaf", b"\xef\xbb\xbf", b"\xef\xbf\xbd"),
    *(
        b"\x00",
        b"\\",
        b'"',
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b"e",
        b"-",
        b"0",
        b".",
        b"\\ud800",
        b"\\udc00",
    ),
    *(b" ", b"\n", b"null", b"<", b"1e999", b"\xe2\x80\xa8"),
]


def recorded():
    """Each different template text of the recordings."""
    texts = set()
    for path in TESTS.glob("samples/argo-*/*.pod.json"):
        pod = json.loads(path.read_text())
        text = template_text(pod) if containers(pod) else None
        if text and text != OFFLOADED and len(text) < 20_000:
            texts.add(text.encode())
    return sorted(texts)


def generate(random, count):
    """So many template texts, as bytes: recorded ones that were damaged, and made-up ones."""
    templates = recorded()
    for _ in range(count):
        kind = random.random()
        if kind < 0.3:
            yield _damaged(random, random.choice(templates))
        elif kind < 0.5:
            yield _with_other_scalars(random, random.choice(templates))
        elif kind < 0.999:
            text = _object(random, random.choice((1, 2, 3, 4))).encode("utf-8", "surrogatepass")
            yield _damaged(random, text) if random.random() < 0.2 else text
        else:
            yield _deep(random)


def _damaged(random, text):
    data = bytearray(text)
    for _ in range(random.choice((1, 1, 1, 2, 5))):
        start = random.randrange(len(data) + 1)
        end = start + random.choice((0, 0, 1, 1, 2, 8))
        kind = random.random()
        if kind < 0.6:
            data[start:end] = random.choice(BYTES)
        elif kind < 0.8:
            data[start:end] = bytes([random.randrange(256)])
        else:
            other = random.randrange(len(data) + 1)
            data[start:end] = data[other : other + random.randrange(40)]
    return bytes(data)


def _with_other_scalars(random, text):
    """A recorded template whose structure stays while some of its values become odd ones."""

    def change(value):
        if isinstance(value, dict):
            items = [(name, change(inner)) for name, inner in value.items()]
            if items and random.random() < 0.1:
                items.append((random.choice(items)[0], _value(random, 1)))
            return "{" + ",".join(f"{json.dumps(name)}:{inner}" for name, inner in items) + "}"
        if isinstance(value, list):
            return "[" + ",".join(map(change, value)) + "]"
        return _scalar(random) if random.random() < 0.1 else json.dumps(value)

    return change(json.loads(text)).encode("utf-8", "surrogatepass")


def _object(random, depth):
    names = [_name(random) for _ in range(random.choice((0, 1, 2, 3, 5)))]
    pairs = []
    for name in names:
        plain = name == '"container"' and depth > 0
        value = _object(random, depth - 1) if plain else _value(random, depth)
        pairs.append(f"{_space(random)}{name}{_space(random)}:{_space(random)}{value}")
    return "{" + ",".join(pairs) + _space(random) + "}"


def _name(random):
    if random.random() < 0.1:
        return random.choice(STRINGS)
    name = random.choice(NAMES)
    return json.dumps(name, ensure_ascii=random.random() < 0.5)


def _value(random, depth):
    if depth <= 0 or random.random() < 0.4:
        return _scalar(random)
    if random.random() < 0.5:
        return _object(random, depth - 1)
    return "[" + ",".join(_value(random, depth - 1) for _ in range(random.randrange(4))) + "]"


def _scalar(random):
    """Mostly one that JSON allows: a text with a mistake says only that both refuse it."""
    odd = random.random() < 0.03
    kind = random.random()
    if kind < 0.2:
        return _digits(random)
    if kind < 0.5:
        return random.choice(ODD_NUMBERS if odd else NUMBERS)
    if kind < 0.85:
        return random.choice(ODD_STRINGS if odd else STRINGS)
    return random.choice(ODD_WORDS if odd else WORDS)


def _digits(random):
    """A number of any length and size."""
    sign = random.choice(("", "-"))
    whole = str(random.randrange(10 ** random.choice((1, 3, 15, 16, 17, 20, 22, 40))))
    fraction = random.choice(("", f".{random.randrange(10 ** random.choice((1, 6, 20, 60))):d}"))
    exponent = random.choice(("", "", f"e{random.randint(-340, 300)}", f"E{random.randint(-30, 30):+03d}"))
    return sign + whole + fraction + exponent


def _space(random):
    return random.choice(SPACES if random.random() < 0.02 else SPACES[:10])


def _deep(random):
    """Nested as deep as Go can follow, or a little deeper, sound or not."""
    depth = random.choice((200, 900, 1100, 3000, 9997, 9998, 9999, 10_000, 10_001))
    opens = [random.choice(("[", '{"a":', '[1.0,"<",', '{"b":[],"a":')) for _ in range(depth)]
    closes = ["]" if piece.startswith("[") else "}" for piece in reversed(opens)]
    field = random.choice(('{"inputs":', '{"inputs":0,"inputs":', '{"name":', '{"container":{"image":', "["))
    text = field + "".join(opens) + _scalar(random) + "".join(closes)
    text += {"[": "]"}.get(field, "}}" if "image" in field else "}") + random.choice(("", " ", ",", "}", "x"))
    data = text.encode("utf-8", "surrogatepass")
    return _damaged(random, data) if random.random() < 0.3 else data


def ours(text):
    """One line, as the Go program writes it."""
    try:
        return fingerprinted(text)
    except TemplateRefused:
        return b"refused"
    except ContainerRefused:
        return b"panic"


class Oracle:
    """The Go program, built into a folder."""

    def __init__(self, folder):
        go = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin:/usr/lib/go/bin")
        if go is None:
            raise FileNotFoundError("Go is not installed")
        self._program = Path(folder) / "kubeflow-oracle"
        subprocess.run([go, "build", "-o", self._program, ORACLE], check=True, timeout=300)

    def lines(self, texts):
        """One line for each text."""
        data = b"".join(len(text).to_bytes(4, "big") + text for text in texts)
        result = subprocess.run([self._program], input=data, capture_output=True, timeout=60, check=True)
        return result.stdout.split(b"\n")[:-1]


def disagreements(oracle, texts):
    """(text, ours, Go's) of each that differs."""
    theirs = oracle.lines(texts)
    assert len(theirs) == len(texts)
    return [
        (text, mine, go) for text, mine, go in zip(texts, map(ours, texts), theirs, strict=True) if mine != go
    ]
