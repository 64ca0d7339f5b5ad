"""Reads the pages that reports are, as strictly as no browser does."""
import html.parser
import re

VOID = {'meta', 'img'}
ATTRIBUTES = {'lang', 'charset', 'name', 'content', 'http-equiv', 'class', 'src', 'alt'}


class Page(html.parser.HTMLParser):
    """A page that is well-formed and alone: nothing in it is loaded from elsewhere, runs, or leads away.

    Attributes:
        below: {heading: the texts below it, up to the next one, outside of tables}.
        tables: {heading: the rows below it, lists of cells}.  images: their attributes.
    """

    def __init__(self, data):
        super().__init__()
        self.below, self.tables, self.images = {}, {}, []
        self._open, self._heading, self._attributes = [], '', set()
        text = data.decode()
        self.feed(text)
        self.close()
        assert text.startswith('<!DOCTYPE html>') and self._open == []
        assert not re.search(r'https?:|<script|javascript:|<link|<iframe|@import|url\(', text)
        assert all(image['src'].startswith('data:image/') and image['alt'] for image in self.images)
        assert self._attributes <= ATTRIBUTES

    def handle_starttag(self, tag, attrs):
        self._attributes |= {name for name, _ in attrs}
        if tag == 'img':
            self.images.append(dict(attrs))
        if tag not in VOID:
            self._open.append(tag)
        if tag == 'tr':
            self.tables.setdefault(self._heading, []).append([])
        if tag in ('td', 'th'):
            self.tables[self._heading][-1].append('')

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if not self._open or self._open[-1] in ('style', 'title') or not data.strip():
            return
        if self._open[-1] in ('h1', 'h2', 'h3'):
            self._heading = data
        elif self._open[-1] in ('td', 'th'):
            self.tables[self._heading][-1][-1] = data
        else:
            self.below.setdefault(self._heading, []).append(data.strip())
