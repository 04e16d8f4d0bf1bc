"""The building blocks of a web page that is one file, works offline, and can run no code."""

import base64
import html
from collections.abc import Iterable, Sequence

from tljax.errors import printable

# Nothing is fetched and nothing runs, whatever the texts in the page are.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
KINDS = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg"}

STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #ffffff; --text: #1c2127; --quiet: #57606a;
  --line: #d9dee4; --accent: #1f5fa8; --bar: #c9dcf2; --warn: #fff4d6; --warn-line: #b7791f; }
@media (prefers-color-scheme: dark) { :root { --page: #14171b; --card: #1d2126; --text: #e6e9ed; --quiet: #a3acb7;
  --line: #363c44; --accent: #83b6f2; --bar: #2b4a70; --warn: #3a2f14; --warn-line: #d9a441; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2rem 1rem 4rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 0 0 .75rem; }
p { margin: .25rem 0 .75rem; max-width: 48rem; }
.quiet, caption, figcaption { color: var(--quiet); font-size: .9rem; }
section, aside { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1.25rem;
  margin-top: 1.25rem; }
aside { background: var(--warn); border-color: var(--warn-line); }
aside ul { margin: 0; padding-left: 1.2rem; }
.scores { display: flex; flex-wrap: wrap; gap: .75rem 2.5rem; align-items: baseline; }
.scores div { display: flex; flex-direction: column-reverse; }
.scores dt { color: var(--quiet); font-size: .9rem; }
.scores dd { margin: 0; font-size: 1.4rem; font-variant-numeric: tabular-nums; }
.scores .first dd { font-size: 2.8rem; line-height: 1.1; font-weight: 650; color: var(--accent); }
dl.facts { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.25rem; margin: 0; }
dl.facts dt { color: var(--quiet); }
dl.facts dd { margin: 0; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
.wide:focus-visible, summary:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .92rem; }
caption { text-align: left; padding-bottom: .5rem; }
.wide + .wide, figure + .wide, details { margin-top: 1rem; }
th, td { text-align: left; padding: .3rem .75rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top;
  overflow-wrap: break-word; }
td { max-width: 30rem; }
thead th { color: var(--quiet); font-weight: 600; white-space: nowrap; }
tbody th { font-weight: 500; min-width: 8rem; }
.number { text-align: right; white-space: nowrap; }
td.score { min-width: 6.5rem; width: 6.5rem; padding: .3rem .5rem; }
td.score + td.number { width: 6.5rem; }
td.bar { background: linear-gradient(var(--bar) 0 0) right center / var(--share) 90% no-repeat content-box; }
td.bar span { padding-right: .35rem; }
td.picture img { width: 72px; height: 72px; object-fit: contain; border-radius: 4px; }
figure { margin: 0; }
figure img { max-width: 100%; height: auto; background: #ffffff; border-radius: 6px; padding: .5rem; }
pre { overflow-x: auto; font: .82rem/1.45 ui-monospace, "SF Mono", Menlo, Consolas, monospace; margin: .5rem 0; }
summary { cursor: pointer; color: var(--accent); }
@media print { section, aside { break-inside: avoid; } body { background: none; } }
"""


class Markup(str):
    """Text that is HTML already; anything else is escaped where it enters the page."""

    __slots__ = ()


def text(value: object, limit: int = 400) -> Markup:
    """Any text made harmless: HTML escaped, control characters and lone surrogates spelt out, cut at `limit`.

    >>> text("<b>\\x00")
    '&lt;b&gt;\\\\x00'
    """
    return value if isinstance(value, Markup) else Markup(html.escape(printable(value, limit)))


def lines(value: str) -> Markup:
    """Text of several lines, as it stands."""
    return Markup(f"<pre tabindex='0'>{'&#10;'.join(text(line, 2000) for line in value.splitlines())}</pre>")


def section(heading: str, *parts: str) -> Markup:
    return Markup(f"<section><h2>{text(heading)}</h2>{''.join(text(part) for part in parts)}</section>")


def paragraph(value: str, kind: str = "") -> Markup:
    return Markup(f"<p{f' class={kind!r}' if kind else ''}>{text(value, 2000)}</p>")


def folded(summary: str, part: Markup) -> Markup:
    return Markup(f"<details><summary>{text(summary)}</summary>{part}</details>")


def bullets(items: Iterable[str]) -> Markup:
    return Markup(f"<ul>{''.join(f'<li>{text(item, 2000)}</li>' for item in items)}</ul>")


def facts(pairs: Iterable[tuple[str, str]], kind: str = "facts") -> Markup:
    rows = "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in pairs)
    return Markup(f"<dl class='{kind}'>{rows}</dl>")


def bar(label: str, share: float | None) -> Markup:
    """A table cell with a bar of 0 … 1 behind its number; without one where the share is undefined."""
    style = f" style='--share: {100 * share:.1f}%'" if share is not None else ""
    return Markup(f"<td class='number score{' bar' if style else ''}'{style}><span>{text(label)}</span></td>")


def cell(value: object, number: bool = False) -> Markup:
    """A table cell. dir=auto: an Arabic or Hebrew text keeps its own direction and does not turn its neighbours'."""
    return Markup(f"<td class='number'>{text(value)}</td>" if number else f"<td dir='auto'>{text(value)}</td>")


def table(caption: str, header: Sequence[tuple[str, bool]], rows: Iterable[tuple[object, Sequence[Markup]]]) -> Markup:
    """A table; header: (heading, whether numbers stand below it); rows: (row heading, cells)."""
    heads = "".join(f"<th scope='col'{' class=number' if number else ''}>{text(name)}</th>" for name, number in header)
    body = "".join(f"<tr><th scope='row' dir='auto'>{text(name)}</th>{''.join(cells)}</tr>" for name, cells in rows)
    return Markup(
        f"<div class='wide' tabindex='0' role='region' aria-label='{text(caption)}'><table><caption>{text(caption)}"
        f"</caption><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def picture(data: bytes, alt: str) -> Markup:
    """A PNG or JPEG inside the page; nothing where the bytes are neither."""
    kind = next((kind for start, kind in KINDS.items() if data.startswith(start)), None)
    if kind is None:
        return Markup("")
    return Markup(f"<img alt='{text(alt)}' src='data:{kind};base64,{base64.b64encode(data).decode('ascii')}'>")


def figure(data: bytes, alt: str, caption: str) -> Markup:
    return Markup(f"<figure>{picture(data, alt)}<figcaption>{text(caption)}</figcaption></figure>")


def page(title: str, *parts: str) -> str:
    """The whole document."""
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>\n"
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        "<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
        f"<title>{text(title)}</title><style>{STYLE}</style></head>\n"
        "<body><main>\n" + "\n".join(text(part) for part in parts) + "\n</main></body></html>\n"
    )
