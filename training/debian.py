"""Training texts from Debian packages: descriptions, WordNet, FOLDOC and manual pages.

Everything is downloaded with apt into a separate folder, without root and without installing anything.
"""

from __future__ import annotations

import gzip
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from training.rows import Row

PACKAGES = (
    "wordnet-base",
    "dict-foldoc",
    "manpages",
    "manpages-dev",
    "perl-doc",
    "libcurl4-doc",
    "libssl-doc",
    "git-man",
)
_HELPER = "/usr/lib/apt/apt-helper"


def _apt_options(work: Path) -> list[str]:
    """Options for apt to use lists and cache in `work`, in English only."""
    for folder in ("lists/partial", "cache/archives/partial"):
        (work / folder).mkdir(parents=True, exist_ok=True)
    return [
        "-oAcquire::Languages=en",
        f"-oDir::State::Lists={work / 'lists'}",
        f"-oDir::Cache={work / 'cache'}",
        "-oAPT::Sandbox::User=",
    ]


def fetch(work: Path) -> None:
    """Downloads the package lists with English descriptions, and unpacks `PACKAGES` in `work`."""
    options = _apt_options(work)
    if not any((work / "lists").glob("*Translation-en*")):
        subprocess.run(["apt-get", *options, "-qq", "update"], check=True)
    for package in PACKAGES:
        target = work / "unpacked" / package
        if target.exists():
            continue
        folder = work / "debs" / package
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", *options, "-qq", "download", package], check=True, cwd=folder)
        target.parent.mkdir(exist_ok=True)
        subprocess.run(["dpkg-deb", "-x", str(next(folder.glob("*.deb"))), str(target)], check=True)


def descriptions(work: Path) -> Iterator[Row]:
    """Package descriptions: short line and long text, grouped by source package."""
    source: dict[str, str] = {}
    dump = subprocess.run(
        ["apt-cache", *_apt_options(work), "dumpavail"], check=True, capture_output=True, text=True
    ).stdout
    for record in dump.split("\n\n"):
        name = re.search(r"^Package: (\S+)", record, re.M)
        origin = re.search(r"^Source: (\S+)", record, re.M)
        if name:
            source[name.group(1)] = origin.group(1) if origin else name.group(1)
    seen: set[tuple[str, str]] = set()
    for path in sorted((work / "lists").glob("*_main_i18n_Translation-en*")):
        text = subprocess.run([_HELPER, "cat-file", str(path)], check=True, capture_output=True, text=True).stdout
        for record in text.split("\n\n"):
            match = re.match(r"Package: (\S+)\n.*?^Description-en: (.*?)\n(.*)", record, re.S | re.M)
            if not match:
                continue
            title, short = match.group(1), match.group(2).strip()
            doc = _long_description(match.group(3))
            if doc.lower().startswith(short.lower()):
                doc = doc[len(short) :].lstrip(" .,:;-\n")
            if len(doc) < 40 or len(short) < 8 or (short, doc) in seen:
                continue
            seen.add((short, doc))
            yield Row("debian", source.get(title, title), title, short, doc)


def _long_description(body: str) -> str:
    """Removes the layout of the control file: joins paragraphs, keeps list items on separate lines."""
    lines: list[str] = []
    fresh = True
    for raw in body.splitlines():
        line = raw[1:]
        if line.strip() in ("", "."):
            fresh = True
        elif fresh or line.startswith(" "):
            lines.append(line.strip())
            fresh = line.startswith(" ") and False
        else:
            lines[-1] += " " + line.strip()
    return "\n".join(lines)


def wordnet(work: Path) -> Iterator[Row]:
    """WordNet synsets: words, and their definition and examples."""
    for path in sorted((work / "unpacked/wordnet-base/usr/share/wordnet").glob("data.*")):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("  ") or "|" not in line:
                continue
            fields, gloss = line.split("|", 1)
            parts = fields.split()
            words = [parts[4 + 2 * i].replace("_", " ") for i in range(int(parts[3], 16))]
            words = [re.sub(r"\([a-z]+\)$", "", word) for word in words]
            definition, _, examples = gloss.strip().partition('; "')
            doc = ", ".join(words) + (f': "{examples}' if examples else "")
            yield Row("wordnet", words[0].lower(), words[0], definition.strip(), doc)


def synonyms(work: Path) -> dict[str, list[str]]:
    """Maps single words to the other single words of their most frequent synset that has several."""
    table: dict[str, list[str]] = {}
    for row in wordnet(work):
        words = [word for word in row.doc.split(": ")[0].split(", ") if word.isalpha() and word.islower()]
        for word in words:
            if len(words) > 1 and word not in table:
                table[word] = [other for other in words if other != word]
    return table


def foldoc(work: Path) -> Iterator[Row]:
    """The Free On-line Dictionary of Computing: headword and field, and the definition."""
    path = work / "unpacked/dict-foldoc/usr/share/dictd/foldoc.dict.dz"
    with gzip.open(path, "rt", encoding="utf-8", errors="replace") as lines:
        text = lines.read()
    for entry in re.split(r"\n(?=\S[^\n]*\n(?:\S[^\n]*\n)*\n? {3})", text):
        head, _, body = entry.partition("\n")
        body = re.sub(r"[{}]", "", body)
        body = re.sub(r"\(\d{4}-\d\d-\d\d\)|<[^>]*>|\[.*?\]", " ", body, flags=re.S)
        body = " ".join(body.split())
        if head and len(head) < 60 and len(body) > 80 and not body.lower().startswith("see "):
            sentences = re.split(r"(?<=[.?!]) ", body, maxsplit=1)
            query = sentences[0].rstrip(".")
            if len(sentences) == 2 and 15 < len(query) < 200 and len(sentences[1]) > 40:
                yield Row("foldoc", head.lower(), head, query, sentences[1])


def manuals(work: Path) -> Iterator[Row]:
    """Manual pages (the NAME line, and the description), and Perl's functions and modules."""
    for path in sorted((work / "unpacked").glob("*/usr/share/man/man[1-9]/*.gz")):
        if path.is_symlink():
            continue
        with gzip.open(path, "rt", encoding="utf-8", errors="replace") as lines:
            text = _plain_roff(lines.read())
        name = re.search(r"^# NAME\n(.+?)\n#", text, re.S | re.M)
        body = re.search(r"^# DESCRIPTION\n(.+?)(?=\n# [A-Z]|\Z)", text, re.S | re.M)
        if not name or not body or " - " not in name.group(1):
            continue
        titles, short = " ".join(name.group(1).split()).split(" - ", 1)
        doc = body.group(1).strip()
        if len(short) > 8 and len(doc) > 60:
            yield Row("manual", path.name.split(".")[0], titles.split(",")[0].strip(), short, doc[:3000])
    pod = next((work / "unpacked/perl-doc").rglob("perlfunc.pod")).read_text(encoding="utf-8", errors="replace")
    for entry in re.findall(r"^=item (\w[^\n]*)\nX<[^\n]*\n\n=for Pod::Functions ([^\n]*)\n\n(.*?)(?=^=item \w|\Z)",
                            pod, re.S | re.M):  # fmt: skip
        prose = re.sub(r"[A-Z]<<* *([^<>|]*?)(?:\|[^<>]*)? *>*>", r"\1", entry[2])
        if len(prose) > 60:
            group = f"perl-{entry[0].split()[0].lower()}"
            yield Row("manual", group, entry[0], entry[1], " ".join(prose.split())[:3000])


def _plain_roff(text: str) -> str:
    """Extracts prose from man(7): section heads become `# HEAD`, macros and fonts are removed."""
    out: list[str] = []
    for line in text.splitlines():
        if line.startswith(('.\\"', "'\\\"", "..", ".TH", ".de", ".if", ".ie", ".el", ".nr", ".ds", ".SO", ".\\}")):
            continue
        if line.startswith(".SH"):
            out.append("\n# " + line[3:].strip().strip('"'))
            continue
        macro = re.match(r"\.(\w+) ?(.*)", line)
        if macro:
            if macro.group(1) in ("PP", "P", "TP", "LP", "IP", "Sp"):
                out.append("\n")
            if macro.group(1) not in ("B", "I", "BR", "BI", "IR", "IB", "RB", "RI", "SM", "SB", "IP"):
                continue
            words = re.findall(r'"([^"]*)"|(\S+)', macro.group(2))
            joined = ["".join(pair) for pair in words]
            line = ("" if len(macro.group(1)) == 2 and macro.group(1) != "IP" else " ").join(joined)
        out.append(line + " ")
    plain = "".join(part if part.startswith("\n#") is False else part + "\n" for part in out)
    plain = re.sub(r"\\f(?:\[\w*\]|\(\w\w|\w)|\\[&|^%/,]|\\s[-+]?\d", "", plain)
    plain = plain.replace("\\-", "-").replace("\\e", "\\").replace("\\(aq", "'").replace("\\(em", "-")
    plain = plain.replace("\\ ", " ").replace("\\(bu", "*").replace("\\*(C`", "").replace("\\*(C'", "")
    plain = plain.replace("\\*(Aq", "'").replace("\\(co", "(c)")
    return re.sub(r"[ \t]+", " ", re.sub(r"\n{2,}", "\n", plain))
