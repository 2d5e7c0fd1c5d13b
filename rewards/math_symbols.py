"""Signs of Unicode, and digits of any script, as ASCII LaTeX."""

from __future__ import annotations

import re
import unicodedata


def words(text: str) -> frozenset[str]:
    """A set of names, written as one string."""
    return frozenset(text.split())


_SUPERSCRIPTS = dict(
    zip(
        "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207a\u207b\u207d\u207e"
        "\u207f\u2071",
        "0123456789+-()ni",
        strict=True,
    )
)
_SUBSCRIPTS = dict(
    zip(
        "\u2080\u2081\u2082\u2083\u2084\u2085\u2086\u2087\u2088\u2089\u208a\u208b\u208d\u208e",
        "0123456789+-()",
        strict=True,
    )
)
_VULGAR = {
    c: unicodedata.normalize("NFKC", c).replace("\u2044", "/")
    for c in (
        "\u00bc\u00bd\u00be\u2150\u2151\u2152\u2153\u2154\u2155\u2156\u2157\u2158\u2159"
        "\u215a\u215b\u215c\u215d\u215e"
    )
}
_GREEK = {
    unicodedata.lookup(f"GREEK SMALL LETTER {name}"): f"\\{name.lower()} "
    for name in words(
        "ALPHA BETA GAMMA DELTA EPSILON ZETA ETA THETA IOTA KAPPA MU NU XI PI RHO SIGMA TAU "
        "UPSILON PHI CHI PSI OMEGA"
    )
}
_GREEK |= {
    unicodedata.lookup(f"GREEK CAPITAL LETTER {name}"): f"\\{name.capitalize()} "
    for name in words("GAMMA DELTA THETA XI PI SIGMA PHI PSI OMEGA")
}
_SIGNS = {
    **dict.fromkeys("\u2212\u2013\u2014\u2012\ufe63\uff0d\u2010\u2011", "-"),
    **dict.fromkeys("\u00d7\u22c5\u2219\u00b7\u2022\u2715\u2716\uff0a\u2217", r"\cdot "),
    **dict.fromkeys("\u00f7\u2215\u2044\uff0f", "/"),
    **dict.fromkeys("\u00a0\u2009\u200a\u202f\u2002\u2003\u3000\u2005", " "),
    **dict.fromkeys("\u200b\u200c\u200d\ufeff\u2060\u2061\u2062\u200e\u200f\u00ad", ""),
    **dict.fromkeys("\u2019\u2032\u00b4\u2018", "'"), **dict.fromkeys("\u201c\u201d\u2033", '"'),
    **dict.fromkeys("\uff0c\u3001", ","), **dict.fromkeys("\u2236\uff1a", ":"),
    "\u221a": r"\surd ", "\u221b": r"\cbrt ", "\u221e": r"\infty ", "\u2264": r"\le ",
    "\u2265": r"\ge ", "\u2a7d": r"\le ", "\u2a7e": r"\ge ", "\u2260": r"\ne ",
    "\u2248": r"\approx ", "\u2261": r"\equiv ", "\u00b1": r"\pm ", "\u2213": r"\mp ",
    "\u222a": r"\cup ", "\u2229": r"\cap ", "\u2208": r"\in ", "\u2205": r"\emptyset ",
    "\u00b0": r"^{\circ}", "\u00ba": r"^{\circ}", "\u2103": r"^{\circ}\text{C}",
    "\u2109": r"^{\circ}\text{F}", "\u211d": r"\mathbb{R}", "\u2124": r"\mathbb{Z}",
    "\u2115": r"\mathbb{N}", "\u211a": r"\mathbb{Q}", "\u2102": r"\mathbb{C}",
    "\u2216": r"\setminus ", "\u2192": r"\to ", "\u27e8": r"\langle ", "\u27e9": r"\rangle ",
    "\u3008": r"\langle ", "\u3009": r"\rangle ", "\u230a": r"\lfloor ", "\u230b": r"\rfloor ",
    "\u2308": r"\lceil ", "\u2309": r"\rceil ", "\u2211": r"\sum ", "\u220f": r"\prod ",
    "\u222b": r"\int ", "\u2228": r"\text{ or }", "\u2227": r"\text{ and }", "\u00b5": r"\mu ",
    "\u2026": r"\ldots ", "\u3002": ".", "\uff05": "%", "\uff08": "(", "\uff09": ")",
    "\uff3b": "[", "\uff3d": "]", "\uff5b": "{", "\uff5d": "}", "\uff0b": "+", "\uff1d": "=",
    "\uff1c": "<", "\uff1e": ">", "\uff5c": "|", "\uff3e": "^", "\uff1b": ";", "\uff01": "!",
    "\u03d5": r"\phi ", "\u03f5": r"\epsilon ", "\u03d1": r"\theta ", "\u2223": "|",
    "\u2225": r"\parallel ", "\u22a5": r"\perp ",
}  # fmt: skip
_TRANSLATE = str.maketrans({**_SIGNS, **_GREEK})
_SUPER_RUN = re.compile(f"[{''.join(_SUPERSCRIPTS)}]+")
_SUB_RUN = re.compile(f"[{''.join(_SUBSCRIPTS)}]+")
_COMBINING_VINCULUM = re.compile("((?:[0-9]\u0305)+)")


def to_ascii(text: str) -> str:
    """Rewrite Unicode mathematics as LaTeX; digits of any script become 0-9."""
    if text.isascii():
        return text
    text = _COMBINING_VINCULUM.sub(
        lambda m: r"\overline{" + m[1].replace("\u0305", "") + "}",
        unicodedata.normalize("NFC", text),
    )
    text = _SUPER_RUN.sub(lambda m: "^{" + "".join(_SUPERSCRIPTS[c] for c in m[0]) + "}", text)
    text = _SUB_RUN.sub(lambda m: "_{" + "".join(_SUBSCRIPTS[c] for c in m[0]) + "}", text)
    for char, value in _VULGAR.items():
        if char in text:
            top, bottom = value.split("/")
            text = text.replace(char, rf"\frac{{{top}}}{{{bottom}}}")
    text = text.translate(_TRANSLATE)
    if text.isascii():
        return text
    return "".join(map(_one_char, text))


def _one_char(char: str) -> str:
    if char.isascii():
        return char
    if char.isdecimal():
        return str(unicodedata.decimal(char))
    folded = unicodedata.normalize("NFKC", char)  # mathematical alphanumerics, full-width letters
    return folded if folded.isascii() else folded.translate(_TRANSLATE)
