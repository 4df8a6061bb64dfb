"""Real text: Wikipedia passages with held-out sentences as queries, and the Lee news corpus."""

import bz2
import html
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from sparsebook.data.catalogue import FromSource
from sparsebook.files import cached, missing_package, packaged_file

_GENSIM = "test/test_data"
_WIKITEXT = (
    "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2",
    "enwiki-table-markup.xml.bz2",
)
_STEMMED = "head500.noblanks.cor"
_ARTICLES_VERSION = "1"


@dataclass(frozen=True, eq=False)
class Passages(FromSource):
    """Passages of English Wikipedia and sentences to look for in them.

    Attributes
    ----------
    texts : the passages, in the order of the articles; words are separated by single spaces
    article : number of the article that each passage was cut from, an index into `titles`
    titles : the articles' titles; an article that is only there as stemmed words has the title
        ``"(stemmed: first three stems)"``
    stemmed : whether a passage consists of stems without stop words instead of sentences
    queries : real sentences, in random order, that were taken out of the articles before the passages were
        cut: none stands word for word in a passage
    query_article : number of the article that each query was taken from
    """

    source_name = "wikipedia"

    texts: tuple[str, ...]
    article: Int[np.ndarray, "passages"]
    titles: tuple[str, ...]
    stemmed: Bool[np.ndarray, "passages"]
    queries: tuple[str, ...]
    query_article: Int[np.ndarray, "queries"]


@dataclass(frozen=True)
class _Articles:
    """What the cache holds: sentences per article, and which of them may become queries."""

    titles: list[str]
    sentences: list[list[str]]
    stemmed: list[bool]
    askable: list[tuple[int, int]]


def wikipedia_passages(words: int = 64, held_out: int = 0, seed: int = 0, stemmed: bool = True) -> Passages:
    """All the Wikipedia text that gensim carries, cut into passages of about the same number of words.

    110 articles are there as wikitext and are turned into plain text (templates, tables, references, headings
    and the link sections at the end removed). 250 more, of an older dump, are there only as the stems of
    their words, stop words removed: real term statistics, but not prose. Many of these are older versions
    of articles that are also there as wikitext.

    Parameters
    ----------
    words : words per passage; the last passage of an article has between half and one and a half times that,
        and a shorter article is one passage
    held_out : how many sentences (10 to 40 words) become queries. They are removed from the text *before*
        passages are cut. Only a sentence whose words stand nowhere else in the text is taken, the stemmed
        articles included. The first n queries are the same for every larger `held_out`.
    seed : chooses the sentences
    stemmed : whether the stemmed articles belong to the collection

    Raises
    ------
    ValueError : `words` below 8, or `held_out` negative or above a quarter of the usable sentences
    MissingInput : gensim is not installed
    """
    if words < 8:
        raise ValueError(f"words={words!r}: expected at least 8")
    if seed < 0:
        raise ValueError(f"seed={seed!r}: expected a whole number, 0 or above")
    articles = _articles()
    most = len(articles.askable) // 4
    if not 0 <= held_out <= most:
        raise ValueError(f"held_out={held_out!r}: expected between 0 and {most}")
    order = np.random.default_rng(seed).permutation(len(articles.askable))[:held_out]
    asked = [articles.askable[i] for i in order]
    return _cut(articles, words, asked, stemmed)


def _cut(articles: _Articles, words: int, asked: list[tuple[int, int]], stemmed: bool) -> Passages:
    taken = set(asked)
    texts: list[str] = []
    origin: list[int] = []
    for number, sentences in enumerate(articles.sentences):
        if articles.stemmed[number] and not stemmed:
            continue
        kept = " ".join(s for place, s in enumerate(sentences) if (number, place) not in taken)
        pieces = _pieces(kept.split(), words)
        texts += pieces
        origin += [number] * len(pieces)
    article = np.asarray(origin, dtype=np.int64)
    return Passages(
        texts=tuple(texts),
        article=article,
        titles=tuple(articles.titles),
        stemmed=np.asarray(articles.stemmed, dtype=bool)[article],
        queries=tuple(articles.sentences[number][place] for number, place in asked),
        query_article=np.asarray([number for number, _ in asked], dtype=np.int64),
    )


def _pieces(text: list[str], words: int) -> list[str]:
    """Consecutive pieces of `words` words; a rest shorter than half a piece joins the one before it."""
    starts = list(range(0, len(text), words))
    if len(starts) > 1 and len(text) - starts[-1] < (words + 1) // 2:
        starts.pop()
    return [" ".join(text[a:b]) for a, b in pairwise([*starts, len(text)])]


# --- from wikitext to sentences --------------------------------------------------------------------------


@cache
def _articles() -> _Articles:
    folder = cached("wikipedia", _build_articles, _ARTICLES_VERSION)
    stored = json.loads((folder / "articles.json").read_text(encoding="utf-8"))
    stored["askable"] = [tuple(place) for place in stored["askable"]]
    return _Articles(**stored)


def _build_articles(folder: Path) -> None:
    prose = dict(_wikitext_articles())
    stems = [line.split() for line in _gensim_text(_STEMMED).splitlines()]
    titles = [*prose, *(f"(stemmed: {' '.join(line[:3])})" for line in stems)]
    stored = {
        "titles": titles,
        "sentences": [*prose.values(), *([" ".join(line)] for line in stems)],
        "stemmed": [False] * len(prose) + [True] * len(stems),
        "askable": _askable(list(prose.values()), stems),
    }
    (folder / "articles.json").write_text(json.dumps(stored, ensure_ascii=False), encoding="utf-8")


def _gensim_text(name: str, encoding: str = "utf-8") -> str:
    return packaged_file("gensim", f"{_GENSIM}/{name}").read_text(encoding=encoding)


def _wikitext_articles() -> Iterator[tuple[str, list[str]]]:
    """Title and sentences of every article that is no redirection."""
    paths = [packaged_file("gensim", f"{_GENSIM}/{name}") for name in _WIKITEXT]
    try:
        from gensim.corpora.wikicorpus import extract_pages, filter_wiki
    except ImportError as error:
        raise missing_package("gensim") from error
    for path in paths:
        with bz2.open(path) as dump:
            for title, text, _ in extract_pages(dump):
                if not text.lstrip().lower().startswith("#redirect"):
                    yield title, _sentences(_prose(filter_wiki(text)))


_HEADING = re.compile(r"^=+\s*(.*?)\s*=+$")
_LINK_SECTIONS = {"see also", "references", "external links", "further reading", "notes", "footnotes"}
_LINK_SECTIONS |= {"notes and references", "references and notes", "sources", "citations", "bibliography"}
_DEBRIS = ("|", "!", "{", "}", "File:", "Image:", "file:", "image:")
_MARKS = re.compile(r"'{2,}|\[\[|\]\]|\{\{|\}\}|__[A-Z]+__")


def _prose(text: str) -> list[str]:
    """Paragraphs of an article from gensim's filtered wikitext, without headings and link sections."""
    kept: list[str] = []
    skipping = False
    for line in text.splitlines():
        heading = _HEADING.match(line.strip())
        if heading:
            skipping = heading.group(1).lower() in _LINK_SECTIONS
        elif not skipping and not line.lstrip().startswith(_DEBRIS):
            kept.append(_plain(line))
    # Shorter lines are what is left of tables, galleries and templates.
    return [line for line in kept if len(line.split()) >= 4]


def _plain(line: str) -> str:
    line = _MARKS.sub("", html.unescape(line)).strip().lstrip("*#:;+ ")
    line = re.sub(r"\(\s*[,;]?\s*\)", "", line)  # what a removed template leaves between brackets
    line = re.sub(r"\s+([,.;:)])", r"\1", line)
    return " ".join(line.split())


# A full stop, with or without a closing quotation mark or bracket, ends a sentence unless an initial or a
# usual abbreviation stands before it.
_END = re.compile(
    r"(?:(?<=[.!?])|(?<=[.!?][\"”’)]))(?<![ (][A-Z]\.)(?<!\b(?:Mr|Dr|St|Jr|Sr|vs|No|ca)\.)"
    r"(?<!\b(?:Mrs|Gen|Col|Rev|Vol)\.)(?<!\b(?:e\.g|i\.e|U\.S)\.)\s+(?=[\"“‘(]?[A-Z0-9])"
)


def _sentences(paragraphs: list[str]) -> list[str]:
    return [sentence for paragraph in paragraphs for sentence in _END.split(paragraph) if sentence]


def _askable(prose: list[list[str]], stems: list[list[str]]) -> list[tuple[int, int]]:
    """Sentences that may be held out: whole ones of 10 to 40 words whose words stand nowhere else."""
    openings = Counter(run for article in prose for run in _runs(" ".join(article).split(), 6))
    stemmed = _StemmedText(stems)
    return [
        (number, place)
        for number, article in enumerate(prose)
        for place, sentence in enumerate(article)
        if _whole(sentence)
        and max(openings[run] for run in _runs(sentence.split(), 6)) == 1
        and not stemmed.contains(sentence)
    ]


def _runs(words: list[str], length: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[start:] for start in range(length)), strict=False))


def _whole(sentence: str) -> bool:
    length = len(sentence.split())
    return 10 <= length <= 40 and sentence[0].isupper() and sentence[-1] in '.!?"'


class _StemmedText:
    """Tells whether a sentence's stems follow one another somewhere in the stemmed articles."""

    def __init__(self, articles: list[list[str]]) -> None:
        from gensim.parsing.porter import PorterStemmer

        self.stem = PorterStemmer().stem
        self.known = {stem for article in articles for stem in article}
        self.runs = {run for article in articles for run in _runs(article, 4)}

    def contains(self, sentence: str) -> bool:
        stems = [self.stem(word) for word in re.findall(r"[a-z-]+", sentence.lower())]
        # Stop words have no place among the stems: a word that never occurs there is left out.
        return any(run in self.runs for run in _runs([s for s in stems if s in self.known], 4))


# --- the Lee corpus and pairs of words -------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class LeeCorpus(FromSource):
    """Short news documents and how similar people found them.

    Attributes
    ----------
    texts : the 50 documents that were judged
    similarity : mean judgement of every pair on a scale from 0 to 1, symmetric, 1 on the diagonal
    background : 300 further news documents of the same kind, not judged
    """

    source_name = "lee"

    texts: tuple[str, ...]
    similarity: Float[np.ndarray, "documents documents"]
    background: tuple[str, ...]


def lee_corpus() -> LeeCorpus:
    """The Lee corpus: 50 news documents with human similarity judgements, and 300 background documents.

    Raises
    ------
    MissingInput : gensim is not installed
    """
    judged = packaged_file("gensim", f"{_GENSIM}/similarities0-1.txt")
    upper = np.loadtxt(judged, dtype=np.float64)
    return LeeCorpus(
        texts=tuple(_gensim_text("lee.cor", "latin-1").splitlines()),
        similarity=np.triu(upper) + np.triu(upper, 1).T,
        background=tuple(_gensim_text("lee_background.cor", "latin-1").splitlines()),
    )


@dataclass(frozen=True, eq=False)
class WordPairs(FromSource):
    """Pairs of English words and how people judged them.

    Attributes
    ----------
    pairs : the words
    judgement : mean human judgement of each pair, from 0 to 10
    source_name : the name in the catalogue
    """

    pairs: tuple[tuple[str, str], ...]
    judgement: Float[np.ndarray, "pairs"]
    source_name: str


_WORD_PAIRS = {"simlex999": "simlex999.txt", "wordsim353": "wordsim353.tsv"}


def word_similarity(name: str = "simlex999") -> WordPairs:
    """Word pairs with human judgements: ``"simlex999"`` (similarity) or ``"wordsim353"`` (relatedness).

    Raises
    ------
    ValueError : another name
    MissingInput : gensim is not installed
    """
    if name not in _WORD_PAIRS:
        raise ValueError(f"name={name!r}: expected one of {sorted(_WORD_PAIRS)}")
    lines = _gensim_text(_WORD_PAIRS[name]).splitlines()
    rows = [line.split("\t") for line in lines if not line.startswith("#")]
    return WordPairs(
        pairs=tuple((first, second) for first, second, _ in rows),
        judgement=np.asarray([float(row[2]) for row in rows]),
        source_name=name,
    )
