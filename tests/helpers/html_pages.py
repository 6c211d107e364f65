"""The text of a report's page: `text = read(path)` also checks that it needs no other file."""

import re
from html.parser import HTMLParser


class Reader(HTMLParser):
    """The page's text, and every address in it."""

    def __init__(self, text):
        super().__init__()
        self.words, self.addresses, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in ("meta", "img", "br", "path", "use", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in self.open:
            assert self.open.pop() == tag, f"</{tag}> closes another"

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def read(path):
    page = Reader(path.read_text())
    assert all(address.startswith(("#", "data:image/")) for address in page.addresses), (
        "the page asks for another file"
    )
    assert not page.open
    assert "http" not in re.sub(r"http://www.w3.org/\S+", "", path.read_text())
    assert "<script" not in path.read_text()
    return page.text
