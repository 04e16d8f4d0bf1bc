"""Pages as a browser reads them, and a text that tries to become more than text. Shared by the tests."""

import html.parser

EVIL = "<script>alert(1)</script>'\"&<img src=x onerror=alert(2)>\x00\ud800\u202e"


class Reader(html.parser.HTMLParser):
    """Collects the elements, checks that they nest."""

    VOID = ("meta", "img", "br")

    def __init__(self):
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.shown = ""

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.shown += data


def read(document: str) -> Reader:
    reader = Reader()
    reader.feed(document)
    reader.close()
    assert reader.open == []
    return reader
