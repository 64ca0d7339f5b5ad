"""Pieces of web pages that are one file: nothing in them is loaded from elsewhere, and nothing runs.

Each function gives HTML as text. Text that is given to it is escaped; blocks and what is called html are HTML already.
"""
import base64
import html
import io

import numpy as np

from annotations.images import encode_picture
from pose_errors import printable

STYLE = '''
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 60rem; margin: 0 auto;
       padding: 1rem; overflow-wrap: anywhere }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0.5rem 0 }
h2 { font-size: 1.2rem; margin: 2.2rem 0 0.6rem; padding-bottom: 0.2rem; border-bottom: 1px solid #ddd }
h3 { font-size: 1rem; margin: 1.4rem 0 0.4rem }
p { margin: 0.5rem 0; max-width: 46rem }
.note { color: #666; font-size: 0.9rem }
.tiles { display: flex; flex-wrap: wrap; gap: 0.6rem; margin: 1rem 0 }
.tiles div { background: #f3f5f8; border-radius: 0.5rem; padding: 0.5rem 1rem; min-width: 5rem }
.tiles b { display: block; font-size: 1.5rem; line-height: 1.3; font-variant-numeric: tabular-nums }
.tiles span { color: #666; font-size: 0.85rem }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 0.5rem 0 }
th, td { padding: 0.25rem 0.9rem 0.25rem 0; text-align: right; vertical-align: top; border-bottom: 1px solid #eee;
         overflow-wrap: normal }
th { color: #666; font-weight: 600; font-size: 0.9rem; vertical-align: bottom }
th:first-child, td:first-child, .words th, .words td { text-align: left }
.words td { overflow-wrap: anywhere }
.words td:first-child { white-space: nowrap }
.grid { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)) }
figure { margin: 0 }
figure img { display: block; width: 100%; height: auto; border-radius: 0.3rem }
figcaption { font-size: 0.9rem; color: #444; margin-top: 0.3rem }
@media (max-width: 30rem) { th, td { padding-right: 0.5rem; font-size: 0.85rem } }
'''
HEAD = '''<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>%s</title>
<style>%s</style>
</head>
<body>
<h1>%s</h1>
'''
NONE = '\u2013'  # a figure that there is not
COLOURS = ('#1f77b4', '#d62728', '#2ca02c', '#9467bd')  # of lines; told apart by dashes as well where that is needed


def page(title, *blocks):
    """A whole page, as bytes."""
    text = HEAD % (escape(title), STYLE, escape(title)) + '\n'.join(blocks) + '\n</body>\n</html>\n'
    return text.encode('utf-8', 'replace')  # names of files need not be UTF-8


def escape(text):
    return html.escape(printable(str(text)))


def section(title, *blocks):
    return '\n'.join(('<h2>%s</h2>' % escape(title),) + blocks)


def part(title, *blocks):
    """Of a section."""
    return '\n'.join(('<h3>%s</h3>' % escape(title),) + blocks)


def paragraph(text, kind='text'):
    return '<p class="%s">%s</p>' % (kind, escape(text))


def tiles(pairs):
    """The most important figures, large. pairs: (name, text)."""
    boxes = ['<div><b>%s</b><span>%s</span></div>' % (escape(text), escape(name)) for name, text in pairs]
    return '<div class="tiles">%s</div>' % ''.join(boxes)


def table(head, rows, kind='figures'):
    """A table of texts: the first column to the left, the others, figures, to the right; all to the left for the kind
    'words'."""
    lines = ['<tr>%s</tr>' % ''.join('<td>%s</td>' % escape(cell) for cell in row) for row in rows]
    if head:
        lines.insert(0, '<tr>%s</tr>' % ''.join('<th>%s</th>' % escape(cell) for cell in head))
    return '<div class="scroll"><table class="%s">\n%s\n</table></div>' % (kind, '\n'.join(lines))


def number(value, decimals=3):
    """A figure as text; None, NaN and the -1 of pycocotools mean that there is none."""
    return NONE if value is None or not np.isfinite(value) or value == -1 else '%.*f' % (decimals, value)


def grid(blocks):
    """Blocks beside each other as far as the screen is wide."""
    return '<div class="grid">%s</div>' % '\n'.join(blocks)


def picture(pixels, alt, caption_html=''):
    """An image uint8 (H, W, 3) BGR, as JPEG."""
    return _figure('jpeg', encode_picture(pixels, '.jpg'), alt, caption_html)


def chart(title, lines, x_label, y_label, x_limits=None, y_limits=None, logarithmic=False):
    """A chart of lines, as SVG; where matplotlib is not installed, a line that says so.

    Args:
        lines: (label, x, y), further arguments of matplotlib's plot.
        logarithmic: whether y is, where it spans a factor of ten.
    All texts are the program's own: `$` has a meaning in them.
    """
    try:
        from matplotlib import rc_context, ticker
        from matplotlib.figure import Figure
    except ImportError:
        return paragraph('%s: a chart needs matplotlib (pip install matplotlib).' % title, 'note')
    # Fonts as outlines, ids without chance: the page is the same everywhere, and after each call.
    with rc_context({'svg.hashsalt': title, 'font.size': 10, 'axes.spines.top': False, 'axes.spines.right': False}):
        drawing = Figure(figsize=(6, 3.6))
        axes = drawing.add_subplot(1, 1, 1)
        for ((label, x, y), style), colour in zip(lines, COLOURS):
            axes.plot(x, y, label=label, **dict({'color': colour, 'linewidth': 1.6}, **style))
        axes.set(xlabel=x_label, ylabel=y_label, title=title)
        axes.set(xlim=x_limits, ylim=y_limits)
        low, high = (edge([edge(y) for (_, _, y), _ in lines]) for edge in (np.nanmin, np.nanmax))
        if logarithmic and 0 < 10 * low < high:
            axes.set_yscale('log')
            axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(ticker.StrMethodFormatter('{x:g}'))
            axes.yaxis.set_minor_formatter(ticker.NullFormatter())
        axes.grid(True, alpha=0.3)
        if len(lines) > 1:
            axes.legend(fontsize=9, framealpha=0.9)
        drawing.tight_layout()
        svg = io.BytesIO()
        drawing.savefig(svg, format='svg', metadata={'Date': None})
    return _figure('svg+xml', svg.getvalue(), title)


def _figure(kind, data, alt, caption_html=''):
    source = 'data:image/%s;base64,%s' % (kind, base64.b64encode(data).decode())
    return '<figure><img alt="%s" src="%s">%s</figure>' % (
        escape(alt), source, caption_html and '<figcaption>%s</figcaption>' % caption_html)
